package digest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

func TestParse(t *testing.T) {
	t.Parallel()
	h, err := digest.Parse("sha256:" + hex64)
	require.NoError(t, err)
	eight := []byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}
	assert.Equal(t, digest.Digest(bytes.Repeat(eight, 4)), h)
	assert.Equal(t, "sha256:"+hex64, h.String())
	assert.Equal(t, hex64, h.Hex())
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]string{
		"nothing":                "",
		"only the prefix":        "sha256:",
		"no prefix":              hex64,
		"another algorithm":      "sha512:" + hex64 + hex64,
		"another name for it":    "SHA256:" + hex64,
		"a dash":                 "sha256-" + hex64,
		"two prefixes":           "sha256:sha256:" + hex64[7:],
		"one capital":            "sha256:" + hex64[:63] + "F",
		"one digit too few":      "sha256:" + hex64[:63],
		"one digit too many":     "sha256:" + hex64 + "0",
		"not a digit":            "sha256:" + hex64[:63] + "g",
		"a sign":                 "sha256:+" + hex64[:63],
		"0x":                     "sha256:0x" + hex64[:62],
		"a space before":         " sha256:" + hex64,
		"a space behind":         "sha256:" + hex64 + " ",
		"a newline behind":       "sha256:" + hex64 + "\n",
		"NUL inside":             "sha256:" + hex64[:63] + "\x00",
		"a digit of other sort":  "sha256:" + hex64[:61] + "\uff11",
		"invalid UTF-8":          "sha256:" + hex64[:63] + "\xff",
		"a reference":            "nearone/mpc-node@sha256:" + hex64,
		"a quoted one":           `"sha256:` + hex64 + `"`,
		"64 bytes, none of them": "sha256:" + strings.Repeat("\u00e9", 32),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, err := digest.Parse(s)
			require.Error(t, err)
			assert.Zero(t, h)
		})
	}
}

func TestParseDoesNotRepeatGigabytes(t *testing.T) {
	t.Parallel()
	_, err := digest.Parse(strings.Repeat("\x00", 1<<20))
	require.Error(t, err)
	assert.Less(t, len(err.Error()), 1000)
}

func TestOf(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", digest.Of(nil).String())
	assert.Equal(t, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", digest.Of([]byte("abc")).String())
}

func TestTheZeroValueIsNone(t *testing.T) {
	t.Parallel()
	assert.True(t, digest.Digest{}.IsZero())
	assert.False(t, digest.Of(nil).IsZero())
	zeros, err := digest.Parse("sha256:" + strings.Repeat("0", 64))
	require.NoError(t, err)
	assert.True(t, zeros.IsZero(), "64 zeros are the digest of nothing that anybody knows")
}

// TestItPrintsAsText: wherever a digest is shown, it is in the one spelling.
func TestItPrintsAsText(t *testing.T) {
	t.Parallel()
	d := digest.Of([]byte("abc"))
	text := "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	assert.Equal(t, text+" "+text+` "`+text+`"`, fmt.Sprintf("%s %v %q", d, &d, d))
	for handler, want := range map[string]string{
		"text": "digest=" + text, "json": `"digest":"` + text + `"`,
	} {
		var b strings.Builder
		log := slog.New(slog.NewTextHandler(&b, nil))
		if handler == "json" {
			log = slog.New(slog.NewJSONHandler(&b, nil))
		}
		log.Info("x", "digest", d)
		assert.Contains(t, b.String(), want, handler)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	type document struct {
		Digest digest.Digest  `json:"digest,omitzero"`
		None   *digest.Digest `json:"none"`
	}
	want := document{Digest: digest.Of([]byte("abc"))}
	data, err := json.Marshal(want)
	require.NoError(t, err)
	assert.Equal(t, `{"digest":"`+want.Digest.String()+`","none":null}`, string(data))
	var got document
	require.NoError(t, json.Unmarshal(data, &got))
	assert.Equal(t, want, got)

	data, err = json.Marshal(document{})
	require.NoError(t, err)
	assert.Equal(t, `{"none":null}`, string(data))
	for _, text := range []string{
		`""`, `":"`, `5`, `[]`,
		`"sha256:` + strings.ToUpper(hex64) + `"`, `"sha512:` + hex64 + hex64 + `"`,
	} {
		assert.Error(t, json.Unmarshal([]byte(`{"digest":`+text+`}`), &got), text)
	}
}

func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		h, err := digest.Parse(s)
		if err != nil {
			require.Zero(t, h, "an error comes without a digest")
			return
		}
		require.Equal(t, s, h.String(), "equal digests have equal texts")
		general, err := v1.NewHash(s)
		require.NoError(t, err, "what is accepted here is a digest everywhere")
		require.Equal(t, general.String(), h.String())
	})
}

func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"valid", "capitals", "short", "long", "sha512", "newline", "not-ascii"} {
		_, err := os.Stat(filepath.Join("testdata", "fuzz", "FuzzParse", name))
		assert.NoError(t, err)
	}
}
