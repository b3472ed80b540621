package digest_test

import (
	"crypto/sha256"
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
	assert.Equal(t, v1.Hash{Algorithm: "sha256", Hex: hex64}, h)
	assert.Equal(t, "sha256:"+hex64, h.String())
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

func TestBytes(t *testing.T) {
	t.Parallel()
	raw, err := digest.Bytes(digest.Of([]byte("abc")))
	require.NoError(t, err)
	assert.Equal(t, sha256.Sum256([]byte("abc")), raw)
}

func TestBytesRefusesWhatParseDidNotMake(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]v1.Hash{
		"the zero value":    {},
		"no algorithm":      {Hex: hex64},
		"another algorithm": {Algorithm: "sha512", Hex: hex64},
		"too short":         {Algorithm: "sha256", Hex: hex64[:62]},
		"capitals":          {Algorithm: "sha256", Hex: strings.ToUpper(hex64)},
		"a moved colon":     {Algorithm: "sha256:" + hex64[:1], Hex: hex64[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := digest.Bytes(h)
			require.Error(t, err)
			assert.Zero(t, raw)
		})
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
		require.Equal(t, general, h)
		raw, err := digest.Bytes(h)
		require.NoError(t, err)
		require.Len(t, raw, sha256.Size)
	})
}

func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"valid", "capitals", "short", "long", "sha512", "newline", "not-ascii"} {
		_, err := os.Stat(filepath.Join("testdata", "fuzz", "FuzzParse", name))
		assert.NoError(t, err)
	}
}
