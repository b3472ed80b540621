package strictjson_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/strictjson"
	"tee-launcher/pkg/launchtest/growth"
)

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, document := range map[string]string{
		"nothing":                      "",
		"two documents":                "{} {}",
		"a byte order mark":            "\ufeff{}",
		"a comma too many":             `{"a":1,}`,
		"a leading zero":               `[01]`,
		"text that isn't UTF-8":        "[\"\xff\"]",
		"a name that isn't UTF-8":      "{\"\xff\":1}",
		"a high surrogate":             `["\ud800"]`,
		"a high surrogate, then text":  `["\ud800\n"]`,
		"two high surrogates":          `["\ud800\ud800"]`,
		"a low surrogate":              `["\udc00"]`,
		"a surrogate after a pair":     `["\ud83d\ude00\ude00"]`,
		"a surrogate in a name":        `{"\ud800":1}`,
		"a name twice":                 `{"a":1,"a":1}`,
		"a name twice, once escaped":   `{"a":1,"\u0061":1}`,
		"a name twice, far inside":     `[{"x":[{"a":1,"b":2,"a":3}]}]`,
		"a name in two cases":          `{"name":1,"Name":1}`,
		"a name twice among many":      `{"0":0,"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"8":0}`,
		"a name in two cases, kelvin":  `{"key":1,"\u212aey":1}`,
		"a number that is too large":   `[1e999]`,
		"a number that is too small":   `[-1e999]`,
		"more than 127 levels":         deep(strictjson.MaxDepth + 1),
		"very many levels":             deep(1 << 18),
		"labels are no objects within": `{"Labels":{"x":{"a":1,"A":1}}}`,
	} {
		_, err := strictjson.Parse([]byte(document), "Labels")
		assert.Error(t, err, name)
	}
	for name, document := range map[string]string{
		"space around":                     " \t\r\n{ \"a\" : [ 1 , 2 ] } \n",
		"a pair of surrogates":             `["\ud83d\ude00"]`,
		"an escaped backslash before ud8":  `["\\ud800"]`,
		"127 levels":                       deep(strictjson.MaxDepth),
		"labels in two cases":              `{"Labels":{"a":1,"A":1}}`,
		"one name in two objects":          `[{"a":1},{"a":1}]`,
		"a number smaller than any":        `[1e-999, -0.0]`,
		"any value alone":                  `null`,
		"a document with an empty string":  `{"":""}`,
		"text that looks like an end":      `{"a":"}]\"","b":"\\"}`,
		"U+2028 and other separators":      "[\"\u2028\u202e\"]",
		"a number at the end of the input": `17`,
	} {
		_, err := strictjson.Parse([]byte(document), "Labels")
		assert.NoError(t, err, name)
	}
	_, err := strictjson.Parse([]byte(`{"Labels":{"a":1,"a":1}}`), "Labels")
	assert.Error(t, err, "no name twice in free objects either")
}

func TestValues(t *testing.T) {
	t.Parallel()
	v, err := strictjson.Parse([]byte(
		`{ "text" : "a\u00e9\"" ,"n": 7, "yes":true,"no":false,"none":null, "list":[ 1 ,[2,"]"], {} ],"empty":[] }`))
	require.NoError(t, err)
	members, err := v.Object("text", "absent")
	require.NoError(t, err)
	assert.Len(t, members, 7)

	text, err := members["text"].Text()
	assert.NoError(t, err)
	assert.Equal(t, `aé"`, text)
	n, err := members["n"].Uint32()
	assert.NoError(t, err)
	assert.EqualValues(t, 7, n)
	for name, want := range map[string]bool{"yes": true, "no": false} {
		got, err := members[name].Bool()
		assert.NoError(t, err)
		assert.Equal(t, want, got)
	}
	assert.True(t, members["none"].Null())
	list, err := members["list"].Array(3)
	require.NoError(t, err)
	require.Len(t, list, 3)
	assert.Equal(t, json.RawMessage(`[2,"]"]`), list[1].Raw())
	empty, err := members["empty"].Array(0)
	assert.NoError(t, err)
	assert.Empty(t, empty)
	_, err = members["list"].Array(2)
	assert.ErrorContains(t, err, "more than 2")

	assert.False(t, members["absent"].Present())
	_, err = members["absent"].Text()
	assert.EqualError(t, err, "missing")
	for name, member := range members {
		_, textErr := member.Text()
		_, numberErr := member.Uint32()
		_, boolErr := member.Bool()
		_, objectErr := member.Object()
		_, arrayErr := member.Array(9)
		assert.Equal(t, name != "text", textErr != nil, name)
		assert.Equal(t, name != "n", numberErr != nil, name)
		assert.Equal(t, name != "yes" && name != "no", boolErr != nil, name)
		assert.Error(t, objectErr, name)
		assert.Equal(t, name != "list" && name != "empty", arrayErr != nil, name)
	}
	_, err = v.Object("TEXT")
	assert.ErrorContains(t, err, "another letter case")
	for _, number := range []string{"3.0", "3e0", "-0", "-1", "4294967296", "1e9", `"3"`, "null", "true"} {
		v, err := strictjson.Parse([]byte(number))
		require.NoError(t, err, number)
		_, err = v.Uint32()
		assert.Error(t, err, number)
	}
}

// The worst kinds of documents cost little more than their size.
func TestGrowth(t *testing.T) {
	growth.Check(t, 64<<20, growth.JSON("%s"), func(document []byte) {
		v, err := strictjson.Parse(document)
		if err != nil {
			return
		}
		_, _ = v.Object("known")
		_, _ = v.Array(10_000)
		_, _ = v.Text()
	})
}

// Whatever Parse takes, encoding/json reads in the same way.
func FuzzParse(f *testing.F) {
	for _, seed := range seeds() {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := strictjson.Parse(b)
		if err != nil {
			require.Zero(t, v, "an error comes with nothing")
			return
		}
		var want any
		require.NoError(t, json.Unmarshal(b, &want))
		require.Equal(t, want, read(t, v))
	})
}

func read(t *testing.T, v strictjson.Value) any {
	if members, err := v.Object(); err == nil {
		object := map[string]any{}
		for name, member := range members {
			object[name] = read(t, member)
		}
		return object
	}
	if elements, err := v.Array(1 << 20); err == nil {
		array := []any{}
		for _, element := range elements {
			array = append(array, read(t, element))
		}
		return array
	}
	if text, err := v.Text(); err == nil {
		return text
	}
	var scalar any
	require.NoError(t, json.Unmarshal(v.Raw(), &scalar))
	return scalar
}

func seeds() []string {
	return []string{
		`{"a":[1,-2.5e3,true,false,null,"x"],"b":{"c":{}},"":[]}`,
		`["\ud83d\ude00","\\ud800","\"","\n"]`,
		`{"a":1,"A":2}`,
		`["\ud800"]`,
		" [ { \"a\" : \"}\" } , [ ] ] ",
	}
}

func TestFuzzSeeds(t *testing.T) {
	t.Parallel()
	files, err := os.ReadDir("testdata/fuzz/FuzzParse")
	require.NoError(t, err)
	names := map[string]bool{}
	for _, f := range files {
		names[f.Name()] = true
	}
	assert.Equal(t, []string{"escapes", "nested", "numbers"}, slices.Sorted(maps.Keys(names)))
}
