// Package growth holds readers of outside bytes to what the size of a document may cost.
package growth

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Large is the size of the documents that readers of outside bytes are held to.
const Large = 1 << 20

// Check feeds read the documents that worst makes, of Large bytes and of a quarter of that, or of a
// part of both under the race detector. It asserts that none allocates more than limit, and that the
// allocations grow about as fast as the documents. Allocations stand for time, too, which no test can
// assert. The test must not be parallel: they are those of the whole process.
func Check(
	t *testing.T, limit int64, worst func(size int) map[string]string, read func([]byte),
) {
	t.Helper()
	quarter := worst(checked / 4)
	for name, document := range worst(checked) {
		var small, large, most int64
		for range 3 { // what else runs allocates as well
			small, large = allocated(quarter[name], read), allocated(document, read)
			// Half as much again for buffers that grow by doubling, and what pools of buffers make
			// of it.
			if most = min(limit, 6*small+limit/2); large <= most {
				break
			}
		}
		assert.LessOrEqual(t, large, most, "%s: bytes allocated, %d for a quarter", name, small)
	}
}

func allocated(document string, read func([]byte)) int64 {
	data := []byte(document)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read(data)
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// Fill returns open, one as often as it fits, and end: of size bytes at most.
func Fill(size int, open, one, end string) string {
	return open + strings.Repeat(one, (size-len(open)-len(end))/len(one)) + end
}

// FillCounting is Fill for a format that is given the number of each repetition.
func FillCounting(size int, open, format, end string) string {
	var b strings.Builder
	b.WriteString(open)
	for i := 0; ; i++ {
		one := fmt.Sprintf(format, i)
		if b.Len()+len(one)+len(end) > size {
			return b.String() + end
		}
		b.WriteString(one)
	}
}

// JSON returns what makes a document of each kind that costs a reader of JSON most. Around is what
// stands around it, with %s in its place.
func JSON(around string) func(size int) map[string]string {
	before, after, _ := strings.Cut(around, "%s")
	return func(size int) map[string]string {
		fill := func(open, one, end string) string { return Fill(size, before+open, one, end+after) }
		count := func(open, format, end string) string {
			return FillCounting(size, before+open, format, end+after)
		}
		return map[string]string{
			"numbers":        fill("[0", ",0", "]"),
			"nulls":          fill("[0", ",null", "]"),
			"empty strings":  fill(`[""`, `,""`, "]"),
			"empty arrays":   fill("[[]", ",[]", "]"),
			"empty objects":  fill("[{}", ",{}", "]"),
			"small objects":  fill("[{}", `,{"":0}`, "]"),
			"nested arrays":  fill("[0", ","+strings.Repeat("[", 120)+strings.Repeat("]", 120), "]"),
			"nested objects": fill("[0", ","+strings.Repeat(`{"":`, 120)+"0"+strings.Repeat("}", 120), "]"),
			"deep":           fill("", "[", ""),
			"escapes":        fill(`"`, `\u0041`, `"`),
			"pairs":          fill(`"`, `\ud83d\ude00`, `"`),
			"controls":       fill(`"`, `\u0000`, `"`),
			"quotes":         fill(`"`, `\"`, `"`),
			"a long name":    fill(`{"`, "K", `":0}`),
			"escaped name":   fill(`{"`, `\u212a`, `":0}`),
			"names":          count(`{"":0`, `,"%x":0`, "}"),
			"equal names":    fill(`{"":0`, `,"":0`, "}"),
			"folded names":   count(`{"":0`, `,"\u212a%x":0`, "}"),
			"a long number":  fill("1", "7", "e-300"),
			"a long zero":    fill("0.", "0", "1"),
			"space":          fill("[", " ", "]"),
			"invalid UTF-8":  fill(`"`, "\xff", `"`),
			"NULs":           fill(`"`, "\x00", `"`),
		}
	}
}
