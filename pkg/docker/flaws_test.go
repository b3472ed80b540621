package docker_test

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// flawed are layers that no engine unpacks, each with what is said of it.
func flawed(t *testing.T) map[string][]byte {
	t.Helper()
	made := func(headers ...tar.Header) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range headers {
			require.NoError(t, w.WriteHeader(&h))
		}
		require.NoError(t, w.Close())
		return buf.Bytes()
	}
	file := tar.Header{Typeflag: tar.TypeReg, Name: "etc/file"}
	link := tar.Header{Typeflag: tar.TypeLink, Name: "etc/link", Linkname: "etc/file"}
	named := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	damaged := made(file)
	damaged[0] ^= 1 // the header's checksum is another then
	return map[string][]byte{
		"a hard link to what the layer doesn't hold": made(link),
		"hold before it":        made(link, file),
		"an entry of type 'Z'":  made(file, tar.Header{Typeflag: 'Z', Name: "etc/z"}),
		"a tar that is damaged": damaged,
		"a whiteout of nothing": made(file, named("etc/.wh.")),
		`"etc/.wh.file", a whiteout of what the layer itself holds`: made(file, named("etc/.wh.file")),
		`".wh.etc", a whiteout of what the layer itself holds`:      made(file, named(".wh.etc")),
	}
}

// TestALayerThatEnginesDontUnpack is an honest one, of a host that works: its form is at fault.
func TestALayerThatEnginesDontUnpack(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		for what, content := range flawed(t) {
			t.Run(store+"/"+what, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				v := b.pushed(imageOf(t, gzipped(t, sampleTar(t)), gzipped(t, content)))
				_, err := b.load(t.Context(), v, docker.LoadOptions{})
				var refused *image.Error
				require.ErrorAs(t, err, &refused)
				assert.Equal(t, exit.Refused, exit.Of(err), "%v", err)
				assert.True(t, refused.BadForm())
				assert.Equal(t, v.LayerPart(1), refused.Part)
				assert.Contains(t, err.Error(), what)
				assert.NotEmpty(t, exit.Hints(err))
				b.nothingNamed()
				b.noContainers()
			})
		}
	}
}

// TestALayerThatIsCalledATar: a classic store looks at the bytes.
func TestALayerThatIsCalledATar(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.pushed(imageOf(t, odd{packed(t, sampleTar(t)), sampleTar(t),
				types.DockerUncompressedLayer}))
			_, err := b.load(t.Context(), v, docker.LoadOptions{})
			if !options.Containerd {
				require.NoError(t, err)
				return
			}
			assert.Equal(t, exit.Refused, exit.Of(err), "%v", err)
			assert.Contains(t, err.Error(), "under the type")
			b.nothingNamed()
		})
	}
}

// TestAFileThatIsThereTwice: a containerd store takes the last one.
func TestAFileThatIsThereTwice(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		b := newBench(t, options)
		content := flawed(t)["an entry of type 'Z'"]
		content = append(content[:512:512], content[:512]...) // its first entry, twice
		v := b.pushed(imageOf(t, gzipped(t, append(content, make([]byte, 1024)...))))
		_, err := b.load(t.Context(), v, docker.LoadOptions{})
		if options.Containerd {
			require.NoError(t, err, store)
			continue
		}
		assert.Equal(t, exit.Refused, exit.Of(err), "%s: %v", store, err)
		assert.Contains(t, err.Error(), `"etc/file", which is there twice`)
		b.nothingNamed()
	}
}

// TestWhatEnginesSay in words that the double hasn't got: an attribute that no file system has, or a
// name that leads elsewhere, is the image's fault. An attribute that this one doesn't have is the host's.
func TestWhatEnginesSay(t *testing.T) {
	t.Parallel()
	const attribute = "SCHILY.xattr."
	file := tar.Header{Typeflag: tar.TypeReg, Name: "etc/file"}
	for says, c := range map[string]struct {
		entry tar.Header
		fine  bool
	}{
		"lsetxattr nothing.a /etc/a: operation not supported": {entry: tar.Header{Typeflag: tar.TypeReg, Name: "etc/a",
			PAXRecords: map[string]string{attribute + "nothing.a": "1"}}},
		`lsetxattr /etc/a: xattr "nothing.a": operation not supported`: {entry: tar.Header{Typeflag: tar.TypeReg, Name: "etc/a",
			PAXRecords: map[string]string{attribute + "nothing.a": "1"}}},
		`lsetxattr /etc/a: xattr "user.a": operation not supported`: {fine: true, entry: tar.Header{Typeflag: tar.TypeReg,
			Name: "etc/a", PAXRecords: map[string]string{attribute + "user.a": "1"}}},
		`lsetxattr /etc/gone: xattr "user.a": no such file or directory`: {entry: tar.Header{Typeflag: tar.TypeSymlink,
			Name: "etc/a", Linkname: "gone", PAXRecords: map[string]string{attribute + "user.a": "1"}}},
		"linkat etc/gone etc/a: no such file or directory":      {entry: tar.Header{Typeflag: tar.TypeLink, Name: "etc/a", Linkname: "etc/gone"}},
		`invalid hardlink target "../../etc/hosts"`:             {entry: tar.Header{Typeflag: tar.TypeLink, Name: "etc/a", Linkname: "../../etc/hosts"}},
		`invalid entry name "../a"`:                             {entry: tar.Header{Typeflag: tar.TypeReg, Name: "../a"}},
		`invalid entry name "b"`:                                {entry: tar.Header{Typeflag: tar.TypeReg, Name: "b"}, fine: true},
		`invalid whiteout entry "etc/.wh."`:                     {entry: tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh."}},
		"failed to mknod('etc/file', S_IFCHR, 0): file exists":  {entry: tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.file"}},
		"failed to mknod('etc/other', S_IFCHR, 0): file exists": {entry: tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.file"}, fine: true},
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, launchtest.EngineOptions{})
			b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadErrorLine, Message: says})
			var content bytes.Buffer
			w := tar.NewWriter(&content)
			require.NoError(t, w.WriteHeader(&file))
			require.NoError(t, w.WriteHeader(&c.entry))
			require.NoError(t, w.Close())
			_, err := b.load(t.Context(), b.pushed(imageOf(t, gzipped(t, content.Bytes()))), docker.LoadOptions{})
			want := exit.Refused
			if c.fine {
				want = exit.Engine
			}
			assert.Equal(t, want, exit.Of(err), "%v", err)
			assert.ErrorContains(t, err, says)
		})
	}
}

// TestZstdThatIsCalledGzip: engines before 26 can't unpack it, and it isn't seen that it has to be
// unpacked here.
func TestZstdThatIsCalledGzip(t *testing.T) {
	t.Parallel()
	for api, taken := range map[string]bool{"1.41": false, "1.45": true} {
		b := newBench(t, launchtest.EngineOptions{APIVersion: api})
		content := sampleTar(t)
		w, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		v := b.pushed(imageOf(t, odd{w.EncodeAll(content, nil), content, types.OCILayer}))
		_, err = b.load(t.Context(), v, docker.LoadOptions{})
		if taken {
			require.NoError(t, err)
			continue
		}
		assert.Equal(t, exit.Refused, exit.Of(err), "%v", err)
		assert.Contains(t, err.Error(), "zstd, under the type")
		b.nothingNamed()
	}
}

func sampleTar(t *testing.T) []byte {
	t.Helper()
	content, err := launchtest.RandomLayer(1, 1000)
	require.NoError(t, err)
	return content
}

// TestAFaultOfTheHostIsNotTheImages, whatever is odd in that.
func TestAFaultOfTheHostIsNotTheImages(t *testing.T) {
	t.Parallel()
	flaws := flawed(t)
	link, cut := flaws["hold before it"], packed(t, sampleTar(t))
	for says, hint := range map[string]string{
		"link /etc/file /etc/link: input/output error":                         "",
		"write /etc/link: disk quota exceeded":                                 "",
		"mkdir /var/lib/docker/overlay2/1: read-only file system":              "",
		"write /etc/link: no space left on device":                             "free space",
		"lsetxattr user.a /etc/link: operation not supported":                  "either this machine",
		"link /etc/d /etc/link: operation not permitted":                       "either this machine",
		"failed to mount overlay: invalid argument":                            "either this machine",
		"link /etc/other /etc/link: no such file or directory":                 "either this machine",
		"open /var/lib/docker/overlay2/1/committed: no such file or directory": "either this machine",
	} {
		for what, layer := range map[string][]byte{
			"a good one": packed(t, sampleTar(t)), "one with a flaw": packed(t, link),
			"one that is cut": cut[:len(cut)-4],
		} {
			t.Run(what+"/"+says, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, launchtest.EngineOptions{})
				b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1,
					Load: launchtest.LoadErrorLine, Message: says})
				content := link
				if what != "one with a flaw" {
					content = sampleTar(t)
				}
				v := b.pushed(imageOf(t, odd{layer, content, ""}))
				_, err := b.load(t.Context(), v, docker.LoadOptions{})
				require.Error(t, err)
				if what == "one that is cut" && hint == "either this machine" {
					assert.Equal(t, exit.Refused, exit.Of(err), "%v", err)
					return
				}
				assert.Equal(t, exit.Engine, exit.Of(err), "%v", err)
				assert.Contains(t, err.Error(), says)
				assert.Equal(t, hint != "", strings.Contains(strings.Join(exit.Hints(err), " "), hint) &&
					len(exit.Hints(err)) > 0, "%q", exit.Hints(err))
			})
		}
	}
}
