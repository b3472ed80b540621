package exit_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/exit"
)

// list is an error of several lines.
type list []string

func (l list) Error() string      { return "list\nof " + fmt.Sprint(len(l)) }
func (l list) Reasons() []string  { return append([]string(nil), l...) }
func (l list) Attachment() string { return "copy\nme" }

func TestTell(t *testing.T) {
	t.Parallel()
	one, two := errors.New("one"), errors.New("two")
	forged := errors.New("a\nhint: b\n\nc")
	for name, c := range map[string]struct {
		err        error
		reasons    []string
		attachment string
	}{
		"one":                    {one, []string{"one"}, ""},
		"line breaks of others":  {forged, []string{"a\nhint: b\n\nc"}, ""},
		"joined":                 {errors.Join(one, two), []string{"one", "two"}, ""},
		"joined with breaks":     {errors.Join(forged, two), []string{"a\nhint: b\n\nc", "two"}, ""},
		"joined, with a code":    {&exit.Error{Err: errors.Join(one, two)}, []string{"one", "two"}, ""},
		"joined, in a step":      {fmt.Errorf("step: %w", errors.Join(one, two)), []string{"step: one", "two"}, ""},
		"two in one sentence":    {fmt.Errorf("%w; then %w", one, two), []string{"one; then two"}, ""},
		"a list":                 {list{"x", "y"}, []string{"x", "y"}, "copy\nme"},
		"a list in a step":       {fmt.Errorf("step: %w!", list{"x", "y"}), []string{"step: x", "y!"}, "copy\nme"},
		"a list, joined":         {errors.Join(errors.Join(one), two), []string{"one", "two"}, ""},
		"a list without reasons": {list{}, []string{"list\nof 0"}, ""},
	} {
		reasons, attachment := exit.Tell(c.err)
		assert.Equal(t, c.reasons, reasons, name)
		assert.Equal(t, c.attachment, attachment, name)
	}
}
