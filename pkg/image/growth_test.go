package image_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest/growth"
)

// TestGrowth proves documents that hold the worst kinds of JSON, where they cost most.
func TestGrowth(t *testing.T) {
	config := func(document []byte) {
		_, _ = restore(t, "", goodManifest(string(document)), string(document))
	}
	manifest := func(document []byte) { _, _ = restore(t, "", string(document), goodConfig) }
	index := func(document []byte) {
		_, _ = restore(t, string(document), goodManifest(goodConfig), goodConfig)
	}
	good := goodManifest(goodConfig)
	for _, test := range []struct {
		document, at, member string
		read                 func([]byte)
	}{
		{goodConfig, `{`, "history", config},
		{goodConfig, `"config":{`, "Env", config},
		{good, `"layers":[{`, "annotations", manifest},
		{goodIndex(good), `"platform":{`, "os.features", index},
	} {
		around := strings.Replace(test.document, test.at, test.at+`"`+test.member+`":%s,`, 1)
		growth.Check(t, 128<<20, growth.JSON(around), test.read)
	}
	const descriptor = `,{"mediaType":"application/vnd.oci.image.%s","size":9,` +
		`"digest":"sha256:` + sumA + `"%s}`
	layer := fmt.Sprintf(descriptor, "layer.v1.tar", "")
	growth.Check(t, 64<<20, func(size int) map[string]string {
		return map[string]string{
			"layers": growth.Fill(size, strings.TrimSuffix(good, "]}"), layer, "]}"),
		}
	}, manifest)
	const platform = `,"platform":{"os":"linux","architecture":"%x"}`
	entry := fmt.Sprintf(descriptor, "manifest.v1+json", platform)
	growth.Check(t, 64<<20, func(size int) map[string]string {
		open := strings.TrimSuffix(goodIndex(good), "]}")
		return map[string]string{"entries": growth.FillCounting(size, open, entry, "]}")}
	}, index)
}

// TestDescribeDropsDocuments describes an index of as many images as are looked at, with configs of
// 256 KiB each.
func TestDescribeDropsDocuments(t *testing.T) {
	documents := func(i int) (manifest, config string) {
		long := fmt.Sprintf(`{"x":"%d%s",`, i, strings.Repeat("x", 256<<10))
		config = strings.Replace(goodConfig, `{`, long, 1)
		return goodManifest(config), config
	}
	indexOf := func(count int) []byte {
		var entries []string
		for i := range count {
			manifest, _ := documents(i)
			index := goodIndex(manifest)
			entry := index[strings.Index(index, `{"mediaType":"application/vnd.oci.image.manifest`):]
			entries = append(entries, entry[:strings.Index(entry, "}}")+2])
		}
		return []byte(`{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`)
	}
	ref, err := name.NewTag("registry.test/a/b:c")
	require.NoError(t, err)
	held := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const most = 100
	index := indexOf(most)
	before, asked := held(), 0
	described, err := image.Describe(ref, index, func(d image.Document) ([]byte, error) {
		manifest, config := documents(asked / 2)
		asked++
		if d.Config {
			return []byte(config), nil
		}
		return []byte(manifest), nil
	})
	require.NoError(t, err)
	assert.Less(t, held(), before+8<<20, "what was proved isn't kept")
	require.Len(t, described.Images, most)
	assert.Equal(t, "linux/amd64", described.Images[most-1].Platform.String())
	assert.EqualValues(t, 30, described.Images[0].Size)
	_, last := documents(most - 1)
	assert.Equal(t, digest.Of([]byte(last)), described.Images[most-1].ConfigDigest)

	_, err = image.Describe(ref, indexOf(most+1), func(image.Document) ([]byte, error) {
		assert.Fail(t, "a document is asked for")
		return nil, nil
	})
	var refused *image.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, image.Refused, refused.Kind)
	assert.Contains(t, err.Error(), "it names 101 images, at most 100 are looked at")
}
