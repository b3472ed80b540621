package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// requireError returns err as the one typed error of this package, of this kind.
func requireError(t *testing.T, err error, kind image.Kind) *image.Error {
	t.Helper()
	e := new(image.Error)
	require.ErrorAs(t, err, &e)
	require.Equal(t, kind, e.Kind, "kind of %q", err)
	return e
}

// TestNoNetwork: who proves can't be led anywhere by what it proves.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "tee-launcher/pkg/image").Output()
	require.NoError(t, err)
	linked := strings.Fields(string(out))
	require.Contains(t, linked, "crypto/sha256")
	for _, other := range []string{"net/http", "os/exec", "tee-launcher/pkg/registry"} {
		assert.NotContains(t, linked, other)
	}
}

// contents is an image whose layers are not compressed, each with one of these contents.
func contents(t *testing.T, layers ...string) *image.Verified {
	t.Helper()
	var descriptors, diffIDs []string
	for _, content := range layers {
		h := digest.Of([]byte(content)).String()
		diffIDs = append(diffIDs, `"`+h+`"`)
		descriptors = append(descriptors, fmt.Sprintf(
			`{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":%d,"digest":"%s"}`, len(content), h))
	}
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[` + strings.Join(diffIDs, ",") + `]}}`
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":"%s"},"layers":[%s]}`,
		len(config), digest.Of([]byte(config)), strings.Join(descriptors, ","))
	v, err := restore(t, "", manifest, config)
	require.NoError(t, err)
	return v
}

// memory is a source that brings whatever the test wants it to bring.
type memory struct {
	bring   func(layer int) (io.Reader, error)
	damaged int
	closed  int

	order []int
	next  int
}

func (m *memory) Open(_ context.Context, _ *image.Verified, layers []int) image.Blobs {
	m.order, m.next = layers, 0
	return m
}

func (m *memory) Next() (io.Reader, error) {
	m.next++
	return m.bring(m.order[m.next-1])
}

func (m *memory) Arrived() int64 { return 0 }

func (m *memory) Damaged() (host string, again bool) {
	m.damaged++
	return "somewhere.test", m.damaged == 1
}

func (m *memory) Close() error {
	m.closed++
	return nil
}

func TestLayersAreProved(t *testing.T) {
	t.Parallel()
	layers := []string{"the first layer", "the second one", "x"}
	v := contents(t, layers...)
	for how, wrap := range map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader { return r }, "by bytes": iotest.OneByteReader,
		"with its end": iotest.DataErrReader, "by halves": iotest.HalfReader,
	} {
		source := &memory{bring: func(i int) (io.Reader, error) { return wrap(strings.NewReader(layers[i])), nil }}
		stream := v.Open(t.Context(), source, []int{2, 0, 0, 1})
		for _, i := range []int{2, 0, 0, 1} {
			layer, err := stream.Next()
			require.NoError(t, err, how)
			got, err := io.ReadAll(layer)
			require.NoError(t, err, how)
			assert.Equal(t, layers[i], string(got), how)
			assert.NoError(t, layer.Close(), how)
		}
		_, err := stream.Next()
		assert.ErrorIs(t, err, io.EOF, how)
		require.NoError(t, stream.Close())
		assert.Equal(t, 1, source.closed)
		assert.Zero(t, source.damaged)
	}
}

// TestWrongLayers are brought by a source that lies: the last byte is never handed out.
func TestWrongLayers(t *testing.T) {
	t.Parallel()
	const content = "the bytes that were approved"
	v := contents(t, content, "another layer")
	broken := errors.New("the source broke off")
	for name, c := range map[string]struct {
		bring io.Reader
		want  string
		cause error
	}{
		"nothing":             {bring: strings.NewReader(""), want: "got 0 bytes, want 28"},
		"too little":          {bring: strings.NewReader(content[:20]), want: "got 20 bytes, want 28"},
		"a byte more":         {bring: strings.NewReader(content + "x"), want: "more than 28 bytes"},
		"no end":              {bring: io.MultiReader(strings.NewReader(content), forever{}), want: "more than 28 bytes"},
		"another layer":       {bring: bytes.NewReader(make([]byte, len(content))), want: "want " + digest.Of([]byte(content)).String()},
		"a flipped bit":       {bring: strings.NewReader("tie" + content[3:]), want: "want " + digest.Of([]byte(content)).String()},
		"an error":            {bring: io.MultiReader(strings.NewReader(content[:9]), iotest.ErrReader(broken)), cause: broken},
		"an error at the end": {bring: io.MultiReader(strings.NewReader(content), iotest.ErrReader(broken)), cause: broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := &memory{bring: func(int) (io.Reader, error) { return c.bring, nil }}
			stream := v.Open(t.Context(), source, []int{0, 1})
			layer, err := stream.Next()
			require.NoError(t, err)
			got, err := io.ReadAll(layer)
			assert.Less(t, len(got), len(content), "the last bytes stay here")
			if c.cause != nil {
				assert.ErrorIs(t, err, c.cause)
				assert.Zero(t, source.damaged)
			} else {
				e := requireError(t, err, image.Mismatch)
				assert.Equal(t, "layer 1 of 2", e.Part)
				assert.Equal(t, "somewhere.test", e.Host)
				assert.True(t, e.Restart, "the source has another try")
				assert.Contains(t, e.Error(), c.want)
			}
			assert.ErrorIs(t, layer.Close(), err, "Close says so again")
			_, again := layer.Read(make([]byte, 1))
			assert.ErrorIs(t, again, err, "and so does a further Read")
			_, again = stream.Next()
			assert.ErrorIs(t, again, err, "and the stream")
			require.NoError(t, stream.Close())
		})
	}
}

type forever struct{}

func (forever) Read(p []byte) (int, error) { return len(p), nil }

// TestProveAsks: a document that can't be had ends a proof as whoever was asked says.
func TestProveAsks(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	v := contents(t, "a layer")
	for _, missing := range []string{"manifest", "config"} {
		_, err := image.Prove(v.Reference(), platform(), func(d image.Document) ([]byte, error) {
			if d.Part == missing {
				return nil, gone
			}
			return v.Manifest(), nil
		})
		assert.ErrorIs(t, err, gone, missing)
	}
	ref, err := name.NewDigest("registry.test/a/b@" + v.Digest().String())
	require.NoError(t, err)
	for _, lie := range [][]byte{nil, []byte("{}"), bytes.Repeat([]byte(" "), image.MaxManifest+1), append(v.Manifest(), '\n')} {
		_, err := image.Prove(ref, v1.Platform{}, func(image.Document) ([]byte, error) { return lie, nil })
		requireError(t, err, image.Mismatch)
	}
}
