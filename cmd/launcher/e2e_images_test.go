//go:build e2e

package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// everywhere is the variable that has the long tests run, which hack/test-engines sets.
const everywhere = "LAUNCHER_E2E_LONG"

// pulls are two engines of one kind, of which one pulls itself and the other has the launcher pull.
type pulls struct {
	t        *testing.T
	registry *launchtest.Registry
	ours     *puller
	theirs   *ownEngine
	began    time.Time
	walk     string
	files    bool // are looked at
}

func newPulls(t *testing.T) *pulls {
	t.Helper()
	p := &pulls{t: t, began: time.Now(), walk: filepath.Join(t.TempDir(), "walk")}
	build := exec.Command("go", "build", "-o", p.walk, "tee-launcher/pkg/launchtest/walk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	p.registry, err = launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { p.registry.Close() })
	p.ours, p.theirs = newPuller(t, newOwnEngine(t, false)), newOwnEngine(t, false)
	p.theirs.reach(p.registry.Host())
	return p
}

// reach gives the engine, which has a network of its own, a port of this machine's loopback.
func (e *ownEngine) reach(address string) {
	e.t.Helper()
	require.NoError(e.t, inNetwork(e.init, loopbackUp))
	var listener net.Listener
	require.NoError(e.t, inNetwork(e.init, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	}))
	e.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				to, err := net.Dial("tcp", address)
				if err != nil {
					return
				}
				defer to.Close()
				go func() {
					_, _ = io.Copy(to, from)
					_ = to.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(from, to)
			}()
		}
	}()
}

// taken is what became of an image on an engine.
type taken struct {
	refused string    // by whom it was not taken, in their words; empty: it was
	code    exit.Code // of the launcher
	id      string
	config  any
	files   string // all that a container of it sees
}

// within is for one part of a test, which looks at files or not.
func (p *pulls) within(t *testing.T, files bool) *pulls {
	q := *p
	q.t, q.files = t, files
	return &q
}

// both has an image pulled by both, and says what came of it. Nothing of it stays.
func (p *pulls) both(ref name.Digest) (ours, theirs taken) {
	p.t.Helper()
	var wait sync.WaitGroup
	wait.Go(func() {
		code, stderr := p.ours.pull(ref)
		if ours.code = code; code != exit.OK {
			ours.refused = "launcher: " + stderr
			assert.Empty(p.t, removeImages(p.t, p.ours.engine), "what was refused leaves something")
			return
		}
		ours = p.look(p.ours.engine)
	})
	wait.Go(func() {
		if refused := p.theirs.pull(ref); refused != "" {
			theirs.refused = "docker pull: " + refused
			p.theirs.forget(ref)
			removeImages(p.t, p.theirs)
			return
		}
		theirs = p.look(p.theirs)
	})
	wait.Wait()
	return ours, theirs
}

// pull is `docker pull`. It returns why the engine didn't.
func (e *ownEngine) pull(ref name.Digest) string {
	query := url.Values{"fromImage": {ref.Context().Name()}, "tag": {ref.DigestStr()}}
	answer, err := e.client().Post("http://docker/images/create?"+query.Encode(), "", nil)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	for lines := json.NewDecoder(answer.Body); ; {
		var line struct{ Error, Message string }
		err := lines.Decode(&line)
		switch {
		case err == io.EOF:
			return ""
		case err != nil:
			return err.Error()
		case line.Error != "":
			return line.Error
		case answer.StatusCode != http.StatusOK:
			return line.Message
		}
	}
}

// forget removes what a pull left that failed: engines don't list all of that.
func (e *ownEngine) forget(ref name.Digest) {
	request, err := http.NewRequest(http.MethodDelete, "http://docker/images/"+ref.String()+"?force=1", nil)
	require.NoError(e.t, err)
	answer, err := e.client().Do(request)
	require.NoError(e.t, err)
	answer.Body.Close()
}

// removeImages returns the IDs of all images that an engine has, and removes them.
func removeImages(t *testing.T, e *ownEngine) []string {
	t.Helper()
	var list []struct{ ID string }
	m := &machine{t: t, host: e.host()}
	m.call("GET", "/images/json", nil, &list)
	var ids []string
	for _, i := range list {
		ids = append(ids, i.ID)
		m.call("DELETE", "/images/"+i.ID+"?force=1", nil, nil)
	}
	return ids
}

// look makes a container of the one image that an engine has, and removes both. Where files are
// wanted, it looks around in it.
func (p *pulls) look(e *ownEngine) (result taken) {
	defer removeImages(p.t, e)
	var list []struct{ ID string }
	m := &machine{t: p.t, host: e.host()}
	m.call("GET", "/images/json", nil, &list)
	require.Len(p.t, list, 1, "images after one was pulled")
	result.id = list[0].ID
	answer, err := e.client().Get("http://docker/images/" + result.id + "/json")
	require.NoError(p.t, err)
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	require.NoError(p.t, err)
	if answer.StatusCode != http.StatusOK { // it has it, and can't read it
		result.refused = "inspect: " + string(said)
		return result
	}
	var image struct{ Config map[string]any }
	require.NoError(p.t, json.Unmarshal(said, &image))
	result.config = image.Config
	verb := []string{"create", "--rm"}
	if p.files {
		verb = []string{"run", "--rm"}
	}
	// Some attributes are shown only to whoever has this capability.
	args := slices.Concat([]string{"-H", e.host()}, verb, []string{"--network=none", "--user=0:0",
		"--workdir=/", "--cap-add=SYS_ADMIN", "--volume=" + p.walk + ":/.walk:ro",
		"--entrypoint=/.walk", result.id})
	var out []byte
	for range 3 { // a busy engine may lose what a container says that ends at once
		if out, err = exec.Command("docker", args...).CombinedOutput(); err != nil || len(out) > 0 {
			break
		}
	}
	switch {
	case err != nil:
		result.refused = "container: " + string(out)
	case p.files:
		result.files = p.timeless(string(out))
	default:
		m.call("DELETE", "/containers/"+strings.TrimSpace(string(out))+"?force=1", nil, nil)
	}
	return result
}

// timeless leaves out the times that the engine's clock gave, as directories get that a layer has
// files in and no entry for.
func (p *pulls) timeless(files string) string {
	now := time.Now()
	fileTime := regexp.MustCompile(` time=(-?[0-9]+)\.[0-9]+`)
	return fileTime.ReplaceAllStringFunc(files, func(found string) string {
		seconds, err := strconv.ParseInt(fileTime.FindStringSubmatch(found)[1], 10, 64)
		require.NoError(p.t, err)
		if seconds < p.began.Unix() || seconds > now.Unix() {
			return found
		}
		return " time=now"
	})
}

// store is what decides what an engine takes.
type store struct {
	api        int // the minor number of its version 1
	containerd bool
}

func (p *pulls) store() store {
	p.t.Helper()
	var version struct{ APIVersion string }
	var info struct{ DriverStatus [][2]string }
	m := &machine{t: p.t, host: p.theirs.host()}
	m.call("GET", "/version", nil, &version)
	m.call("GET", "/info", nil, &info)
	var s store
	_, err := fmt.Sscanf(version.APIVersion, "1.%d", &s.api)
	require.NoError(p.t, err)
	s.containerd = slices.Contains(info.DriverStatus, [2]string{"driver-type",
		"io.containerd.snapshotter.v1"})
	return s
}

// difference is an image that the launcher and `docker pull` don't treat alike.
type difference struct {
	// ours says on which engines only the launcher takes it, theirs on which only `docker pull`
	// does; nil: nowhere.
	ours, theirs func(store) bool
	// another says on which engines docker pull takes another image of an index.
	another func(store) bool
	why     string
}

// differences are all that there are among the odd images; any other is taken by both, or by
// neither.
func differences() map[string]difference {
	containerd := func(s store) bool { return s.containerd }
	// Engines that take the highest variant that the processor can.
	highest := func(s store) bool { return s.api >= 52 || !s.containerd && s.api >= 42 }
	classic := func(s store) bool { return !s.containerd }
	oldest := func(s store) bool { return s.api <= 41 }
	always := func(store) bool { return true }
	early := func(s store) bool { return s.containerd && s.api < 51 }
	old := func(s store) bool { return s.api < 51 }
	flat := func(s store) bool { return oldest(s) || early(s) }
	deep := func(s store) bool { return !flat(s) }
	const (
		nameless = "nothing says for which machine it is"
		bounded  = "what is read before anything is proved is bounded"
		called   = "its type says that it can't be unpacked; these stores don't look at that"
		entries  = "20.10 knows only entries with a platform; it and 26 don't look into an index's indexes"
	)
	all := map[string]difference{
		"architecture empty":               {theirs: always, why: nameless},
		"os and architecture empty":        {theirs: always, why: nameless},
		"config over 4 MiB":                {theirs: always, why: bounded},
		"manifest over 4 MiB":              {theirs: classic, why: bounded},
		"index: nested too deep":           {theirs: deep, why: bounded},
		"a name twice":                     {theirs: always, why: "it can be read in two ways"},
		"config for another architecture":  {theirs: always, why: "it can't run here"},
		"encrypted layer":                  {theirs: classic, why: called},
		"layer of an unknown kind":         {theirs: classic, why: called},
		"nondistributable layer with urls": {theirs: classic, why: "it is content from elsewhere"},
		"size of the config":               {theirs: classic, why: "the manifest says another one"},
		"index: no platform at all":        {ours: oldest, why: entries},
		"index: nested":                    {ours: flat, why: entries},
		"index: os.features first":         {another: old, why: "newer engines can't run it"},
		"index: the config contradicts it": {theirs: always, why: "they say two things of one image"},
		"index: only v2": {
			ours: func(s store) bool { return !highest(s) },
			why:  "the processor has what belongs to v2; these engines take none but v1",
		},
		"index: variants": {another: highest, why: "machines of one fleet run the same code here"},
		"urls of elsewhere on a layer that the registry has": {
			ours: containerd, why: "the registry has it, so it is got there",
		},
	}
	for _, name := range []string{
		"zstd", "zstd of two frames", "zstd with frames to skip",
		"zstd that begins with a frame to skip", "zstd with an empty frame",
		"zstd without checksum", "zstd in a Docker manifest",
	} {
		all[name] = difference{ours: oldest, why: "it is unpacked for an engine that can't"}
	}
	return all
}

// unexplained are odd images that some engines refuse, in words that don't show whether the image or
// the host is at fault. Of any other that is refused, the form is.
func unexplained() []string {
	return []string{
		"hard link to a directory", "file below a file", "capabilities that are cut",
		"directory, then symbolic link", "file below a symbolic link to nothing",
		"file below a symbolic link out of the tree",
	}
}

// common are odd images that every engine takes, for the short test.
func common() []string {
	return []string{
		"whiteouts", "opaque directory", "hard links of one layer", "hard link by an absolute name",
		"symbolic links", "attributes of users",
		"capabilities", "devices", "modes", "owners", "times",
		"kinds that change from layer to layer",
		"mode of a directory in a later layer",
		"sparse file of form 1.0", "absolute names", "dotted names",
		"directories that have no entry", "long names in extended headers",
		"long names in GNU's form", "a layer twice",
		"gzip of two members", "gzip with all header fields", "layer that isn't compressed",
		"tar with zeros after its end", "tar without an end",
	}
}

// TestE2EImagesAsDockerPullsThem has the odd images of package launchtest pulled by the launcher
// and by the engine itself: both take one, and
// containers of it see the same files, or neither does. Where that isn't so, it stands in
// differences.
//
// In make check it is one image of the commonest, and two that are refused; hack/test-engines has
// it go through all.
func TestE2EImagesAsDockerPullsThem(t *testing.T) {
	t.Parallel()
	p := newPulls(t)
	store := p.store()
	t.Logf("API 1.%d, containerd store: %t", store.api, store.containerd)
	all := launchtest.OddLayers()
	named := map[string]launchtest.LayeredImage{}
	for _, odd := range all {
		named[odd.Name] = odd
	}
	known := slices.Collect(maps.Keys(named))
	for _, odd := range launchtest.OddImages() {
		known = append(known, odd.Name)
	}
	assert.Subset(t, known, slices.Collect(maps.Keys(differences())), "a difference of no image")
	if os.Getenv(everywhere) == "" {
		var stack []launchtest.OddLayer
		for _, name := range common() {
			require.Contains(t, named, name)
			stack = append(stack, named[name].Layers...)
		}
		p.within(t, true).alike(stack)
		all = []launchtest.LayeredImage{named["hard link to nothing"],
			named["tar with a wrong checksum"]}
	}

	var stack []launchtest.OddLayer
	for _, odd := range all {
		t.Run(odd.Name, func(t *testing.T) {
			p := p.within(t, false)
			layers := odd.Layers
			if !odd.Lowest { // which engines unpack in another way than those above it
				layers = slices.Concat(launchtest.BaseLayer(), layers)
			}
			ref, err := p.registry.PushLayers("odd/image", layers)
			require.NoError(t, err)
			ours, theirs := p.treated(odd.Name, store, ref)
			if ours.code != exit.OK { // nothing of it is a lie
				codes := []exit.Code{exit.Refused}
				if slices.Contains(unexplained(), odd.Name) {
					codes = append(codes, exit.Engine)
				}
				assert.Contains(t, codes, ours.code, "%s", ours.refused)
			}
			switch {
			case ours.refused != "" || theirs.refused != "":
			case len(odd.Layers) > 20 || odd.Lowest:
				p.within(t, true).alike(odd.Layers)
			default:
				stack = append(stack, odd.Layers...)
			}
		})
	}
	i := 0
	for layers := range slices.Chunk(stack, 60) {
		i++
		t.Run(fmt.Sprint("all that both take, ", i), func(t *testing.T) {
			p.within(t, true).alike(layers)
		})
	}
}

// TestE2EImagesInOddForms is the same for manifests, configs and indexes.
func TestE2EImagesInOddForms(t *testing.T) {
	t.Parallel()
	if os.Getenv(everywhere) == "" {
		t.Skip("one of the long tests, which hack/test-engines runs")
	}
	p := newPulls(t)
	store := p.store()
	for _, odd := range launchtest.OddImages() {
		t.Run(odd.Name, func(t *testing.T) {
			p := p.within(t, true)
			ref, err := odd.Push(p.registry, "odd/form")
			require.NoError(t, err)
			ours, theirs := p.treated(odd.Name, store, ref)
			assert.EqualValues(t, odd.On(store.containerd, store.api), ours.code)
			if ours.refused != "" || theirs.refused != "" {
				return
			}
			if store.containerd && odd.Runs != "" {
				// The engine shows what it pulled itself under the index; what it is sent has no index.
				assert.Equal(t, ref.DigestStr(), theirs.id)
				assert.True(t, odd.Has(ours.id), "%s is none of the index's images", ours.id)
				theirs.id = ours.id
			}
			if d := differences()[odd.Name]; d.another != nil && d.another(store) {
				assert.NotEqual(t, theirs.files, ours.files, d.why)
				return
			}
			p.equal(ours, theirs)
		})
	}
}

// treated has an image pulled by both, and says so where they don't treat it as differences has it.
func (p *pulls) treated(image string, store store, ref name.Digest) (ours, theirs taken) {
	p.t.Helper()
	ours, theirs = p.both(ref)
	p.t.Logf("launcher, code %d: %q; docker pull: %q", ours.code, last(ours.refused),
		last(theirs.refused))
	d := differences()[image]
	if d.why != "" {
		p.t.Log(d.why)
	}
	onlyOurs, onlyTheirs := d.ours != nil && d.ours(store), d.theirs != nil && d.theirs(store)
	switch {
	case ours.refused == "" && theirs.refused != "":
		assert.True(p.t, onlyOurs, "only the launcher takes it")
	case ours.refused != "" && theirs.refused == "":
		assert.True(p.t, onlyTheirs, "only docker pull takes it")
	default:
		assert.False(p.t, onlyOurs || onlyTheirs, "it is treated alike")
	}
	return ours, theirs
}

// alike has an image of these layers taken by both, and compares all that there is of it.
func (p *pulls) alike(layers []launchtest.OddLayer) {
	p.t.Helper()
	ref, err := p.registry.PushLayers("odd/image", layers)
	require.NoError(p.t, err)
	p.same(ref)
}

func (p *pulls) same(ref name.Digest) {
	p.t.Helper()
	ours, theirs := p.both(ref)
	require.Empty(p.t, ours.refused)
	require.Empty(p.t, theirs.refused)
	p.equal(ours, theirs)
}

func (p *pulls) equal(ours, theirs taken) {
	p.t.Helper()
	require.NotEmpty(p.t, ours.files)
	assert.Equal(p.t, theirs.files, ours.files)
	assert.Equal(p.t, theirs.id, ours.id)
	assert.Equal(p.t, theirs.config, ours.config)
}

// last is the end of what somebody says.
func last(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.LastIndex(s, "error: "); i >= 0 {
		s = s[i:]
	}
	return s[max(0, len(s)-300):]
}

// toolScript makes images as Debian's tools do.
const toolScript = `
../../hack/need buildah skopeo umoci
cd "$0"
export STORAGE_DRIVER=vfs
b() { buildah --root "$PWD/root" --runroot "$PWD/run" "$@"; }
mkdir -p src/sub/deep
echo content >src/sub/file
ln -s sub/file src/link
ln src/sub/file src/hard
mkfifo src/sub/fifo
chmod 4755 src/sub/file
chown 1000:70000 src/sub/deep
touch -d '2001-02-03 04:05:06.789' src/sub/deep
c=$(b from scratch)
b copy "$c" src /from-buildah
b config --label a=b --cmd /x "$c"
b commit --format oci "$c" "oci:$PWD/buildah:main"
b commit --format docker --disable-compression=false "$c" "dir:$PWD/buildah-docker"
b commit --format oci --squash --timestamp 0 "$c" "oci:$PWD/buildah-squashed:main"
skopeo copy --dest-compress-format gzip "oci:$PWD/buildah:main" "oci:$PWD/skopeo-gzip:main"
skopeo copy --dest-compress-format zstd "oci:$PWD/buildah:main" "oci:$PWD/skopeo-zstd:main"
skopeo copy --dest-compress-format zstd:chunked "oci:$PWD/buildah:main" "oci:$PWD/skopeo-chunked:main"
skopeo copy --format v2s2 "oci:$PWD/skopeo-gzip:main" "dir:$PWD/skopeo-docker"
skopeo copy --dest-decompress "oci:$PWD/skopeo-gzip:main" "dir:$PWD/skopeo-plain"
umoci init --layout "$PWD/umoci"
umoci new --image "$PWD/umoci:main"
umoci insert --image "$PWD/umoci:main" src /from-umoci
umoci insert --image "$PWD/umoci:main" --whiteout /from-umoci/link
umoci insert --image "$PWD/umoci:main" --opaque src /from-umoci/sub
`

// TestE2EImagesOfTools is TestE2EImagesAsDockerPullsThem for images that buildah, skopeo and umoci
// make.
func TestE2EImagesOfTools(t *testing.T) {
	t.Parallel()
	if os.Getenv(everywhere) == "" {
		t.Skip("one of the long tests, which hack/test-engines runs: it needs buildah, skopeo and umoci")
	}
	dir := t.TempDir()
	out, err := exec.Command("bash", "-euc", toolScript, dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	p := newPulls(t)
	store := p.store()
	for _, name := range []string{
		"buildah", "buildah-docker", "buildah-squashed", "skopeo-gzip", "skopeo-zstd",
		"skopeo-chunked", "skopeo-docker", "skopeo-plain", "umoci",
	} {
		t.Run(name, func(t *testing.T) {
			p := p.within(t, true)
			ref := p.pushFiles(filepath.Join(dir, name))
			if zstd := name == "skopeo-zstd" || name == "skopeo-chunked"; !zstd || store.api > 41 {
				p.same(ref)
				return
			}
			ours, theirs := p.both(ref)
			assert.NotEmpty(t, theirs.refused, "20.10 has no zstd")
			if name == "skopeo-chunked" {
				assert.Contains(t, ours.refused, "its zstd window is larger than 8 MiB")
				return
			}
			assert.Empty(t, ours.refused, "the launcher unpacks it for an engine that can't")
			assert.NotEmpty(t, ours.files)
		})
	}
}

// pushFiles stores the image of an OCI layout, or of a directory as skopeo makes it.
func (p *pulls) pushFiles(dir string) name.Digest {
	p.t.Helper()
	main := filepath.Join(dir, "manifest.json")
	blobs := dir
	if data, err := os.ReadFile(filepath.Join(dir, "index.json")); err == nil {
		var index v1.IndexManifest
		require.NoError(p.t, json.Unmarshal(data, &index))
		require.Len(p.t, index.Manifests, 1)
		blobs = filepath.Join(dir, "blobs", "sha256")
		main = filepath.Join(blobs, index.Manifests[0].Digest.Hex)
	}
	files, err := os.ReadDir(blobs)
	require.NoError(p.t, err)
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(blobs, f.Name()))
		require.NoError(p.t, err)
		_, err = p.registry.PushBlob("", data)
		require.NoError(p.t, err)
	}
	manifest, err := os.ReadFile(main)
	require.NoError(p.t, err)
	ref, err := p.registry.PushManifest("odd/tools", manifest)
	require.NoError(p.t, err)
	return ref
}
