package launchtest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/launchtest"
)

const repository = "registry.example:5000/node"

// engine is an engine double with a client that speaks to its socket.
type engine struct {
	*launchtest.Engine
	t       *testing.T
	client  *http.Client
	effects *launchtest.Recorder
}

func newEngine(t *testing.T, o launchtest.EngineOptions) *engine {
	t.Helper()
	// Not t.TempDir: a socket's path may have only some hundred characters.
	dir, err := os.MkdirTemp("", "engine")
	require.NoError(t, err)
	socket := filepath.Join(dir, "docker.sock")
	if o.Recorder == nil {
		o.Recorder = &launchtest.Recorder{}
	}
	double, err := launchtest.NewEngine(socket, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, double.Close())
		assert.NoError(t, os.RemoveAll(dir))
	})
	return &engine{Engine: double, t: t, client: unixhttp.Client(socket, false), effects: o.Recorder}
}

// do sends a request with body as it is, or as JSON if it is no reader, and returns status and answer.
func (e *engine) do(method, target string, body any) (int, string) {
	e.t.Helper()
	response, err := e.send(e.t.Context(), method, target, body)
	require.NoError(e.t, err, "%s %s", method, target)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(e.t, err, "%s %s", method, target)
	return response.StatusCode, string(text)
}

func (e *engine) send(ctx context.Context, method, target string, body any) (*http.Response, error) {
	content, ok := body.(io.Reader)
	if !ok && body != nil {
		text, err := json.Marshal(body)
		require.NoError(e.t, err)
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+target, content)
	require.NoError(e.t, err)
	return e.client.Do(request)
}

// must is do for requests that succeed.
func (e *engine) must(method, target string, body any) string {
	e.t.Helper()
	status, text := e.do(method, target, body)
	require.Less(e.t, status, 300, "%s %s: %s", method, target, text)
	return text
}

func (e *engine) get(target string) map[string]any {
	e.t.Helper()
	return object(e.t, e.must(http.MethodGet, target, nil))
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var doc map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &doc), text)
	return doc
}

// loadAnswer is the answer to a load as somebody reads it who believes it.
type loadAnswer struct {
	text   string
	failed bool // a line has error or errorDetail
	loaded bool // a line says "Loaded image"
	broken bool // a line says "Error unpacking image"
}

func (e *engine) load(entries []entry, query string) loadAnswer {
	e.t.Helper()
	status, text := e.do(http.MethodPost, "/images/load"+query, bytes.NewReader(archive(e.t, entries)))
	require.Equal(e.t, http.StatusOK, status, "every load answers 200: %s", text)
	answer := loadAnswer{text: text}
	for line := range strings.Lines(text) {
		doc := object(e.t, line)
		stream, _ := doc["stream"].(string)
		answer.failed = answer.failed || doc["error"] != nil || doc["errorDetail"] != nil
		answer.loaded = answer.loaded || strings.HasPrefix(stream, "Loaded image")
		answer.broken = answer.broken || strings.HasPrefix(stream, "Error unpacking image")
	}
	return answer
}

func (e *engine) ids() []string {
	var ids []string
	for _, image := range e.Images() {
		ids = append(ids, image.ID)
	}
	return ids
}

// entry is a file of a tar.
type entry struct {
	name string
	data []byte
}

func archive(t *testing.T, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: int64(len(e.data)), Mode: 0o644}))
		_, err := w.Write(e.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// sample is a test image with its parts.
type sample struct {
	manifest, config []byte
	layers           [][]byte
	diffIDs          []string
	mediaType        types.MediaType
}

func newSample(t *testing.T, o launchtest.ImageOptions) sample {
	t.Helper()
	if o.Config.Cmd == nil {
		o.Config.Cmd = []string{"/app/mpc-node"}
	}
	img, err := launchtest.Image(o)
	require.NoError(t, err)
	var s sample
	s.manifest, err = img.RawManifest()
	require.NoError(t, err)
	s.config, err = img.RawConfigFile()
	require.NoError(t, err)
	s.mediaType, err = img.MediaType()
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	for _, layer := range layers {
		r, err := layer.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		s.layers = append(s.layers, data)
		diffID, err := layer.DiffID()
		require.NoError(t, err)
		s.diffIDs = append(s.diffIDs, diffID.String())
	}
	return s
}

// threeLayers is an image whose first two layers depend on shared and whose third on own.
func threeLayers(t *testing.T, shared, own uint64) sample {
	t.Helper()
	layers, err := launchtest.RandomLayers(shared, 3000, 2000)
	require.NoError(t, err)
	last, err := launchtest.RandomLayer(own, 1000)
	require.NoError(t, err)
	return newSample(t, launchtest.ImageOptions{Layers: append(layers, last), Config: v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"A=image", "B=image"}, Labels: map[string]string{"from": "image"},
	}})
}

func (s sample) man() string { return digest.Of(s.manifest).String() }
func (s sample) cfg() string { return digest.Of(s.config).String() }
func (s sample) tag() string { return repository + ":" + strings.Replace(s.man(), ":", "-", 1) }

func blob(data []byte) entry { return entry{blobName(data), data} }

func blobName(data []byte) string { return "blobs/sha256/" + digest.Of(data).Hex }

// hybrid is the form that loads everywhere: blobs first, the documents that name them last.
func (s sample) hybrid(t *testing.T) []entry {
	t.Helper()
	return append(s.blobs(), s.documents(t)...)
}

func (s sample) blobs() []entry {
	var entries []entry
	for _, layer := range s.layers {
		entries = append(entries, blob(layer))
	}
	return append(entries, blob(s.config), blob(s.manifest))
}

func (s sample) documents(t *testing.T) []entry {
	t.Helper()
	return append([]entry{s.dockerIndex(t, s.tag())}, s.ociIndex(t, repository+"@"+s.man())...)
}

func (s sample) dockerIndex(t *testing.T, tags ...string) entry {
	t.Helper()
	item := map[string]any{"Config": blobName(s.config), "RepoTags": tags}
	var layers []string
	for _, layer := range s.layers {
		layers = append(layers, blobName(layer))
	}
	item["Layers"] = layers
	return entry{"manifest.json", marshal(t, []any{item})}
}

func (s sample) ociIndex(t *testing.T, name string) []entry {
	t.Helper()
	d := v1.Descriptor{MediaType: s.mediaType, Digest: digest.Of(s.manifest), Size: int64(len(s.manifest))}
	d.Annotations = map[string]string{"io.containerd.image.name": name}
	return []entry{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", marshal(t, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{d}})},
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return text
}

func without(entries []entry, name string) []entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return e.name == name })
}

func with(entries []entry, name string, data []byte) []entry {
	changed := slices.Clone(entries)
	for i := range changed {
		if changed[i].name == name {
			changed[i].data = data
		}
	}
	return changed
}

// personality is an engine that was measured.
type personality struct {
	name       string
	containerd bool
	api        string
}

func personalities() []personality {
	return []personality{
		{"20.10 classic", false, "1.41"},
		{"28 classic", false, "1.51"},
		{"26 containerd", true, "1.45"},
		{"28 containerd", true, "1.51"},
		{"29 containerd", true, "1.52"},
	}
}

func (p personality) engine(t *testing.T) *engine {
	t.Helper()
	return newEngine(t, launchtest.EngineOptions{Containerd: p.containerd, APIVersion: p.api})
}

// each runs a test against every engine.
func each(t *testing.T, test func(t *testing.T, p personality, e *engine)) {
	t.Helper()
	for _, p := range personalities() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(t, p, p.engine(t))
		})
	}
}

func linuxHere(t *testing.T) string {
	t.Helper()
	return url.QueryEscape(string(marshal(t, map[string]string{"os": "linux", "architecture": runtime.GOARCH})))
}

func TestEngineTellsWhatItIs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p personality, e *engine) {
		response, err := e.send(t.Context(), http.MethodHead, "/_ping", nil)
		require.NoError(t, err)
		response.Body.Close()
		assert.Equal(t, p.api, response.Header.Get("Api-Version"), "negotiation reads this header")
		assert.Equal(t, p.api, e.get("/v" + p.api + "/version")["ApiVersion"])
		info := e.get("/info")
		status := string(marshal(t, info["DriverStatus"]))
		assert.Equal(t, p.containerd, strings.Contains(status, `["driver-type","io.containerd.snapshotter.v1"]`),
			"the stores are told apart by the driver's status: %s", status)
		assert.Equal(t, "/var/lib/docker", info["DockerRootDir"])

		code, text := e.do(http.MethodGet, "/v1.99/info", nil)
		assert.Equal(t, http.StatusBadRequest, code, "a version that is not spoken")
		assert.Contains(t, text, "Maximum supported API version is "+p.api)
		assert.Empty(t, e.effects.Effects(), "questions change nothing")
		assert.Empty(t, e.Unexpected())
	})
}

func TestEngineRefusesOldClients(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.52"})
	status, text := e.do(http.MethodGet, "/v1.41/info", nil)
	assert.Equal(t, http.StatusBadRequest, status)
	assert.Contains(t, text, "Minimum supported API version is 1.44", "29.0 no longer speaks what 20.10 speaks")
}

func TestEngineRemembersWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	status, _ := e.do(http.MethodPost, "/v1.41/images/create?fromImage=node", nil)
	assert.Equal(t, http.StatusNotFound, status, "a pull")
	assert.Equal(t, []string{"POST /images/create"}, e.Unexpected())
	assert.Equal(t, []string{"POST /images/create?fromImage=node"}, e.Requests(), "requests are kept without the version")
}

func TestHybridLoadsEverywhere(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	each(t, func(t *testing.T, p personality, e *engine) {
		entries := s.hybrid(t)
		answer := e.load(entries, "?quiet=0")
		assert.True(t, answer.loaded, answer.text)
		assert.False(t, answer.failed || answer.broken, answer.text)
		id, other, name := s.cfg(), s.man(), s.tag()
		if p.containerd {
			id, other, name = s.man(), s.cfg(), repository+"@"+s.man()
		}
		assert.Equal(t, []launchtest.ImageInfo{{ID: id, Names: []string{name}, Layers: s.diffIDs}}, e.Images())

		doc := e.get("/images/" + id + "/json")
		assert.Equal(t, id, doc["Id"])
		assert.Equal(t, "linux", doc["Os"])
		assert.Len(t, doc["RootFS"].(map[string]any)["Layers"], 3)
		for _, ref := range []string{name, id[:19], strings.TrimPrefix(id, "sha256:")[:12]} {
			assert.Equal(t, id, e.get("/images/" + ref + "/json")["Id"], ref)
		}
		// What compose may not use: the other store's ID, and in the classic store the reference by digest.
		for _, ref := range []string{other, repository + ":latest", "elsewhere.example/node@" + s.man()} {
			status, _ := e.do(http.MethodGet, "/images/"+ref+"/json", nil)
			assert.Equal(t, http.StatusNotFound, status, ref)
		}
		status, _ := e.do(http.MethodGet, "/images/"+repository+"@"+s.man()+"/json", nil)
		assert.Equal(t, p.containerd, status == http.StatusOK, "R@MAN resolves in the containerd store only")
		digests := "[]"
		if p.containerd {
			digests = `["` + repository + "@" + s.man() + `"]`
		}
		assert.JSONEq(t, digests, string(marshal(t, doc["RepoDigests"])))

		assert.Equal(t, 1, e.Loads())
		assert.EqualValues(t, len(archive(t, entries)), e.LoadedBytes())
		assert.Equal(t, []string{"load"}, e.effects.Effects())
		assert.Equal(t, !p.containerd, strings.Contains(answer.text, `"status":"Loading layer"`), "only the classic store tells progress")
	})
}

func TestLoadNormalizesNames(t *testing.T) {
	t.Parallel()
	for given, shown := range map[string]string{
		"busybox:1": "busybox:1", "docker.io/library/busybox:1": "busybox:1", "nearone/node:2": "nearone/node:2",
		"index.docker.io/a/b:3": "a/b:3",
		"localhost/x:4":         "localhost/x:4", "nearone/node": "nearone/node:latest",
	} {
		for _, containerd := range []bool{false, true} {
			e := newEngine(t, launchtest.EngineOptions{Containerd: containerd, APIVersion: "1.51"})
			layers, err := launchtest.RandomLayers(1, 100)
			require.NoError(t, err)
			img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
			require.NoError(t, err)
			id, err := e.AddImage(img, given)
			require.NoError(t, err)
			assert.Equal(t, []string{shown}, e.Images()[0].Names, given)
			assert.Equal(t, id, e.get("/images/" + shown + "/json")["Id"], given)
			assert.Empty(t, e.effects.Effects(), "somebody else's load is not recorded")
			assert.Zero(t, e.Loads(), "nor counted")
		}
	}
}

func TestOtherFormsOfImages(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	each(t, func(t *testing.T, p personality, e *engine) {
		answer := e.load(append(s.blobs(), s.dockerIndex(t, "node:1")), "")
		require.True(t, answer.loaded, answer.text)
		require.Len(t, e.Images(), 1)
		assert.Equal(t, p.containerd, !slices.Contains([]string{s.cfg(), s.man()}, e.ids()[0]),
			"the docker-save form gets a manifest in the containerd store that nobody approved")
		e.must(http.MethodDelete, "/images/node:1", nil)

		answer = e.load(append(s.blobs(), s.ociIndex(t, repository+"@"+s.man())...), "")
		assert.Equal(t, p.containerd, answer.loaded, "a pure OCI layout: %s", answer.text)
		assert.Equal(t, !p.containerd, answer.failed, answer.text)
		assert.Equal(t, p.containerd, slices.Contains(e.ids(), s.man()))
	})
}

func TestClassicLoadWithADigestForATagLeavesADanglingImage(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	e := newEngine(t, launchtest.EngineOptions{})
	answer := e.load(append(s.blobs(), s.dockerIndex(t, repository+"@"+s.man())), "")
	assert.True(t, answer.failed, answer.text)
	assert.Equal(t, []launchtest.ImageInfo{{ID: s.cfg(), Names: []string{}, Layers: s.diffIDs}}, e.Images())
	e.must(http.MethodPost, "/images/prune", nil)
	assert.Empty(t, e.Images(), "a dangling image is pruned")
}

// TestDamagedLoads is the table of what engines check, and what they only seem to.
func TestDamagedLoads(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	first := blobName(s.layers[0])
	flipped := slices.Clone(s.layers[0])
	flipped[len(flipped)/2] ^= 1
	altered := bytes.Replace(s.config, []byte("/entry"), []byte("/evil!"), 1)
	require.NotEqual(t, s.config, altered)
	cases := []struct {
		name   string
		tamper func(hybrid []entry) []entry
		// containerd engines say "Loaded image" for all of these; unpacking is what may fail
		classicFails bool
		unpackFails  bool
		classicID    string // of what stands in the classic store afterwards
	}{
		{"flipped byte in a layer", func(h []entry) []entry { return with(h, first, flipped) }, true, true, ""},
		{"another layer", func(h []entry) []entry { return with(h, first, s.layers[1]) }, true, true, ""},
		{"truncated layer", func(h []entry) []entry { return with(h, first, s.layers[0][:1000]) }, true, true, ""},
		{"missing layer", func(h []entry) []entry { return without(h, first) }, true, true, ""},
		{"altered config", func(h []entry) []entry { return with(h, blobName(s.config), altered) }, false, false, digest.Of(altered).String()},
		{"missing config", func(h []entry) []entry { return without(h, blobName(s.config)) }, true, false, ""},
		{"altered manifest", func(h []entry) []entry {
			return with(h, blobName(s.manifest), append([]byte(" "), s.manifest...))
		}, false, false, s.cfg()},
		{"missing manifest", func(h []entry) []entry { return without(h, blobName(s.manifest)) }, false, false, s.cfg()},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, p personality, e *engine) {
				answer := e.load(c.tamper(s.hybrid(t)), "")
				if !p.containerd {
					assert.Equal(t, c.classicFails, answer.failed, answer.text)
					assert.Equal(t, !c.classicFails, answer.loaded, answer.text)
					if c.classicFails {
						assert.Empty(t, e.Images(), "nothing is left")
						assert.Empty(t, e.effects.Effects(), "nothing was loaded")
						return
					}
					require.Equal(t, []string{c.classicID}, e.ids(), "what was sent decides the ID, not what it was called")
					assert.Equal(t, []string{s.tag()}, e.Images()[0].Names, "and it carries the name")
					return
				}
				old := p.api == "1.45"
				assert.Equal(t, c.unpackFails && old, answer.failed, answer.text)
				assert.Equal(t, !(c.unpackFails && old), answer.loaded, answer.text)
				assert.Equal(t, c.unpackFails && !old, answer.broken, answer.text)
				require.Equal(t, []string{s.man()}, e.ids(), "a broken image stays, under the approved name")
				status, text := e.do(http.MethodGet, "/images/"+s.man()+"/json", nil)
				layerMissing := c.unpackFails
				switch {
				case old && !layerMissing:
					assert.Equal(t, http.StatusNotFound, status, "26 can't describe it: %s", text)
				case p.api == "1.51" || !layerMissing:
					require.Equal(t, http.StatusOK, status, text)
					assert.Empty(t, object(t, text)["RootFS"], "inspection shows no layers")
				default:
					require.Equal(t, http.StatusOK, status, text)
					assert.Len(t, object(t, text)["RootFS"].(map[string]any)["Layers"], 3, "inspection shows nothing wrong")
				}
				if !old {
					assert.Equal(t, []bool{false}, available(t, e, s.man()), "but it says that content is missing")
				}
				status, _ = e.do(http.MethodPost, "/containers/create?name=x", map[string]any{"Image": s.man()})
				assert.Equal(t, http.StatusNotFound, status, "it can't be used")
			})
		})
	}
}

func available(t *testing.T, e *engine, id string) []bool {
	t.Helper()
	var list []bool
	manifests, _ := e.get("/images/" + id + "/json?manifests=1")["Manifests"].([]any)
	for _, m := range manifests {
		list = append(list, m.(map[string]any)["Available"].(bool))
	}
	return list
}

func TestPlatformTurnsSilentBreakageIntoAnError(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	for _, missing := range []string{blobName(s.layers[2]), blobName(s.config), blobName(s.manifest)} {
		e := newEngine(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.51"})
		answer := e.load(without(s.hybrid(t), missing), "?platform="+linuxHere(t))
		assert.True(t, answer.failed, answer.text)
		assert.False(t, answer.loaded, answer.text)
	}
	e := newEngine(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.51"})
	assert.True(t, e.load(s.hybrid(t), "?platform="+linuxHere(t)).loaded)
	e = newEngine(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.45"})
	assert.True(t, e.load(without(s.hybrid(t), blobName(s.manifest)), "?platform="+linuxHere(t)).loaded, "26 doesn't know the parameter")
	status, _ := e.do(http.MethodPost, "/images/load?platform=junk", nil)
	assert.Equal(t, http.StatusOK, status, "26 ignores it, whatever it says")
}

func TestInspectByPlatform(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	for _, containerd := range []bool{false, true} {
		e := newEngine(t, launchtest.EngineOptions{Containerd: containerd, APIVersion: "1.51"})
		require.True(t, e.load(s.hybrid(t), "").loaded)
		id := e.ids()[0]
		assert.Equal(t, id, e.get("/images/" + id + "/json?platform=" + linuxHere(t))["Id"])
		status, _ := e.do(http.MethodGet, "/images/"+id+"/json?platform="+url.QueryEscape(`{"os":"linux","architecture":"s390x"}`), nil)
		assert.Equal(t, http.StatusNotFound, status)
	}
}

func TestIndexes(t *testing.T) {
	t.Parallel()
	layers, err := launchtest.RandomLayers(1, 1000)
	require.NoError(t, err)
	here, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	other, err := launchtest.Image(launchtest.ImageOptions{Layers: layers, Platform: v1.Platform{OS: "linux", Architecture: "s390x"}})
	require.NoError(t, err)
	index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{other, here}, Attestations: true})
	require.NoError(t, err)
	raw, err := index.RawManifest()
	require.NoError(t, err)
	s := newSample(t, launchtest.ImageOptions{Layers: layers, Config: v1.Config{Cmd: []string{}}})
	s.manifest, err = here.RawManifest()
	require.NoError(t, err)
	s.config, err = here.RawConfigFile()
	require.NoError(t, err)
	// The index and this platform's child are enough.
	entries := append(s.blobs(), blob(raw))
	top := s
	top.manifest, top.mediaType = raw, types.OCIImageIndex
	entries = append(entries, top.documents(t)...)

	each(t, func(t *testing.T, p personality, e *engine) {
		answer := e.load(entries, "?platform="+linuxHere(t))
		require.True(t, answer.loaded, answer.text)
		want := s.cfg()
		if p.containerd {
			want = digest.Of(raw).String()
		}
		assert.Equal(t, []launchtest.ImageInfo{{ID: want, Names: e.Images()[0].Names, Layers: s.diffIDs}}, e.Images())
		assert.Len(t, e.get("/images/" + want + "/json")["RootFS"].(map[string]any)["Layers"], 1)
		if p.containerd && p.api != "1.45" {
			assert.Equal(t, []bool{false, true, false, false}, available(t, e, want), "only this platform's child is there")
		}
	})
}

func TestCompressions(t *testing.T) {
	t.Parallel()
	layers, err := launchtest.RandomLayers(1, 2000)
	require.NoError(t, err)
	for _, c := range []launchtest.Compression{launchtest.Gzip, launchtest.Zstd, launchtest.Uncompressed} {
		s := newSample(t, launchtest.ImageOptions{OCI: true, Compression: c, Layers: layers})
		t.Run(string(c), func(t *testing.T) {
			each(t, func(t *testing.T, p personality, e *engine) {
				answer := e.load(s.hybrid(t), "")
				refused := p.api == "1.41" && c == launchtest.Zstd
				assert.Equal(t, refused, answer.failed, "only 20.10 doesn't know zstd: %s", answer.text)
				assert.Equal(t, !refused, answer.loaded, answer.text)
			})
		})
	}
}

func TestReuseOfLayers(t *testing.T) {
	t.Parallel()
	before, after := threeLayers(t, 1, 10), threeLayers(t, 1, 20)
	require.Equal(t, before.layers[:2], after.layers[:2])
	short := without(without(after.hybrid(t), blobName(after.layers[0])), blobName(after.layers[1]))
	each(t, func(t *testing.T, p personality, e *engine) {
		answer := e.load(short, "")
		assert.False(t, answer.loaded && !answer.broken, "without the other image the layers are missing: %s", answer.text)
		e.must(http.MethodPost, "/images/prune?filters="+url.QueryEscape(`{"dangling":["false"]}`), nil)
		require.Empty(t, e.Images())

		require.True(t, e.load(before.hybrid(t), "").loaded)
		answer = e.load(short, "?platform="+linuxHere(t))
		assert.True(t, answer.loaded && !answer.failed && !answer.broken, answer.text)
		assert.Len(t, e.Images(), 2)
		if p.containerd {
			e.must(http.MethodDelete, "/images/"+before.man(), nil)
			want := launchtest.ImageInfo{ID: after.man(), Names: []string{repository + "@" + after.man()}, Layers: after.diffIDs}
			assert.Equal(t, []launchtest.ImageInfo{want}, e.Images(),
				"content that another image needs stays")
		}
	})
}

func TestClassicNeverReadsALayerThatIsThere(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	e := newEngine(t, launchtest.EngineOptions{})
	require.True(t, e.load(s.hybrid(t), "").loaded)
	assert.True(t, e.load(with(s.hybrid(t), blobName(s.layers[0]), []byte("junk")), "").loaded)
}

// TestSnapshotsHideAMissingBlob: what is unpacked already is not unpacked again, so nothing notices that a blob is missing.
func TestSnapshotsHideAMissingBlob(t *testing.T) {
	t.Parallel()
	gz, err := launchtest.RandomLayers(1, 2000)
	require.NoError(t, err)
	one := newSample(t, launchtest.ImageOptions{OCI: true, Layers: gz})
	two := newSample(t, launchtest.ImageOptions{OCI: true, Layers: gz, Compression: launchtest.Zstd})
	require.Equal(t, one.diffIDs, two.diffIDs)
	e := newEngine(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.52"})
	require.True(t, e.load(one.hybrid(t), "").loaded)
	answer := e.load(without(two.hybrid(t), blobName(two.layers[0])), "")
	assert.True(t, answer.loaded && !answer.failed && !answer.broken, answer.text)
	assert.Len(t, e.get("/images/" + two.man() + "/json")["RootFS"].(map[string]any)["Layers"], 1, "inspection shows nothing wrong")
	assert.Equal(t, []bool{false}, available(t, e, two.man()))
}

func TestAbortedUploads(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	full := archive(t, s.hybrid(t))
	each(t, func(t *testing.T, p personality, e *engine) {
		abort := func(sent []byte) {
			r, w := io.Pipe()
			before := e.LoadedBytes()
			go func() {
				_, _ = w.Write(sent)
				for range 1000 { // until the engine has it
					if e.LoadedBytes()-before >= int64(len(sent)) {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				w.CloseWithError(errors.New("a proof failed"))
			}()
			_, err := e.send(t.Context(), http.MethodPost, "/images/load", r)
			require.Error(t, err)
		}
		abort(full[:len(full)-1024-512]) // within the last entry
		assert.Empty(t, e.Images(), "nothing has a name before the end")
		assert.Empty(t, e.effects.Effects())

		// containerd keeps the blobs that came whole, so that a retry needs only the documents.
		retry := func() bool {
			answer := e.load(s.documents(t), "")
			return answer.loaded && !answer.broken && len(e.Images()[0].Layers) == 3
		}
		if p.containerd {
			assert.Eventually(t, retry, 5*time.Second, 10*time.Millisecond)
		} else {
			assert.False(t, retry())
		}
		e.must(http.MethodPost, "/images/prune?filters="+url.QueryEscape(`{"dangling":["0"]}`), nil)
		require.Empty(t, e.Images())

		abort(full)
		// 20.10 notices that the upload broke off after the tar's end; for later engines it was complete.
		if p.api == "1.41" {
			time.Sleep(50 * time.Millisecond)
			assert.Empty(t, e.Images())
			return
		}
		assert.Eventually(t, func() bool { return slices.Contains(e.ids(), e.expected(p, s)) }, 5*time.Second, 5*time.Millisecond)
	})
}

func (e *engine) expected(p personality, s sample) string {
	if p.containerd {
		return s.man()
	}
	return s.cfg()
}

func TestDaemonThatStopsHasLoadedNothing(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	e := newEngine(t, launchtest.EngineOptions{})
	e.Fail(launchtest.EngineFault{Match: "POST /images/load", Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := e.send(ctx, http.MethodPost, "/images/load", bytes.NewReader(archive(t, s.hybrid(t))))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, e.Restart(true))
	assert.Empty(t, e.Images(), "a daemon that stops in the middle of a load has loaded nothing")
}

func TestLoadFaults(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	cases := []struct {
		fault  launchtest.LoadFault
		has    string // in the answer
		failed bool
		loaded bool
		broken bool
		images int
	}{
		{fault: launchtest.LoadErrorLine, has: `"errorDetail":{"message":`, failed: true},
		{fault: launchtest.LoadErrorOnly, has: `"error":`, failed: true},
		{fault: launchtest.LoadErrorDetail, has: `"errorDetail":`, failed: true},
		{fault: launchtest.LoadUnpackLine, loaded: true, broken: true, images: 1},
		{fault: launchtest.LoadSilent},
		{fault: launchtest.LoadDiskFull, has: "no space left on device", failed: true},
		{fault: launchtest.LoadVanishes, loaded: true},
	}
	for _, c := range cases {
		t.Run(string(c.fault), func(t *testing.T) {
			each(t, func(t *testing.T, _ personality, e *engine) {
				e.Fail(launchtest.EngineFault{Match: "POST /images/load", Load: c.fault, LoadBytes: 2048})
				answer := e.load(s.hybrid(t), "")
				assert.Contains(t, answer.text, c.has)
				assert.Equal(t, []bool{c.failed, c.loaded, c.broken}, []bool{answer.failed, answer.loaded, answer.broken}, answer.text)
				require.Len(t, e.Images(), c.images)
				for _, image := range e.Images() {
					assert.Empty(t, image.Layers, "it is broken")
				}
				assert.True(t, e.load(s.hybrid(t), "").loaded, "the next load is as it should be")
				assert.Len(t, e.Images()[0].Layers, 3, "and repairs")
			})
		})
	}
}

func TestLoadThatIsCut(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	each(t, func(t *testing.T, _ personality, e *engine) {
		e.Fail(launchtest.EngineFault{Match: "POST /images/load", Load: launchtest.LoadCut, LoadBytes: 2048})
		_, err := e.send(t.Context(), http.MethodPost, "/images/load", bytes.NewReader(archive(t, s.hybrid(t))))
		require.Error(t, err)
		assert.Empty(t, e.Images())
		assert.EqualValues(t, 2048, e.LoadedBytes())

		e.Fail(launchtest.EngineFault{Match: "POST /images/load", Load: launchtest.LoadTruncated})
		_, text := e.do(http.MethodPost, "/images/load", bytes.NewReader(archive(t, s.hybrid(t))))
		assert.Contains(t, text, "Loaded image")
		assert.False(t, json.Valid([]byte(text)), "the last line is not whole: %s", text)
	})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	volume := map[string]string{"Name": "v"}

	e.Fail(launchtest.EngineFault{Match: "GET /volumes/*", Skip: 1, Times: 2, Status: http.StatusServiceUnavailable, Message: "busy"})
	e.must(http.MethodPost, "/volumes/create", volume)
	e.must(http.MethodGet, "/volumes/v", nil)
	for range 2 {
		status, text := e.do(http.MethodGet, "/v1.41/volumes/v", nil)
		assert.Equal(t, http.StatusServiceUnavailable, status)
		assert.JSONEq(t, `{"message":"busy"}`, text)
	}
	e.must(http.MethodGet, "/volumes/v", nil)

	e.Fail(launchtest.EngineFault{Match: "DELETE *", Close: true})
	_, err := e.send(t.Context(), http.MethodDelete, "/volumes/v", nil)
	require.Error(t, err, "the connection is closed")
	assert.Equal(t, []string{"v"}, e.Volumes(), "and nothing was done")
	e.Fail(launchtest.EngineFault{Match: "DELETE *", Close: true, After: true})
	_, err = e.send(t.Context(), http.MethodDelete, "/volumes/v", nil)
	require.Error(t, err, "the answer is lost")
	assert.Empty(t, e.Volumes(), "but the work is done")

	e.Fail(launchtest.EngineFault{Match: "GET /info", Times: -1, Hang: true})
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err = e.send(ctx, http.MethodGet, "/info", nil)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	e.Heal()
	assert.Equal(t, "linux", e.get("/info")["OSType"])

	e.Fail(launchtest.EngineFault{Match: "GET /info", Edit: func(body []byte) []byte {
		return bytes.Replace(body, []byte(`"OSType":"linux"`), []byte(`"OSType":"windows"`), 1)
	}})
	assert.Equal(t, "windows", e.get("/info")["OSType"], "a lie")
	assert.Equal(t, "linux", e.get("/info")["OSType"])
	assert.Equal(t, []string{"volume-create v", "volume-remove v"}, e.effects.Effects())
}

func TestDeletingImages(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	each(t, func(t *testing.T, p personality, e *engine) {
		require.True(t, e.load(s.hybrid(t), "").loaded)
		id := e.expected(p, s)
		name := e.Images()[0].Names[0]
		e.must(http.MethodPost, "/images/"+id+"/tag?repo=elsewhere&tag=1", nil)
		status, text := e.do(http.MethodDelete, "/images/"+id, nil)
		assert.Equal(t, http.StatusConflict, status, "several repositories have it: %s", text)
		e.must(http.MethodDelete, "/images/elsewhere:1", nil)
		assert.Equal(t, []string{name}, e.Images()[0].Names)

		e.must(http.MethodPost, "/containers/create?name=user", map[string]any{"Image": id})
		status, text = e.do(http.MethodDelete, "/images/"+id+"?noprune=1", nil)
		assert.Equal(t, http.StatusConflict, status, "a container uses it: %s", text)
		e.must(http.MethodPost, "/images/prune?filters="+url.QueryEscape(`{"dangling":["false"]}`), nil)
		require.Len(t, e.Images(), 1, "a prune leaves what a container uses")

		e.must(http.MethodDelete, "/containers/user", nil)
		e.must(http.MethodPost, "/images/prune", nil)
		require.Len(t, e.Images(), 1, "a named image is not dangling")
		e.must(http.MethodDelete, "/images/"+id+"?noprune=1", nil)
		assert.Empty(t, e.Images())
		status, _ = e.do(http.MethodDelete, "/images/"+id, nil)
		assert.Equal(t, http.StatusNotFound, status)
		assert.Equal(t, []string{
			"load", "tag elsewhere:1", "delete-image elsewhere:1", "create user", "remove user", "delete-image " + id,
		}, e.effects.Effects())
	})
}

func TestListingImages(t *testing.T) {
	t.Parallel()
	s := threeLayers(t, 1, 10)
	each(t, func(t *testing.T, p personality, e *engine) {
		assert.JSONEq(t, `[]`, e.must(http.MethodGet, "/images/json?all=1", nil))
		require.True(t, e.load(s.hybrid(t), "").loaded)
		var list []struct {
			ID     string `json:"Id"`
			Labels map[string]string
		}
		require.NoError(t, json.Unmarshal([]byte(e.must(http.MethodGet, "/images/json?all=1", nil)), &list))
		require.Len(t, list, 1)
		assert.Equal(t, e.expected(p, s), list[0].ID)
		assert.Equal(t, map[string]string{"from": "image"}, list[0].Labels)
		for filter, want := range map[string]int{
			`{"dangling":["true"]}`: 0, `{"label":{"from=image":true}}`: 1, `{"reference":["` + repository + `"]}`: 1, `{"label":["x"]}`: 0,
		} {
			require.NoError(t, json.Unmarshal([]byte(e.must(http.MethodGet, "/images/json?filters="+url.QueryEscape(filter), nil)), &list))
			assert.Len(t, list, want, filter)
		}
	})
}
