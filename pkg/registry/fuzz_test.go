package registry_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/registry"
)

// FuzzContentRange: what is accepted is a closed range within its total, and says so again when it is written out.
func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/100")
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, err := registry.ParseContentRange(s)
		if err != nil {
			require.Less(t, len(err.Error()), 500)
			return
		}
		require.LessOrEqual(t, int64(0), start)
		require.LessOrEqual(t, start, end)
		size := "*"
		if total >= 0 {
			require.Less(t, end, total)
			size = fmt.Sprint(total)
		}
		written := fmt.Sprintf("bytes %d-%d/%s", start, end, size)
		start2, end2, total2, err := registry.ParseContentRange(written)
		require.NoError(t, err)
		require.Equal(t, []int64{start, end, total}, []int64{start2, end2, total2})
	})
}

func TestContentRange(t *testing.T) {
	t.Parallel()
	for s, want := range map[string][]int64{
		"bytes 0-99/100":  {0, 99, 100},
		"bytes 10-10/*":   {10, 10, -1},
		"bytes 005-09/10": {5, 9, 10},
		"":                nil, "bytes": nil, "bytes ": nil, "bytes 0-99": nil, "bytes */100": nil, "bytes 99-0/100": nil,
		"bytes 0-100/100": nil, "bytes -1-5/10": nil, "bytes +0-5/10": nil, "bytes 0-5/-1": nil, "bytes 0-5/": nil, "items 0-5/10": nil,
		"bytes 0-5/99999999999999999999": nil, "bytes 0 - 5/10": nil, "bytes 0-5/10 ": nil, "bytes 0-5/10, bytes 0-5/10": nil, "bytes=0-5/10": nil,
		"bytes 9223372036854775808-9223372036854775809/*": nil,
	} {
		start, end, total, err := registry.ParseContentRange(s)
		if want == nil {
			assert.Error(t, err, "%q", s)
			continue
		}
		require.NoError(t, err, "%q", s)
		assert.Equal(t, want, []int64{start, end, total}, "%q", s)
	}
}

// FuzzWWWAuthenticate: whatever is read, reading it again from a proper spelling gives the same.
func FuzzWWWAuthenticate(f *testing.F) {
	f.Add(`Bearer realm="https://auth.test/token",service="registry"`)
	f.Fuzz(func(t *testing.T, s string) {
		challenges := registry.ParseChallenges([]string{s})
		var written []string
		for _, c := range challenges {
			require.NotEmpty(t, c.Scheme)
			require.Equal(t, strings.ToLower(c.Scheme), c.Scheme)
			params := make([]string, 0, len(c.Params))
			for name, value := range c.Params {
				require.Equal(t, strings.ToLower(name), name)
				params = append(params, name+`="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value)+`"`)
			}
			written = append(written, c.Scheme+" "+strings.Join(params, ", "))
		}
		if len(s) < 1000 { // with escapes it may grow over the limit
			require.Equal(t, challenges, registry.ParseChallenges([]string{strings.Join(written, ", ")}))
		}
	})
}

func TestWWWAuthenticate(t *testing.T) {
	t.Parallel()
	type params = map[string]string
	for s, want := range map[string][]registry.Challenge{
		`Bearer realm="https://a.test/t",service="s",scope="repository:a/b:pull,push"`: {
			{Scheme: "bearer", Params: params{"realm": "https://a.test/t", "service": "s", "scope": "repository:a/b:pull,push"}}},
		`Basic realm="a \"quoted\" one"`:              {{Scheme: "basic", Params: params{"realm": `a "quoted" one`}}},
		`BASIC Realm=token`:                           {{Scheme: "basic", Params: params{"realm": "token"}}},
		`Negotiate`:                                   {{Scheme: "negotiate", Params: params{}}},
		`Negotiate, Basic realm="x"`:                  {{Scheme: "negotiate", Params: params{}}, {Scheme: "basic", Params: params{"realm": "x"}}},
		`Bearer a="1", b = "2" , Basic realm="x",c=3`: {{Scheme: "bearer", Params: params{"a": "1", "b": "2"}}, {Scheme: "basic", Params: params{"realm": "x", "c": "3"}}},
		`Bearer realm="first",REALM="second"`:         {{Scheme: "bearer", Params: params{"realm": "first"}}},
		`Bearer realm="never ends`:                    {{Scheme: "bearer", Params: params{}}},
		`Bearer realm="ends in \`:                     {{Scheme: "bearer", Params: params{}}},
		`Bearer realm=`:                               {{Scheme: "bearer", Params: params{}}},
		`="x"`:                                        nil,
		`realm="x"`:                                   nil,
		`, ,`:                                         nil,
		``:                                            nil,
		`Bearer realm="` + strings.Repeat("x", 9000) + `"`: nil,
	} {
		assert.Equal(t, want, registry.ParseChallenges([]string{s}), "%.100q", s)
	}
	assert.Len(t, registry.ParseChallenges([]string{"Negotiate", `Basic realm="x"`}), 2, "two headers")
}

// TestSeedsAreThere holds the committed inputs of the fuzz tests to their number.
func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for name, least := range map[string]int{"FuzzContentRange": 5, "FuzzWWWAuthenticate": 6} {
		entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", name))
		require.NoError(t, err)
		assert.GreaterOrEqual(t, len(entries), least, "seeds of %s", name)
	}
}
