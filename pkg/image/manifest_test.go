package image_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

const (
	sumA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	sumB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// platform is the one of the documents here, whatever machine runs the tests.
func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: "amd64"} }

const goodConfig = `{"architecture":"amd64","os":"linux","config":{"Labels":{"a":"1","A":"2"},"Volumes":{"/Data":{},"/data":{}}},` +
	`"rootfs":{"type":"layers","diff_ids":["sha256:` + sumA + `","sha256:` + sumB + `"]}}`

// goodManifest is the manifest of config.
func goodManifest(config string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":"%s"},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":10,"digest":"sha256:%s"},`+
		`{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","size":20,"digest":"sha256:%s","annotations":{"b":"1","B":"2"}}]}`,
		len(config), digest.Of([]byte(config)), sumA, sumB)
}

// goodIndex is an index with manifest as the entry for the platform.
func goodIndex(manifest string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":%d,"digest":"%s","platform":{"os":"linux","architecture":"amd64"}},`+
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":9,"digest":"sha256:%s","platform":{"os":"linux","architecture":"arm64","variant":"v8"}},`+
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":9,"digest":"sha256:%s","platform":{"os":"unknown","architecture":"unknown"},`+
		`"annotations":{"vnd.docker.reference.type":"attestation-manifest"}}]}`,
		len(manifest), digest.Of([]byte(manifest)), sumA, sumB)
}

// restore proves documents of which the first one is approved: index or manifest.
func restore(t testing.TB, index, manifest, config string) (*image.Verified, error) {
	t.Helper()
	approved := manifest
	if index != "" {
		approved = index
	}
	ref, err := name.NewDigest("registry.test/a/b@" + digest.Of([]byte(approved)).String())
	require.NoError(t, err)
	return image.Restore(ref, platform(), image.Kept{Index: []byte(index), Manifest: []byte(manifest), Config: []byte(config)})
}

func TestGoodDocuments(t *testing.T) {
	t.Parallel()
	manifest := goodManifest(goodConfig)
	v, err := restore(t, "", manifest, goodConfig)
	require.NoError(t, err)
	assert.True(t, v.Valid())
	assert.Equal(t, digest.Of([]byte(manifest)), v.Digest())
	assert.Equal(t, v.Digest(), v.ManifestDigest())
	assert.Equal(t, types.OCIManifestSchema1, v.MediaType())
	assert.Nil(t, v.Index())
	assert.Empty(t, v.IndexMediaType())
	assert.Equal(t, goodConfig, string(v.Config()))
	assert.Equal(t, digest.Of([]byte(goodConfig)), v.ConfigDigest())
	assert.Equal(t, "2", v.ConfigFile().Config.Labels["A"])
	assert.Equal(t, int64(30), v.Size())
	require.Len(t, v.Layers(), 2)
	b, err := digest.Parse("sha256:" + sumB)
	require.NoError(t, err)
	assert.Equal(t, image.Layer{Digest: b, DiffID: b, Size: 20, MediaType: types.OCILayerZStd}, v.Layers()[1])

	index := goodIndex(manifest)
	v, err = restore(t, index, manifest, goodConfig)
	require.NoError(t, err)
	assert.Equal(t, digest.Of([]byte(index)), v.Digest(), "the approved digest stays")
	assert.Equal(t, digest.Of([]byte(manifest)), v.ManifestDigest())
	assert.Equal(t, index, string(v.Index()))
	assert.Equal(t, types.OCIImageIndex, v.IndexMediaType())
	assert.Equal(t, manifest, string(v.Manifest()))

	v.Manifest()[0], v.Config()[0], v.Index()[0] = 'x', 'x', 'x'
	v.Layers()[0].Size = 1
	v.ConfigFile().RootFS.DiffIDs[0] = v1.Hash{}
	again, err := image.Restore(v.Reference(), platform(), v.Kept())
	require.NoError(t, err, "what callers do to their copies changes nothing")
	assert.Equal(t, v.Layers(), again.Layers())
}

// TestRealTools accepts what builders really make.
func TestRealTools(t *testing.T) {
	t.Parallel()
	layers, err := launchtest.RandomLayers(1, 1000)
	require.NoError(t, err)
	for name, o := range map[string]launchtest.ImageOptions{
		"docker gzip":         {},
		"docker uncompressed": {Compression: launchtest.Uncompressed},
		"OCI gzip":            {OCI: true},
		"OCI zstd":            {OCI: true, Compression: launchtest.Zstd},
		"OCI uncompressed":    {OCI: true, Compression: launchtest.Uncompressed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Platform, o.Layers = platform(), layers
			img, err := launchtest.Image(o)
			require.NoError(t, err)
			manifest, err := img.RawManifest()
			require.NoError(t, err)
			config, err := img.RawConfigFile()
			require.NoError(t, err)
			_, err = restore(t, "", string(manifest), string(config))
			assert.NoError(t, err)

			other, err := launchtest.Image(launchtest.ImageOptions{OCI: o.OCI, Platform: v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, Layers: layers})
			require.NoError(t, err)
			for _, attestations := range []bool{false, true} {
				index, err := launchtest.Index(launchtest.IndexOptions{OCI: o.OCI, Images: []v1.Image{other, img}, Attestations: attestations})
				require.NoError(t, err)
				raw, err := index.RawManifest()
				require.NoError(t, err)
				v, err := restore(t, string(raw), string(manifest), string(config))
				require.NoError(t, err)
				assert.Equal(t, digest.Of(manifest), v.ManifestDigest())
			}
		})
	}
}

// TestTamperedDocuments changes one thing at a time in documents whose digests are right: what is approved may still not
// be read in two ways.
func TestTamperedDocuments(t *testing.T) {
	t.Parallel()
	type docs struct{ index, manifest, config string }
	inManifest := func(old, new string) func(*testing.T, *docs) {
		return func(t *testing.T, d *docs) {
			require.Contains(t, d.manifest, old)
			d.manifest = strings.Replace(d.manifest, old, new, 1)
		}
	}
	inConfig := func(old, new string) func(*testing.T, *docs) {
		return func(t *testing.T, d *docs) {
			require.Contains(t, d.config, old)
			d.config = strings.Replace(d.config, old, new, 1)
			d.manifest = goodManifest(d.config)
		}
	}
	inIndex := func(old, new string) func(*testing.T, *docs) {
		return func(t *testing.T, d *docs) {
			d.index = goodIndex(d.manifest)
			require.Contains(t, d.index, old)
			d.index = strings.Replace(d.index, old, new, 1)
		}
	}
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":10,"digest":"sha256:` + sumA + `"}`
	for name, c := range map[string]struct {
		change func(*testing.T, *docs)
		kind   image.Kind
	}{
		"layers and manifests":               {inManifest(`"layers":`, `"manifests":[],"layers":`), image.Refused},
		"manifests and config":               {inIndex(`"manifests":`, `"config":{},"manifests":`), image.Refused},
		"manifests and layers":               {inIndex(`"manifests":`, `"layers":null,"manifests":`), image.Refused},
		"layers twice":                       {inManifest(`"layers":`, `"layers":[],"layers":`), image.Refused},
		"LAYERS too":                         {inManifest(`"layers":`, `"LAYERS":[],"layers":`), image.Refused},
		"layerſ too":                         {inManifest(`"layers":`, `"layer\u017f":[],"layers":`), image.Refused},
		"only LAYERS":                        {inManifest(`"layers":`, `"LAYERS":`), image.Refused},
		"digest and DIGEST":                  {inManifest(`"digest":"sha256:`+sumA, `"DIGEST":"sha256:`+sumB+`","digest":"sha256:`+sumA), image.Refused},
		"size twice":                         {inManifest(`"size":10`, `"size":10,"size":10`), image.Refused},
		"only Size":                          {inManifest(`"size":10`, `"Size":10`), image.Refused},
		"annotation twice":                   {inManifest(`{"b":"1","B":"2"}`, `{"b":"1","b":"2"}`), image.Refused},
		"unknown object with a key twice":    {inManifest(`"layers":`, `"x":{"y":[{"z":1,"Z":2}]},"layers":`), image.Refused},
		"schemaVersion 1":                    {inManifest(`"schemaVersion":2`, `"schemaVersion":1`), image.Refused},
		"no schemaVersion":                   {inManifest(`"schemaVersion":2,`, ``), image.Refused},
		"schemaVersion as text":              {inManifest(`"schemaVersion":2`, `"schemaVersion":"2"`), image.Refused},
		"schema 1 fields":                    {inManifest(`"layers":`, `"fsLayers":[],"layers":`), image.Refused},
		"calls itself an index":              {inManifest(`image.manifest.v1`, `image.index.v1`), image.Refused},
		"calls itself prettyjws":             {inManifest(`application/vnd.oci.image.manifest.v1+json`, `application/vnd.docker.distribution.manifest.v1+prettyjws`), image.Refused},
		"trailing document":                  {func(_ *testing.T, d *docs) { d.manifest += `{}` }, image.Refused},
		"trailing text":                      {func(_ *testing.T, d *docs) { d.manifest += `x` }, image.Refused},
		"cut":                                {func(_ *testing.T, d *docs) { d.manifest = d.manifest[:len(d.manifest)-1] }, image.Refused},
		"empty object":                       {func(_ *testing.T, d *docs) { d.manifest = `{}` }, image.Refused},
		"null":                               {func(_ *testing.T, d *docs) { d.manifest = `null` }, image.Refused},
		"array":                              {func(_ *testing.T, d *docs) { d.manifest = `[]` }, image.Refused},
		"not UTF-8":                          {inManifest(`"layers":`, "\"x\":\"\xff\",\"layers\":"), image.Refused},
		"deep":                               {inManifest(`"layers":`, `"x":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`,"layers":`), image.Refused},
		"over 4 MiB":                         {inManifest(`"layers":`, `"x":"`+strings.Repeat("x", image.MaxManifest)+`","layers":`), image.Mismatch},
		"no layers":                          {inManifest(`"layers":[`+layer+`,`, `"layers":[],"x":[`), image.Mismatch},
		"layers is null":                     {inManifest(`"layers":[`+layer+`,`, `"layers":null,"x":[`), image.Mismatch},
		"no config":                          {inManifest(`"config":`, `"x":`), image.Refused},
		"config is null":                     {inManifest(`"config":{`, `"config":null,"x":{`), image.Refused},
		"config of something else":           {inManifest(`vnd.oci.image.config.v1+json`, `vnd.cncf.helm.config.v1+json`), image.Refused},
		"config over 4 MiB":                  {inManifest(fmt.Sprintf(`"size":%d`, len(goodConfig)), `"size":5000000`), image.Refused},
		"config of another size":             {inManifest(fmt.Sprintf(`"size":%d`, len(goodConfig)), fmt.Sprintf(`"size":%d`, len(goodConfig)+1)), image.Mismatch},
		"layer with urls":                    {inManifest(`"size":10`, `"size":10,"urls":["https://elsewhere.test/x"]`), 0},
		"layer with no urls":                 {inManifest(`"size":10`, `"size":10,"urls":[]`), 0},
		"layer with URLS":                    {inManifest(`"size":10`, `"size":10,"URLS":["https://elsewhere.test/x"]`), image.Refused},
		"foreign layer":                      {inManifest(`application/vnd.oci.image.layer.v1.tar+gzip`, `application/vnd.docker.image.rootfs.foreign.diff.tar.gzip`), 0},
		"layer of an unknown kind":           {inManifest(`tar+gzip`, `tar+rar`), image.Refused},
		"encrypted layer":                    {inManifest(`tar+gzip`, `tar+gzip+encrypted`), image.Refused},
		"layer with other data":              {inManifest(`"size":10`, `"size":10,"data":"AAAA"`), image.Mismatch},
		"layer of size 0":                    {inManifest(`"size":10`, `"size":0`), image.Refused},
		"layer of negative size":             {inManifest(`"size":10`, `"size":-1`), image.Refused},
		"layer without size":                 {inManifest(`"size":10,`, ``), image.Refused},
		"layer of absurd size":               {inManifest(`"size":10`, `"size":9223372036854775807`), image.Refused},
		"layer of a size over int64":         {inManifest(`"size":10`, `"size":9223372036854775808`), image.Refused},
		"layer of a broken size":             {inManifest(`"size":10`, `"size":1e1`), image.Refused},
		"layer with sha512":                  {inManifest(`sha256:`+sumA, `sha512:`+sumA+sumA), image.Refused},
		"layer digest in capitals":           {inManifest(sumA, strings.ToUpper(sumA)), image.Refused},
		"layer digest that is a path":        {inManifest(`sha256:`+sumA, `sha256:../../../../x`), image.Refused},
		"more layers than diff_ids":          {inManifest(`"layers":[`, `"layers":[`+layer+`,`), image.Mismatch},
		"fewer layers than diff_ids":         {inManifest(layer+`,`, ``), image.Mismatch},
		"too many layers":                    {inManifest(layer+`,`, strings.Repeat(layer+`,`, 1001)), image.Refused},
		"config of other bytes":              {func(_ *testing.T, d *docs) { d.config += " " }, image.Mismatch},
		"config with rootfs twice":           {inConfig(`"rootfs":`, `"rootfs":{},"rootfs":`), image.Refused},
		"config with RootFS too":             {inConfig(`"rootfs":`, `"RootFS":{},"rootfs":`), image.Refused},
		"config with only RootFS":            {inConfig(`"rootfs":`, `"RootFS":`), image.Refused},
		"config with diff_ids twice":         {inConfig(`"diff_ids":`, `"DIFF_IDS":[],"diff_ids":`), image.Refused},
		"config with Env twice":              {inConfig(`"Labels":`, `"Env":[],"env":[],"Labels":`), image.Refused},
		"config with another kind of rootfs": {inConfig(`"type":"layers"`, `"type":"squashfs"`), image.Refused},
		"config without rootfs":              {inConfig(`"rootfs":`, `"x":`), image.Refused},
		"config with a sha512 diffID":        {inConfig(`sha256:`+sumA, `sha512:`+sumA+sumA), image.Refused},
		"config with trailing data":          {inConfig(`"architecture"`, ` "architecture"`), 0}, // still good: only what follows is wrong
		"config with a trailing document":    {func(_ *testing.T, d *docs) { d.config += `{}`; d.manifest = goodManifest(d.config) }, image.Refused},
		"config that is no JSON":             {func(_ *testing.T, d *docs) { d.config = `x`; d.manifest = goodManifest(d.config) }, image.Refused},
		"config of a wrong type":             {inConfig(`"os":"linux"`, `"os":7`), image.Refused},
		"config for another architecture":    {inConfig(`amd64`, `arm64`), image.Refused},
		"config for another system":          {inConfig(`linux`, `windows`), image.Refused},
		"index for nobody":                   {inIndex(`"amd64"`, `"s390x"`), image.Refused},
		"index with the platform twice":      {inIndex(`"arm64","variant":"v8"`, `"amd64"`), 0},
		"index with the platform as variant": {inIndex(`"arm64","variant":"v8"`, `"amd64","variant":"v1"`), 0},
		"index with a newer variant too":     {inIndex(`"arm64","variant":"v8"`, `"amd64","variant":"v3"`), 0},
		"index with an attestation for it":   {inIndex(`{"os":"unknown","architecture":"unknown"}`, `{"os":"linux","architecture":"amd64"}`), 0},
		"index without platforms":            {inIndex(`"platform":`, `"x":`), 0},
		"index with Platform too":            {inIndex(`"platform":`, `"Platform":{},"platform":`), image.Refused},
		"index with os twice":                {inIndex(`"os":"linux"`, `"OS":"windows","os":"linux"`), image.Refused},
		"index that calls itself a manifest": {inIndex(`image.index.v1`, `image.manifest.v1`), image.Refused},
		"index with urls":                    {inIndex(`"size":`, `"urls":["https://elsewhere.test"],"size":`), 0},
		"index of too many entries": {func(t *testing.T, d *docs) {
			d.index = goodIndex(d.manifest)
			open := strings.Index(d.index, `"manifests":[`) + len(`"manifests":[`)
			entry := d.index[open : strings.Index(d.index, `}}`)+2]
			d.index = d.index[:open] + strings.Repeat(entry+",", 1000) + d.index[open:]
		}, image.Refused},
		"index with nothing": {func(_ *testing.T, d *docs) { d.index = `{"schemaVersion":2,"manifests":[]}` }, image.Refused},
		"index with an absurd manifest": {func(_ *testing.T, d *docs) {
			d.index = strings.Replace(goodIndex(d.manifest), fmt.Sprintf(`"size":%d`, len(d.manifest)), `"size":5000000`, 1)
		}, image.Refused},
		"index with a manifest of another size": {func(_ *testing.T, d *docs) {
			d.index = strings.Replace(goodIndex(d.manifest), fmt.Sprintf(`"size":%d`, len(d.manifest)), `"size":5`, 1)
		}, image.Mismatch},
		"index with a manifest of another type": {func(t *testing.T, d *docs) {
			inIndex(`oci.image.manifest.v1+json`, `docker.distribution.manifest.v2+json`)(t, d)
		}, image.Mismatch},
		"index of an index that it calls a manifest": {func(_ *testing.T, d *docs) {
			d.manifest = goodIndex(d.manifest)
			d.index = goodIndex(d.manifest)
		}, image.Mismatch},
		"index that is right for a config that isn't": {func(t *testing.T, d *docs) {
			inConfig(`amd64`, `arm64`)(t, d)
			d.index = goodIndex(d.manifest)
		}, image.Mismatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := docs{manifest: goodManifest(goodConfig), config: goodConfig}
			c.change(t, &d)
			v, err := restore(t, d.index, d.manifest, d.config)
			if c.kind == 0 {
				require.NoError(t, err)
				return
			}
			requireError(t, err, c.kind)
			assert.Nil(t, v, "nothing is proved")
			assert.NotContains(t, err.Error(), "\n")
			assert.Less(t, len(err.Error()), 500, "length of the message")
			e := new(image.Error)
			require.ErrorAs(t, err, &e)
			if c.kind == image.Mismatch {
				assert.Equal(t, exit.Mismatch, exit.Of(err))
			} else {
				assert.Equal(t, exit.Refused, exit.Of(err))
				assert.NotContains(t, strings.Join(e.Hints(), "\n"), "don't use this source", "nobody lied")
			}
		})
	}
}

// TestRestoreBelievesNothing gives Restore the bytes of something else.
func TestRestoreBelievesNothing(t *testing.T) {
	t.Parallel()
	manifest := goodManifest(goodConfig)
	v, err := restore(t, "", manifest, goodConfig)
	require.NoError(t, err)
	good := v.Kept()
	for name, kept := range map[string]image.Kept{
		"nothing":        {},
		"no config":      {Manifest: good.Manifest},
		"other manifest": {Manifest: append([]byte(" "), good.Manifest...), Config: good.Config},
		"other config":   {Manifest: good.Manifest, Config: append([]byte(" "), good.Config...)},
		"gigabytes":      {Manifest: bytes.Repeat([]byte(" "), image.MaxManifest+1), Config: good.Config},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := image.Restore(v.Reference(), platform(), kept)
			requireError(t, err, image.Mismatch)
		})
	}
	_, err = image.Restore(v.Reference(), platform(), image.Kept{Index: good.Config, Config: good.Manifest})
	assert.NoError(t, err, "which is which is proved by digest")

	sha512, err := name.NewDigest("registry.test/a/b@sha512:" + sumA + sumA)
	require.NoError(t, err)
	_, err = image.Restore(sha512, platform(), good)
	requireError(t, err, image.Refused)
}

// TestZeroVerified asserts that nothing can be had from a value that nobody proved.
func TestZeroVerified(t *testing.T) {
	t.Parallel()
	var v image.Verified
	assert.False(t, v.Valid())
	assert.False(t, (*image.Verified)(nil).Valid())
	assert.Nil(t, v.ConfigFile())
	assert.Empty(t, v.Layers())
	stream := v.Open(t.Context(), nil, nil)
	_, err := stream.Next()
	require.Error(t, err)
	_, err = stream.NextPlain()
	require.Error(t, err)
	assert.NoError(t, stream.Close())
}

// FuzzDocuments feeds approved documents of any content. Whatever is accepted means the same to another reader.
func FuzzDocuments(f *testing.F) {
	f.Add([]byte(""), []byte(goodManifest(goodConfig)), []byte(goodConfig))
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		v, err := restore(t, string(index), string(manifest), string(config))
		if err != nil {
			requireKind(t, err)
			return
		}
		parsed, err := v1.ParseManifest(bytes.NewReader(v.Manifest()))
		require.NoError(t, err)
		require.Len(t, v.Layers(), len(parsed.Layers))
		for i, l := range v.Layers() {
			require.Equal(t, parsed.Layers[i].Digest, image.Hash(l.Digest))
			require.Equal(t, parsed.Layers[i].Size, l.Size)
			require.Positive(t, l.Size)
			if len(parsed.Layers[i].URLs) > 0 {
				require.True(t, l.MediaType.IsDistributable(), "content from elsewhere isn't fetched")
			}
			require.Equal(t, v.ConfigFile().RootFS.DiffIDs[i], image.Hash(l.DiffID))
		}
		require.Equal(t, parsed.Config.Digest, image.Hash(v.ConfigDigest()))
		require.Equal(t, digest.Of(v.Config()), v.ConfigDigest())
		require.Equal(t, digest.Of(v.Manifest()), v.ManifestDigest())
		if v.Index() != nil {
			require.Equal(t, digest.Of(v.Index()), v.Digest())
		} else {
			require.Equal(t, v.ManifestDigest(), v.Digest())
		}
		again, err := image.Restore(v.Reference(), platform(), v.Kept())
		require.NoError(t, err)
		require.Equal(t, v.Layers(), again.Layers())
		var generic map[string]any
		require.NoError(t, json.Unmarshal(v.Manifest(), &generic))
		require.NotContains(t, generic, "manifests")
	})
}

// requireKind accepts any of this package's refusals.
func requireKind(t *testing.T, err error) {
	t.Helper()
	e := new(image.Error)
	require.ErrorAs(t, err, &e)
	require.Contains(t, []image.Kind{image.Refused, image.Mismatch}, e.Kind)
}
