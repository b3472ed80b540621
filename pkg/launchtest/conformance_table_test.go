package launchtest_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest"
)

// conformance is what engines do, as far as the launcher and its tests depend on it. It is run on
// the engine double as every engine that it plays, and on real ones by `make e2e` and `make
// test-engines`: a double that does something else fails, and so does a new engine that does
// something that nobody has seen yet.
func conformance() []scenario {
	return slices.Concat(engineScenarios(), loadScenarios(), damageScenarios(), imageScenarios(),
		containerScenarios(), lifeScenarios(),
		volumeScenarios())
}

func engineScenarios() []scenario {
	return []scenario{{
		name: "what it is",
		do: func(s *subject) {
			version := s.get("/version")["ApiVersion"].(string)
			response, err := s.client.Head("http://engine/_ping")
			require.NoError(s.t, err)
			require.NoError(s.t, response.Body.Close())
			s.see("ping tells the version: %t", response.Header.Get("Api-Version") == version)
			s.sees("that version", http.MethodGet, "/v"+version+"/info", nil)
			status, text := s.ask(http.MethodGet, "/v1.99/info", nil)
			s.see("a later version: %d %t", status,
				strings.Contains(text, "Maximum supported API version is "+version))
			info := s.get("/info")
			s.see("system: %s, root: %t", info["OSType"],
				strings.HasPrefix(info["DockerRootDir"].(string), "/"))
		},
		want: `
			ping tells the version: true
			that version: 200
			a later version: 400 true
			system: linux, root: true`,
	}}
}

func loadScenarios() []scenario {
	return []scenario{{
		name: "load the form for both stores",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{}, 3000, 2000, 1000)
			text := s.load("answer", made.hybrid(s.t), "?quiet=0")
			s.see("tells progress: %t", strings.Contains(text, `"status":"Loading layer"`))
			s.inspects("by manifest digest", made.man())
			s.inspects("by config digest", made.cfg())
			s.inspects("by tag", made.tag())
			s.inspects("by repository and digest", made.repository+"@"+made.man())
			s.inspects("by the beginning of the ID", s.id(made)[:19])
			s.inspects("by another tag", made.repository+":latest")
			s.inspects("by another repository", "elsewhere.example/node@"+made.man())
			image := s.get("/images/" + s.id(made) + "/json")
			s.see("tags: %s", image["RepoTags"])
			s.see("digests: %s", image["RepoDigests"])
			s.see("system: %s, layers are the config's: %t", image["Os"],
				fmt.Sprint(image["RootFS"].(map[string]any)["Layers"]) == fmt.Sprint(made.diffIDs))
			s.available("manifests", made.man())
		},
		want: `
			answer: loaded
			[classic] tells progress: true
			[containerd] tells progress: false
			[classic] by manifest digest: 404
			[containerd] by manifest digest: MANIFEST with 3 layers
			[classic] by config digest: CONFIG with 3 layers
			[containerd] by config digest: 404
			[classic] by tag: CONFIG with 3 layers
			[containerd] by tag: 404
			[classic] by repository and digest: 404
			[containerd] by repository and digest: MANIFEST with 3 layers
			[classic] by the beginning of the ID: CONFIG with 3 layers
			[containerd] by the beginning of the ID: MANIFEST with 3 layers
			by another tag: 404
			by another repository: 404
			[classic] tags: [registry.example:5000/PREFIX:sha256-MANIFEST-HEX]
			[classic] digests: []
			[containerd 26] tags: []
			[containerd !26] tags: [registry.example:5000/PREFIX@MANIFEST]
			[containerd] digests: [registry.example:5000/PREFIX@MANIFEST]
			system: linux, layers are the config's: true
			[containerd !26] manifests: available [true], unpacked [true]`,
	}, {
		name: "load an OCI layout",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{OCI: true}, 1000)
			s.load("answer", append(made.blobs(), made.ociIndex(s.t, made.repository+"@"+made.man())...), "")
			s.inspects("by manifest digest", made.man())
			s.inspects("by config digest", made.cfg())
		},
		want: `
			[classic] answer: error
			[containerd] answer: loaded
			[classic] by manifest digest: 404
			[containerd] by manifest digest: MANIFEST with 1 layers
			by config digest: 404`,
	}, {
		name: "compressions",
		do: func(s *subject) {
			for _, c := range []launchtest.Compression{launchtest.Gzip, launchtest.Zstd,
				launchtest.Uncompressed} {
				s.load(string(c), s.sample(launchtest.ImageOptions{OCI: true, Compression: c},
					2000).hybrid(s.t), "")
			}
		},
		want: `
			gzip: loaded
			[20] zstd: error
			[!20] zstd: loaded
			none: loaded`,
	}, {
		name: "load a part of an index",
		do: func(s *subject) {
			here := s.sample(launchtest.ImageOptions{OCI: true}, 1000)
			other := s.sample(launchtest.ImageOptions{OCI: true,
				Platform: v1.Platform{OS: "linux", Architecture: "s390x"}}, 1000)
			entry := func(made sample, architecture string) v1.Descriptor {
				return v1.Descriptor{MediaType: made.mediaType, Digest: hashOf(made.manifest),
					Size:     int64(len(made.manifest)),
					Platform: &v1.Platform{OS: "linux", Architecture: architecture}}
			}
			top := here
			top.mediaType = types.OCIImageIndex
			top.manifest = marshal(s.t, v1.IndexManifest{SchemaVersion: 2, MediaType: top.mediaType,
				Manifests: []v1.Descriptor{entry(other, "s390x"), entry(here, architecture())}})
			s.images = append(s.images, top.man())
			s.knows(top.man(), "INDEX")
			s.load("answer", append(append(here.blobs(), blob(top.manifest)), top.documents(s.t)...),
				onlyHere())
			id := here.cfg()
			if s.store == "containerd" {
				id = top.man()
			}
			s.see("ID: %s", id)
			s.inspects("by it", id)
			s.available("manifests", id)
			s.known = append([]string{here.cfg(), "HERE"}, s.known...)
		},
		want: `
			answer: loaded
			[classic] ID: CONFIG
			[classic] by it: CONFIG with 1 layers
			[containerd] ID: INDEX
			[containerd] by it: INDEX with 1 layers
			[containerd !26] manifests: available [false true], unpacked [false true]`,
	}, {
		name: "load a platform",
		do: func(s *subject) {
			for _, part := range []string{"nothing", "a layer", "the config", "the manifest"} {
				made := s.sample(launchtest.ImageOptions{}, 1000, 500)
				missing := map[string]string{"a layer": blobName(made.layers[1]),
					"the config":   blobName(made.config),
					"the manifest": blobName(made.manifest)}[part]
				s.load(part+" is missing", without(made.hybrid(s.t), missing), onlyHere())
			}
			made := s.sample(launchtest.ImageOptions{}, 1000)
			s.load("all of it", made.hybrid(s.t), "")
			id := "/images/" + s.id(made) + "/json"
			s.sees("inspected as this platform's", http.MethodGet, id+onlyHere(), nil)
			s.sees("inspected as another's", http.MethodGet,
				id+"?platform="+url.QueryEscape(`{"os":"linux","architecture":"s390x"}`), nil)
		},
		want: `
			nothing is missing: loaded
			[classic] a layer is missing: error
			[classic] the config is missing: error
			[classic] the manifest is missing: loaded
			[containerd 26] a layer is missing: error
			[containerd 26] the config is missing: loaded
			[containerd 26] the manifest is missing: loaded
			[containerd !26] a layer is missing: error
			[containerd !26] the config is missing: error
			[containerd !26] the manifest is missing: error
			all of it: loaded
			inspected as this platform's: 200
			[20] inspected as another's: 200
			[26] inspected as another's: 200
			[!20 !26] inspected as another's: 404`,
	}, {
		name: "reuse of layers",
		do: func(s *subject) {
			seed := s.seed
			before := s.sample(launchtest.ImageOptions{}, 3000, 2000, 1000)
			after := s.sample(launchtest.ImageOptions{Layers: s.layers(seed, 3000, 2000)}, 500)
			require.Equal(s.t, before.layers[:2], after.layers[:2])
			short := without(without(after.hybrid(s.t), blobName(after.layers[0])),
				blobName(after.layers[1]))
			s.load("without the other image", short, "")
			s.must(http.MethodPost, s.prune(true), nil)
			s.load("the other image", before.hybrid(s.t), "")
			s.load("with the other image", short, onlyHere())
			s.must(http.MethodDelete, "/images/"+s.id(before), nil)
			s.see("one is left: %d layers",
				len(s.get("/images/" + s.id(after) + "/json")["RootFS"].(map[string]any)["Layers"].([]any)))
		},
		want: `
			[classic] without the other image: error
			[containerd 26] without the other image: error
			[containerd !26] without the other image: loaded, unpacking failed
			the other image: loaded
			with the other image: loaded
			one is left: 3 layers`,
	}, {
		name: "layers that are there",
		do: func(s *subject) {
			seed := s.seed
			made := s.sample(launchtest.ImageOptions{OCI: true}, 2000)
			s.load("first", made.hybrid(s.t), "")
			s.load("again, with junk for a layer",
				with(made.hybrid(s.t), blobName(made.layers[0]), []byte("junk")), "")
			packed := s.sample(launchtest.ImageOptions{OCI: true, Compression: launchtest.Zstd,
				Layers: s.layers(seed, 2000)})
			require.Equal(s.t, made.diffIDs, packed.diffIDs)
			s.load("the same in another compression, missing",
				without(packed.hybrid(s.t), blobName(packed.layers[0])), "")
			s.inspects("inspected", s.id(packed))
			s.available("manifests", packed.man())
		},
		want: `
			first: loaded
			again, with junk for a layer: loaded
			the same in another compression, missing: loaded
			[classic] inspected: CONFIG with 1 layers
			[containerd 26] inspected: MANIFEST with 1 layers
			[containerd 28] inspected: MANIFEST with 0 layers
			[containerd !26 !28] inspected: MANIFEST with 1 layers
			[containerd 28] manifests: available [false], unpacked [false]
			[containerd !26 !28] manifests: available [false], unpacked [true]`,
	}, {
		name: "upload that breaks off",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{}, 3000, 1000)
			full := archive(s.t, made.hybrid(s.t))
			s.breakOff(full[:len(full)-1024-512]) // within the last entry
			s.inspects("before its end", s.id(made))
			s.load("only the documents then", made.documents(s.t), "")
			s.must(http.MethodPost, s.prune(true), nil)

			made = s.sample(launchtest.ImageOptions{}, 3000, 1000)
			s.breakOff(archive(s.t, made.hybrid(s.t)))
			s.sees("after its end", http.MethodGet, "/images/"+s.id(made)+"/json", nil)
		},
		want: `
			before its end: 404
			[classic] only the documents then: error
			[containerd] only the documents then: loaded
			[20] after its end: 404
			[!20] after its end: 200`,
	}, {
		name: "load after an upload that broke off in a damaged layer",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{}, 3<<20)
			damaged := bytes.Clone(made.layers[0])
			damaged[1000] ^= 1
			upload := archive(s.t, with(made.hybrid(s.t), blobName(made.layers[0]), damaged))
			s.breakOff(upload[:len(damaged)-100])
			s.load("first", made.hybrid(s.t), "")
			s.load("again", made.hybrid(s.t), "")
			s.inspects("inspected", s.id(made))
		},
		want: `
			[classic] first: loaded
			[containerd 26] first: error
			[containerd !26] first: loaded, unpacking failed
			again: loaded
			[classic] inspected: CONFIG with 1 layers
			[containerd] inspected: MANIFEST with 1 layers`,
	}, {
		name: "load what can't be unpacked",
		do: func(s *subject) {
			other := s.sample(launchtest.ImageOptions{}, 2000)
			for _, what := range []string{"another tar", "something behind the end"} {
				made := s.sample(launchtest.ImageOptions{}, 1000)
				blob := other.layers[0]
				if what != "another tar" {
					blob = append(bytes.Clone(made.layers[0]), "junk behind the end"...)
				}
				made = made.relayered(s.t, blob)
				s.images = append(s.images, made.man())
				s.knows(made.man(), "MANIFEST")
				s.load(what, made.hybrid(s.t), "")
				s.inspects("inspected", s.id(made))
				if s.store == "containerd" {
					s.available("manifests", made.man())
				}
				s.sees("container", http.MethodPost, "/containers/create?name="+s.name("box"),
					map[string]any{"Image": s.id(made)})
				s.containers = append(s.containers, s.name("box")) // if there is one
			}
		},
		want: cannotBeUnpacked("another tar") +
			// 26 and 28 with the classic store don't mind what follows the tar's end.
			strings.NewReplacer("[classic]", "[classic !26 !28]").Replace(
				cannotBeUnpacked("something behind the end")) + `
			[classic !20 !29] something behind the end: loaded
			[classic !20 !29] inspected: CONFIG with 1 layers
			[classic !20 !29] container: 201`,
	}, {
		name: "load what no engine unpacks",
		do: func(s *subject) {
			for what, says := range map[string]string{
				"hard link to nothing":      "hard-none/a: no such file or directory",
				"entry of an unknown kind":  "unhandled tar header type 90",
				"tar with a wrong checksum": "archive/tar: invalid tar header",
				"whiteout in its own layer": ": file exists",
			} {
				all := launchtest.OddLayers()
				i := slices.IndexFunc(all, func(o launchtest.LayeredImage) bool { return o.Name == what })
				base := launchtest.BaseLayer()[0].Tar // others are below it
				made := s.sample(launchtest.ImageOptions{
					Layers: [][]byte{base, all[i].Layers[0].Tar},
				})
				text := s.load("answer", made.hybrid(s.t), "")
				assert.Contains(s.t, text, says, what)
			}
		},
		want: strings.Repeat(`
			[classic] answer: error
			[containerd 26] answer: error
			[containerd !26] answer: loaded, unpacking failed`, 4),
	}, {
		name: "load a layer that has a name twice",
		do: func(s *subject) {
			all := launchtest.OddLayers()
			i := slices.IndexFunc(all, func(o launchtest.LayeredImage) bool { return o.Name == "file twice" })
			made := s.sample(launchtest.ImageOptions{Layers: [][]byte{all[i].Layers[0].Tar}})
			text := s.load("answer", made.hybrid(s.t), "")
			assert.Equal(s.t, s.store == "classic",
				strings.Contains(text, "duplicates of file paths not supported"))
		},
		want: `
			[classic] answer: error
			[containerd] answer: loaded`,
	}, {
		name: "load a gzip stream that is called a tar",
		do: func(s *subject) {
			seed := s.seed
			packed := s.sample(launchtest.ImageOptions{OCI: true}, 1000)
			made := s.sample(launchtest.ImageOptions{
				OCI: true, Layers: s.layers(seed, 1000), Compression: launchtest.Uncompressed,
			}).relayered(s.t, packed.layers[0])
			s.images = append(s.images, made.man())
			s.knows(made.man(), "MANIFEST")
			s.load("answer", made.hybrid(s.t), "")
		},
		want: `
			[classic] answer: loaded
			[containerd 26] answer: error
			[containerd !26] answer: loaded, unpacking failed`,
	}, {
		name: "load a variant",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{
				Platform: v1.Platform{OS: "linux", Architecture: architecture(), Variant: "v2"},
			}, 1000)
			s.load("answer", made.hybrid(s.t), "")
			s.inspects("inspected", s.id(made))
			s.must(http.MethodDelete, "/containers/"+s.container("box", s.id(made), nil, nil), nil)
			s.available("after a container", made.man())
		},
		want: `
			answer: loaded
			[classic] inspected: CONFIG with 1 layers
			[containerd] inspected: MANIFEST with 1 layers
			[containerd !26] after a container: available [true], unpacked [true]`,
	}}
}

func cannotBeUnpacked(what string) string {
	return `
		[classic] ` + what + `: error
		[containerd 26] ` + what + `: error
		[containerd !26] ` + what + `: loaded, unpacking failed
		[classic] inspected: 404
		[containerd] inspected: MANIFEST with 1 layers
		[containerd !26] manifests: available [true], unpacked [false]
		[classic] container: 404
		[containerd] container: 500`
}

// layers are those that a sample has that is made of the same seed.
func (s *subject) layers(seed uint64, sizes ...int) [][]byte {
	s.t.Helper()
	layers, err := launchtest.RandomLayers(seed, sizes...)
	require.NoError(s.t, err)
	return layers
}

// prune is the request that prunes this scenario's images: dangling ones, or all that no container
// uses.
func (s *subject) prune(all bool) string {
	filters := fmt.Sprintf(`{"label":["conformance=%s"],"dangling":["%t"]}`, s.prefix, !all)
	return "/images/prune?filters=" + url.QueryEscape(filters)
}

// damageScenarios are what engines check, and what they only seem to.
func damageScenarios() []scenario {
	damages := []struct {
		name string
		do   func(made sample, hybrid []entry) []entry
		want string
	}{{
		"a flipped byte in a layer",
		func(made sample, hybrid []entry) []entry {
			flipped := slices.Clone(made.layers[0])
			flipped[len(flipped)/2] ^= 1
			return with(hybrid, blobName(made.layers[0]), flipped)
		}, layerDamage,
	}, {
		"another layer",
		func(made sample, hybrid []entry) []entry {
			return with(hybrid, blobName(made.layers[0]), made.layers[1])
		}, layerDamage,
	}, {
		"a truncated layer",
		func(made sample, hybrid []entry) []entry {
			return with(hybrid, blobName(made.layers[0]), made.layers[0][:1000])
		}, layerDamage,
	}, {
		"a missing layer",
		func(made sample, hybrid []entry) []entry { return without(hybrid, blobName(made.layers[0])) },
		layerDamage,
	}, {
		"an altered config",
		func(made sample, hybrid []entry) []entry {
			return with(hybrid, blobName(made.config), altered(made.config))
		}, `
			answer: loaded
			[classic] approved ID: 404
			[classic] altered ID: ALTERED with 2 layers
			[classic] by tag: ALTERED with 2 layers
			[classic] container: 201
			[containerd 26] approved ID: 404
			[containerd !26] approved ID: MANIFEST with 0 layers
			[containerd] altered ID: 404
			[containerd !26] manifests: available [false], unpacked [false]
			[containerd] container: 404`,
	}, {
		"a missing config",
		func(made sample, hybrid []entry) []entry { return without(hybrid, blobName(made.config)) }, `
			[classic] answer: error
			[classic] approved ID: 404
			[classic] altered ID: 404
			[classic] by tag: 404
			[classic] container: 404
			[containerd] answer: loaded
			[containerd 26] approved ID: 404
			[containerd !26] approved ID: MANIFEST with 0 layers
			[containerd] altered ID: 404
			[containerd !26] manifests: available [false], unpacked [false]
			[containerd] container: 404`,
	}, {
		"an altered manifest",
		func(made sample, hybrid []entry) []entry {
			return with(hybrid, blobName(made.manifest), append([]byte(" "), made.manifest...))
		}, manifestDamage,
	}, {
		"a missing manifest",
		func(made sample, hybrid []entry) []entry { return without(hybrid, blobName(made.manifest)) },
		manifestDamage,
	}}
	var scenarios []scenario
	for _, d := range damages {
		scenarios = append(scenarios,
			scenario{name: "load with " + d.name, want: d.want, do: func(s *subject) {
				made := s.sample(launchtest.ImageOptions{}, 3000, 2000)
				changed := digest.Of(altered(made.config)).String()
				s.knows(changed, "ALTERED")
				s.images = append(s.images, changed)
				s.load("answer", d.do(made, made.hybrid(s.t)), "")
				s.inspects("approved ID", s.id(made))
				s.inspects("altered ID", changed)
				if s.store == "classic" {
					s.inspects("by tag", made.tag())
				} else {
					s.available("manifests", made.man())
				}
				ref := s.id(made)
				if s.store == "classic" {
					ref = made.tag()
				}
				status, text := s.ask(http.MethodPost, "/containers/create?name="+s.name("box"),
					map[string]any{"Image": ref})
				s.see("container: %d", status)
				if status == http.StatusCreated {
					s.containers = append(s.containers, object(s.t, text)["Id"].(string))
				}
			}})
	}
	return scenarios
}

func altered(config []byte) []byte {
	return bytes.Replace(config, []byte("/app/mpc-node"), []byte("/app/mpc-evil"), 1)
}

const (
	layerDamage = `
		[classic] answer: error
		[classic] approved ID: 404
		[classic] altered ID: 404
		[classic] by tag: 404
		[classic] container: 404
		[containerd 26] answer: error
		[containerd !26] answer: loaded, unpacking failed
		[containerd 28] approved ID: MANIFEST with 0 layers
		[containerd !28] approved ID: MANIFEST with 2 layers
		[containerd] altered ID: 404
		[containerd !26] manifests: available [false], unpacked [false]
		[containerd 26] container: 404
		[containerd !26] container: 500`
	manifestDamage = `
		answer: loaded
		[classic] approved ID: CONFIG with 2 layers
		[containerd 26] approved ID: 404
		[containerd !26] approved ID: MANIFEST with 0 layers
		altered ID: 404
		[classic] by tag: CONFIG with 2 layers
		[containerd !26] manifests: available [false], unpacked [false]
		[classic] container: 201
		[containerd] container: 404`
)

func imageScenarios() []scenario {
	return []scenario{{
		name: "delete and prune images",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{}, 1000)
			s.load("answer", made.hybrid(s.t), "")
			s.sees("pruned of dangling ones", http.MethodPost, s.prune(false), nil)
			s.inspects("left", s.id(made))
			box := s.container("box", s.id(made), nil, nil)
			s.sees("deleted while a container uses it", http.MethodDelete,
				"/images/"+s.id(made)+"?noprune=1", nil)
			s.sees("pruned of all", http.MethodPost, s.prune(true), nil)
			s.inspects("left", s.id(made))
			s.see("names: %s", s.get("/images/" + s.id(made) + "/json")["RepoTags"])
			s.must(http.MethodDelete, "/containers/"+box, nil)
			s.sees("deleted", http.MethodDelete, "/images/"+s.id(made)+"?noprune=1", nil)
			s.inspects("left", s.id(made))
			s.sees("deleted again", http.MethodDelete, "/images/"+s.id(made), nil)
		},
		want: `
			answer: loaded
			pruned of dangling ones: 200
			[classic] left: CONFIG with 1 layers
			[containerd] left: MANIFEST with 1 layers
			deleted while a container uses it: 409
			pruned of all: 200
			[classic] left: CONFIG with 1 layers
			[containerd] left: MANIFEST with 1 layers
			[classic] names: [registry.example:5000/PREFIX:sha256-MANIFEST-HEX]
			[containerd 26] names: []
			[containerd !26] names: [registry.example:5000/PREFIX@MANIFEST]
			deleted: 200
			left: 404
			deleted again: 404`,
	}, {
		name: "delete an image by name",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{}, 1000)
			s.load("answer", made.hybrid(s.t), "")
			name := made.tag()
			if s.store == "containerd" {
				name = made.repository + "@" + made.man()
			}
			box := s.container("box", name, nil, nil)
			s.sees("while a container uses it", http.MethodDelete, "/images/"+name, nil)
			s.must(http.MethodDelete, "/containers/"+box, nil)
			s.sees("then", http.MethodDelete, "/images/"+name, nil)
			s.inspects("left", s.id(made))
		},
		want: `
			answer: loaded
			while a container uses it: 409
			then: 200
			left: 404`,
	}, {
		name: "a name that moves on",
		do: func(s *subject) {
			one, two := s.sample(launchtest.ImageOptions{}, 1000), s.sample(launchtest.ImageOptions{}, 1000)
			for _, made := range []sample{one, two} {
				tag := one.repository + ":1"
				s.load("answer", append(append(made.blobs(), made.dockerIndex(s.t, tag)),
					made.ociIndex(s.t, tag)...), "")
			}
			for _, made := range []sample{one, two} {
				status, text := s.ask(http.MethodGet, "/images/"+s.id(made)+"/json", nil)
				s.see("names: %d %v", status, object(s.t, text)["RepoTags"])
			}
			s.must(http.MethodPost, s.prune(false), nil)
			s.sees("the first one, pruned", http.MethodGet, "/images/"+s.id(one)+"/json", nil)
		},
		want: `
			answer: loaded
			answer: loaded
			[classic] names: 200 []
			[containerd 26] names: 404 <nil>
			[containerd !26] names: 200 []
			names: 200 [registry.example:5000/PREFIX:1]
			the first one, pruned: 404`,
	}, {
		name: "list images",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{}, 1000)
			listed := func(what string) {
				ids := []string{}
				for _, image := range list(s.t, s.must(http.MethodGet, "/images/json?all=1", nil)) {
					if labels, _ := image["Labels"].(map[string]any); labels["conformance"] == s.prefix {
						ids = append(ids, image["Id"].(string))
					}
				}
				s.see("%s: %s", what, ids)
			}
			listed("before")
			s.load("answer", made.hybrid(s.t), "")
			listed("after")
		},
		want: `
			before: []
			answer: loaded
			[classic] after: [CONFIG]
			[containerd] after: [MANIFEST]`,
	}}
}

func containerScenarios() []scenario {
	return []scenario{{
		name: "create a container",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{Config: v1.Config{
				Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"A=image", "B=image"},
				WorkingDir: "/work",
				Labels:     map[string]string{"from": "image", "own": "image"},
			}}, 1000)
			s.must(http.MethodPost, "/images/load", bytes.NewReader(archive(s.t, made.hybrid(s.t))))
			volume := s.name("data")
			s.volumes = append(s.volumes, volume)
			id := s.container("box", s.id(made), map[string]any{
				"Cmd": []string{"other"}, "Env": []string{"A=own"}, "Labels": map[string]string{"own": "own"},
			}, map[string]any{
				"Binds":       []string{"/tmp:/host:ro", volume + ":/data:rw"},
				"SecurityOpt": []string{"no-new-privileges:true"},
				"Mounts": []any{map[string]any{"Type": "bind", "Source": "/dev/null", "Target": "/socket"},
					map[string]any{"Type": "volume", "Source": volume, "Target": "/held"}},
				"RestartPolicy": map[string]any{"Name": "on-failure", "MaximumRetryCount": 3},
			})
			box := s.get("/containers/" + s.name("box") + "/json")
			config, host := box["Config"].(map[string]any), box["HostConfig"].(map[string]any)
			state := box["State"].(map[string]any)
			s.see("ID: %t, image: %s, named: %s", box["Id"] == id, box["Image"], config["Image"])
			s.see("name: %s", box["Name"])
			s.see("program: %s %s", box["Path"], box["Args"])
			s.see("config: %s %s %s", config["Entrypoint"], config["Cmd"], config["WorkingDir"])
			s.see("environment: %s", sorted(config["Env"]))
			labels := config["Labels"].(map[string]any)
			s.see("labels: from=%s own=%s", labels["from"], labels["own"])
			s.see("restarts: %v", host["RestartPolicy"])
			s.see("security: %v, privileged: %v", host["SecurityOpt"], host["Privileged"])
			s.see("state: %s %v, started %s", state["Status"], state["Running"], state["StartedAt"])
			var mounts []string
			for _, m := range box["Mounts"].([]any) {
				m := m.(map[string]any)
				mounts = append(mounts,
					fmt.Sprintf("mount %s: %s %v writable %t", m["Destination"], m["Type"], m["Name"], m["RW"]))
			}
			for _, m := range slices.Sorted(slices.Values(mounts)) {
				s.see("%s", m)
			}
			s.see("volume's place: %t",
				fmt.Sprint(s.get("/volumes/" + volume)["Mountpoint"]) == s.mountOf(box, "/data"))
		},
		want: `
			[classic] ID: true, image: CONFIG, named: CONFIG
			[containerd] ID: true, image: MANIFEST, named: MANIFEST
			name: /PREFIX-box
			program: /entry [other]
			config: [/entry] [other] /work
			environment: [A=own B=image]
			labels: from=image own=own
			restarts: map[MaximumRetryCount:3 Name:on-failure]
			security: [no-new-privileges:true], privileged: false
			state: created false, started 0001-01-01T00:00:00Z
			mount /data: volume PREFIX-data writable true
			mount /held: volume PREFIX-data writable true
			mount /host: bind <nil> writable false
			mount /socket: bind <nil> writable true
			volume's place: true`,
	}, {
		name: "containers that are refused",
		do: func(s *subject) {
			image := s.workload()
			s.container("box", image, nil, nil)
			create := func(what, name string, body map[string]any) {
				s.sees(what, http.MethodPost, "/containers/create?name="+url.QueryEscape(name), body)
			}
			create("a name that is taken", s.name("box"), map[string]any{"Image": image})
			create("a name with blanks", "a box", map[string]any{"Image": image})
			create("no such image", s.name("other"),
				map[string]any{"Image": "registry.example:5000/nosuch:1"})
			create("an unknown restart policy", s.name("other"), map[string]any{"Image": image,
				"HostConfig": map[string]any{"RestartPolicy": map[string]any{"Name": "sometimes"}}})
			create("a path that isn't there", s.name("other"),
				map[string]any{"Image": image, "HostConfig": map[string]any{
					"Mounts": []any{map[string]any{"Type": "bind", "Source": "/nosuch/path", "Target": "/x"}}}})
			s.sees("inspected", http.MethodGet, "/containers/"+s.name("other")+"/json", nil)
			s.sees("started", http.MethodPost, "/containers/"+s.name("other")+"/start", nil)
			s.sees("removed", http.MethodDelete, "/containers/"+s.name("other"), nil)
		},
		want: `
			a name that is taken: 409
			a name with blanks: 400
			no such image: 404
			an unknown restart policy: 400
			a path that isn't there: 400
			inspected: 404
			started: 404
			removed: 404`,
	}, {
		name: "a container without a command",
		do: func(s *subject) {
			made := s.sample(launchtest.ImageOptions{Config: v1.Config{Cmd: []string{}}}, 1000)
			s.must(http.MethodPost, "/images/load", bytes.NewReader(archive(s.t, made.hybrid(s.t))))
			s.sees("created", http.MethodPost, "/containers/create?name="+s.name("box"),
				map[string]any{"Image": s.id(made)})
		},
		want: `created: 400`,
	}, {
		name: "list containers",
		do: func(s *subject) {
			image := s.workload()
			label := map[string]any{"Labels": map[string]string{"one": s.prefix, "two": "x"}}
			first := s.container("first", image, label, nil)
			s.container("second", image, label, nil)
			s.container("third", image, nil, nil)
			s.must(http.MethodPost, "/containers/"+first+"/start", nil)
			listed := func(what, query string) {
				var found []string
				for _, c := range list(s.t, s.must(http.MethodGet, "/containers/json?"+query, nil)) {
					name := c["Names"].([]any)[0].(string)
					if strings.Contains(name, s.prefix) {
						found = append(found, fmt.Sprintf("%s %s %s", name, c["State"], c["ImageID"]))
					}
				}
				s.see("%s: %s", what, strings.Join(found, ", "))
			}
			listed("running", "")
			listed("all", "all=1")
			filter := fmt.Sprintf(`{"label":["one=%s","two"]}`, s.prefix)
			listed("with both labels", "all=1&filters="+url.QueryEscape(filter))
			s.sees("an unknown filter", http.MethodGet,
				"/containers/json?filters="+url.QueryEscape(`{"nosuch":["x"]}`), nil)
		},
		want: `
			[classic] running: /PREFIX-first running CONFIG
			[classic] all: /PREFIX-third created CONFIG, /PREFIX-second created CONFIG, /PREFIX-first running CONFIG
			[classic] with both labels: /PREFIX-second created CONFIG, /PREFIX-first running CONFIG
			[containerd] running: /PREFIX-first running MANIFEST
			[containerd] all: /PREFIX-third created MANIFEST, /PREFIX-second created MANIFEST, /PREFIX-first running MANIFEST
			[containerd] with both labels: /PREFIX-second created MANIFEST, /PREFIX-first running MANIFEST
			an unknown filter: 400`,
	}, {
		name: "logs",
		do: func(s *subject) {
			image := s.workload()
			box := s.container("box", image, nil, nil)
			s.see("before its start: %q", s.log(box, ""))
			for n := range 2 {
				s.must(http.MethodPost, "/containers/"+box+"/start", nil)
				s.up(box, n+1)
				s.must(http.MethodPost, "/containers/"+box+"/kill", nil)
			}
			s.see("all of it: %q", s.log(box, "&tail=10"))
			s.see("the last line: %q", s.log(box, "&tail=1"))
			s.sees("no stream", http.MethodGet, "/containers/"+box+"/logs", nil)
		},
		want: `
			before its start: []
			all of it: ["1 mpc-node: start 1, image_hash = \"x\"\n" "1 mpc-node: start 2, image_hash = \"x\"\n"]
			the last line: ["1 mpc-node: start 2, image_hash = \"x\"\n"]
			no stream: 400`,
	}}
}

func lifeScenarios() []scenario {
	return []scenario{{
		name: "the life of a container",
		do: func(s *subject) {
			box := s.container("box", s.workload(), nil, nil)
			next := s.watch(box)
			starts := 0
			do := func(action string) {
				what, _, _ := strings.Cut(action, "?")
				s.sees(what, http.MethodPost, "/containers/"+box+"/"+action, nil)
				s.state("then", box)
			}
			start := func() {
				do("start")
				starts++
				s.up(box, starts)
			}
			do("stop")
			do("kill")
			start()
			do("start")
			s.sees("remove", http.MethodDelete, "/containers/"+box, nil)
			do("kill?signal=WINCH")
			do("stop?t=60")
			start()
			do("kill?signal=KILL")
			do("rename?name=" + s.name("renamed"))
			s.sees("remove", http.MethodDelete, "/containers/"+box, nil)
			s.happens("events", next, "destroy")
		},
		want: `
			stop: 304
			then: created 0
			kill: 409
			then: created 0
			start: 204
			then: running 0
			start: 304
			then: running 0
			remove: 409
			kill: 204
			then: running 0
			stop: 204
			then: exited 0
			start: 204
			then: running 0
			kill: 204
			then: exited 137
			rename: 204
			then: exited 137
			remove: 204
			events: start, kill 28, kill 15, die 0, stop, start, kill 9, die 137, rename, destroy`,
	}, {
		// When is left open: some engines tell it twice, from two sources, and the later one may come
		// after the next step.
		name: "a paused container",
		do: func(s *subject) {
			box := s.container("box", s.workload(), nil, nil)
			s.sees("pause before its start", http.MethodPost, "/containers/"+box+"/pause", nil)
			s.must(http.MethodPost, "/containers/"+box+"/start", nil)
			s.sees("pause", http.MethodPost, "/containers/"+box+"/pause", nil)
			s.comesTo(box, "paused")
			for _, action := range []string{"pause", "start"} {
				s.sees(action+" then", http.MethodPost, "/containers/"+box+"/"+action, nil)
			}
			s.sees("remove", http.MethodDelete, "/containers/"+box, nil)
			s.sees("unpause", http.MethodPost, "/containers/"+box+"/unpause", nil)
			s.comesTo(box, "running")
		},
		want: `
			pause before its start: 409
			pause: 204
			pause then: 409
			start then: 409
			remove: 409
			unpause: 204`,
	}, {
		name: "a container that doesn't want to end",
		do: func(s *subject) {
			box := s.container("box", s.workload(), runs("stays"), nil)
			next := s.watch(box)
			s.sees("start", http.MethodPost, "/containers/"+box+"/start", nil)
			s.up(box, 1)
			s.sees("stop", http.MethodPost, "/containers/"+box+"/stop?t=1", nil)
			s.state("then", box)
			s.must(http.MethodPost, "/containers/"+box+"/start", nil)
			s.sees("removed by force", http.MethodDelete, "/containers/"+box+"?force=1", nil)
			s.happens("events", next, "destroy")
		},
		want: `
			start: 204
			stop: 204
			then: exited 137
			removed by force: 204
			events: start, kill 15, kill 9, die 137, stop, start, kill 9, die 137, destroy`,
	}, {
		name: "restart policies",
		do: func(s *subject) {
			image := s.workload()
			for _, c := range []struct {
				policy, config string
				retries        int
			}{{"no", "ends-with-3", 0}, {"on-failure", "ends-with-0", 0}, {"on-failure", "ends-with-3", 2}} {
				name := fmt.Sprintf("%s-%s", c.policy, c.config)
				box := s.container(name, image, runs(c.config), map[string]any{
					"RestartPolicy": map[string]any{"Name": c.policy, "MaximumRetryCount": c.retries}})
				next := s.watch(box)
				s.must(http.MethodPost, "/containers/"+box+"/start", nil)
				for n := range 1 + c.retries {
					s.happens(fmt.Sprintf("%s %s, %d", c.policy, c.config, n+1), next, "die")
				}
				s.comesTo(box, "exited")
				doc := s.get("/containers/" + box + "/json")
				s.see("ended with %v, restarted: %v", doc["State"].(map[string]any)["ExitCode"],
					doc["RestartCount"])
			}
		},
		want: `
			no ends-with-3, 1: start, die 3
			ended with 3, restarted: 0
			on-failure ends-with-0, 1: start, die 0
			ended with 0, restarted: 0
			on-failure ends-with-3, 1: start, die 3
			on-failure ends-with-3, 2: start, die 3
			on-failure ends-with-3, 3: start, die 3
			ended with 3, restarted: 2`,
	}, {
		name: "a container that is started again and again",
		do: func(s *subject) {
			box := s.container("box", s.workload(), runs("ends-with-3"),
				map[string]any{"RestartPolicy": map[string]any{"Name": "always"}})
			s.must(http.MethodPost, "/containers/"+box+"/start", nil)
			state := s.comesTo(box, "restarting") // it may run again the next time somebody looks
			s.see("between two starts: running %v, restarting %v", state["Running"], state["Restarting"])
			s.sees("removed", http.MethodDelete, "/containers/"+box, nil)
			// While it starts or ends a real engine answers 500, and changes nothing.
			never := map[string]any{"RestartPolicy": map[string]any{"Name": "no"}}
			status := http.StatusInternalServerError
			for tries := 0; status == http.StatusInternalServerError && tries < 20; tries++ {
				s.comesTo(box, "restarting")
				status, _ = s.ask(http.MethodPost, "/containers/"+box+"/update", never)
			}
			s.see("policy: %d", status)
			s.ask(http.MethodPost, "/containers/"+box+"/stop", nil) // 204, or 304 where it just ended
			s.comesTo(box, "exited")
			policy := s.get("/containers/" + box + "/json")["HostConfig"].(map[string]any)["RestartPolicy"]
			s.see("policy then: %v", policy)
			s.sees("a policy that there isn't", http.MethodPost, "/containers/"+box+"/update",
				map[string]any{"RestartPolicy": map[string]any{"Name": "sometimes"}})
		},
		want: `
			between two starts: running true, restarting true
			removed: 409
			policy: 200
			policy then: map[MaximumRetryCount:0 Name:no]
			a policy that there isn't: 400`,
	}, {
		name: "starts that fail",
		do: func(s *subject) {
			image := s.workload()
			network := s.name("net")
			s.must(http.MethodPost, "/networks/create",
				map[string]any{"Name": network, "Labels": map[string]string{"own": s.prefix}})
			s.networks = append(s.networks, network)
			s.see("network: %v", s.get("/networks/" + network)["Labels"])
			s.sees("network that there isn't", http.MethodGet, "/networks/"+s.name("nosuch"), nil)
			port := freePort(s.t)
			s.knows(port, "PORT")
			publishing := map[string]any{"NetworkMode": network,
				"PortBindings": map[string]any{"80/tcp": []any{map[string]string{"HostPort": port}}}}
			exposing := map[string]any{"ExposedPorts": map[string]any{"80/tcp": map[string]any{}}}
			first := s.container("first", image, exposing, publishing)
			second := s.container("second", image, exposing, publishing)
			lost := s.container("lost", image, nil, map[string]any{"NetworkMode": s.name("nosuch")})
			s.sees("first", http.MethodPost, "/containers/"+first+"/start", nil)
			for _, c := range list(s.t, s.must(http.MethodGet, "/containers/json", nil)) {
				for _, p := range c["Ports"].([]any) {
					if p := p.(map[string]any); c["Id"] == first && p["IP"] != "::" {
						s.see("published: %v %v %v", p["PublicPort"], p["PrivatePort"], p["Type"])
					}
				}
			}
			status, text := s.ask(http.MethodPost, "/containers/"+second+"/start", nil)
			s.see("second: %d %t", status, strings.Contains(text, "already"))
			s.state("then", second)
			failure := fmt.Sprint(s.get("/containers/" + second +
				"/json")["State"].(map[string]any)["Error"])
			s.see("which says why: %t", strings.Contains(failure, "already"))
			status, text = s.ask(http.MethodPost, "/containers/"+lost+"/start", nil)
			s.see("lost: %d %t", status, strings.Contains(text, "not found"))
			s.state("then", lost)
			s.must(http.MethodPost, "/containers/"+first+"/kill", nil)
			s.sees("second again", http.MethodPost, "/containers/"+second+"/start", nil)
		},
		want: `
			network: map[own:PREFIX]
			network that there isn't: 404
			first: 204
			published: PORT 80 tcp
			second: 500 true
			then: created 128
			which says why: true
			lost: 404 true
			then: created 128
			second again: 204`,
	}, {
		name: "the past in events",
		do: func(s *subject) {
			box := s.container("box", s.workload(), nil, nil)
			s.must(http.MethodPost, "/containers/"+box+"/start", nil)
			s.must(http.MethodPost, "/containers/"+box+"/kill", nil)
			told := func(what, actions string) {
				query := url.Values{"since": {"1"}, "until": {eventTime()}, "filters": {
					`{"type":["container"],"container":["` + box + `"],"event":[` + actions + `]}`}}
				s.see("%s: %d", what,
					strings.Count(s.must(http.MethodGet, "/events?"+query.Encode(), nil), `"Action"`))
			}
			told("start", `"start"`)
			told("start and kill", `"start","kill"`)
			told("pause", `"pause"`)
			s.sees("an end before the beginning", http.MethodGet, "/events?since=1000&until=1", nil)
		},
		want: `
			start: 1
			start and kill: 2
			pause: 0
			an end before the beginning: 400`,
	}}
}

func volumeScenarios() []scenario {
	return []scenario{{
		name: "volumes",
		do: func(s *subject) {
			volume := s.name("data")
			s.volumes = append(s.volumes, volume)
			labels := map[string]string{"conformance": s.prefix}
			prune := func(all string) string {
				return "/volumes/prune?filters=" +
					url.QueryEscape(`{"label":["conformance=`+s.prefix+`"]`+all+`}`)
			}
			s.sees("before", http.MethodGet, "/volumes/"+volume, nil)
			s.sees("created", http.MethodPost, "/volumes/create",
				map[string]any{"Name": volume, "Labels": labels})
			s.sees("again", http.MethodPost, "/volumes/create", map[string]any{"Name": volume})
			doc := s.get("/volumes/" + volume)
			s.see("%s: %s %v %v", doc["Name"], doc["Driver"], doc["Labels"], doc["Options"])
			box := s.container("box", s.workload(), nil,
				map[string]any{"Binds": []string{volume + ":/data"}})
			s.must(http.MethodPost, prune(""), nil)
			s.sees("pruned while a container has it", http.MethodGet, "/volumes/"+volume, nil)
			s.sees("deleted while a container has it", http.MethodDelete, "/volumes/"+volume, nil)
			s.must(http.MethodDelete, "/containers/"+box+"?v=1", nil)
			s.sees("after the container", http.MethodGet, "/volumes/"+volume, nil)
			held := s.container("held", s.workload(), nil, map[string]any{
				"Mounts": []any{map[string]any{"Type": "volume", "Source": volume, "Target": "/held"}},
			})
			s.must(http.MethodDelete, "/containers/"+held+"?v=1", nil)
			s.sees("after one that mounted it", http.MethodGet, "/volumes/"+volume, nil)
			s.must(http.MethodPost, prune(""), nil)
			s.sees("pruned", http.MethodGet, "/volumes/"+volume, nil)
			s.must(http.MethodPost, "/volumes/create", map[string]any{"Name": volume})
			s.sees("deleted", http.MethodDelete, "/volumes/"+volume, nil)
			s.sees("deleted again", http.MethodDelete, "/volumes/"+volume, nil)
		},
		want: `
			before: 404
			created: 201
			again: 201
			PREFIX-data: local map[conformance:PREFIX] <nil>
			pruned while a container has it: 200
			deleted while a container has it: 409
			after the container: 200
			after one that mounted it: 200
			[20] pruned: 404
			[!20] pruned: 200
			deleted: 204
			deleted again: 404`,
	}, {
		name: "a volume that a container asks for",
		do: func(s *subject) {
			volume := s.name("data")
			s.volumes = append(s.volumes, volume)
			image := s.workload()
			s.container("holder", image, map[string]any{"Entrypoint": []string{"/never-started"}},
				map[string]any{"Mounts": []any{map[string]any{"Type": "volume", "Source": volume,
					"Target": "/held/0"}}})
			s.sees("made", http.MethodGet, "/volumes/"+volume, nil)
			s.must(http.MethodPost, s.prune(true), nil)
			s.sees("the image, pruned", http.MethodGet, "/images/"+image+"/json", nil)
			s.sees("deleted", http.MethodDelete, "/volumes/"+volume, nil)
		},
		want: `
			made: 200
			the image, pruned: 200
			deleted: 409`,
	}}
}

// mountOf returns where a container's mount comes from.
func (s *subject) mountOf(container map[string]any, destination string) string {
	for _, m := range container["Mounts"].([]any) {
		if m := m.(map[string]any); m["Destination"] == destination {
			return fmt.Sprint(m["Source"])
		}
	}
	assert.Fail(s.t, "no such mount", destination)
	return ""
}

func sorted(values any) []string {
	set := map[string]bool{}
	for _, v := range values.([]any) {
		if !strings.HasPrefix(v.(string), "PATH=") {
			set[v.(string)] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}
