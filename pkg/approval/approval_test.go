package approval_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest/growth"
)

// hash returns a digest of one repeated digit.
func hash(digit string) digest.Digest {
	d, err := digest.Parse("sha256:" + strings.Repeat(digit, 64))
	if err != nil {
		panic(err)
	}
	return d
}

// document returns a list with these entries.
func document(entries ...string) string {
	text, err := json.Marshal(map[string][]string{"approved_hashes": entries})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func parse(t *testing.T, text string) approval.List {
	t.Helper()
	list, err := approval.Parse([]byte(text))
	require.NoError(t, err)
	return list
}

// TestGrowth feeds the reader the worst kinds of lists, as large as they may be.
func TestGrowth(t *testing.T) {
	const part = growth.Large / approval.MaxSize
	read := func(data []byte) { _, _ = approval.Parse(data) }
	for _, around := range []string{"%s", `{"approved_hashes":%s}`} {
		growth.Check(t, 64<<20/part, func(size int) map[string]string {
			return growth.JSON(around)(size / part)
		}, read)
	}
	growth.Check(t, 64<<20/part, func(size int) map[string]string {
		last := `"` + hash("a").String() + `"]}`
		return map[string]string{
			"entries": growth.FillCounting(size/part, `{"approved_hashes":[`, `"sha256:%064x",`, last),
		}
	}, read)
}

func TestParse(t *testing.T) {
	t.Parallel()
	a, b, c := hash("a"), hash("b"), hash("c")
	quoted := func(h digest.Digest) string { return `"` + h.String() + `"` }
	many := make([]string, 0, 880)
	for i := range cap(many) {
		many = append(many, fmt.Sprintf("sha256:%064x", i))
	}
	for name, test := range map[string]struct {
		text string
		want []digest.Digest
	}{
		"one":                       {document(a.String()), []digest.Digest{a}},
		"newest first":              {document(c.String(), a.String(), b.String()), []digest.Digest{c, a, b}},
		"duplicates once, in order": {document(b.String(), a.String(), b.String(), c.String(), a.String()), []digest.Digest{b, a, c}},
		"white space all over":      {" \t\r\n{ \"approved_hashes\" :\r\n[ " + quoted(a) + " ,\n" + quoted(b) + " ] } \n", []digest.Digest{a, b}},
		"other members":             {`{"version":2,"x":{"approved_hashes":["` + "no" + `"]},"approved_hashes":[` + quoted(a) + `],"y":[[null]]}`, []digest.Digest{a}},
		"the name, escaped":         {`{"approved\u005fhashes":[` + quoted(a) + `]}`, []digest.Digest{a}},
		"an entry, escaped":         {`{"approved_hashes":["\u0073ha256:` + a.Hex() + `"]}`, []digest.Digest{a}},
		"as many as fit":            {document(many...), nil},
		"nesting somewhere else":    {`{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `,"approved_hashes":[` + quoted(a) + `]}`, []digest.Digest{a}},
		"up to the last byte":       {document(a.String()) + strings.Repeat(" ", approval.MaxSize-len(document(a.String()))), []digest.Digest{a}},
		"as the node pretty-prints": {"{\n  \"approved_hashes\": [\n    " + quoted(a) + "\n  ]\n}", []digest.Digest{a}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list := parse(t, test.text)
			if test.want == nil {
				assert.Len(t, list.Digests(), len(many))
				return
			}
			assert.Equal(t, test.want, list.Digests())
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good := hash("a").String()
	manyBad := make([]string, 1001)
	for name, test := range map[string]struct{ text, says string }{
		"an empty file":               {"", "it is empty"},
		"only white space":            {" \n", "it is empty"},
		"cut off":                     {document(good)[:len(document(good))-1], "not exactly one JSON document"},
		"two documents":               {document(good) + document(good), "not exactly one JSON document"},
		"something behind":            {document(good) + " x", "not exactly one JSON document"},
		"NUL behind":                  {document(good) + "\x00", "not exactly one JSON document"},
		"NUL inside":                  {strings.Replace(document(good), "aaa", "a\x00a", 1), "not exactly one JSON document"},
		"a BOM":                       {"\ufeff" + document(good), "byte order mark"},
		"UTF-16":                      {"\xff\xfe{\x00}\x00", "not UTF-8"},
		"invalid UTF-8":               {`{"x":"` + "\xff" + `","approved_hashes":["` + good + `"]}`, "not UTF-8"},
		"a comment":                   {"// x\n" + document(good), "not exactly one JSON document"},
		"a trailing comma":            {`{"approved_hashes":["` + good + `",]}`, "not exactly one JSON document"},
		"single quotes":               {strings.ReplaceAll(document(good), `"`, `'`), "not exactly one JSON document"},
		"the old format, one digest":  {good, "not exactly one JSON document"},
		"too deep":                    {`{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, "not exactly one JSON document"},
		"an array":                    {`["` + good + `"]`, "not a JSON object"},
		"a string":                    {`"` + good + `"`, "not a JSON object"},
		"null":                        {"null", "not a JSON object"},
		"an empty object":             {"{}", "approved_hashes is missing"},
		"another letter case":         {`{"Approved_Hashes":["` + good + `"]}`, "another letter case"},
		"a folded letter":             {`{"approved_ha\u017fhes":["` + good + `"]}`, "another letter case"},
		"another letter case beside":  {`{"Approved_Hashes":7,"approved_hashes":["` + good + `"]}`, "another letter case"},
		"a folded letter beside":      {`{"approved_ha\u017fhes":7,"approved_hashes":["` + good + `"]}`, "another letter case"},
		"another member twice":        {`{"x":1,"approved_hashes":["` + good + `"],"x":2}`, "occurs twice"},
		"deep somewhere else":         {`{"x":` + strings.Repeat("[", 900) + strings.Repeat("]", 900) + `,"approved_hashes":["` + good + `"]}`, "nested"},
		"a space in the name":         {`{"approved_hashes ":["` + good + `"]}`, "approved_hashes is missing"},
		"one level down":              {`{"x":` + document(good) + `}`, "approved_hashes is missing"},
		"twice":                       {`{"approved_hashes":["` + good + `"],"approved_hashes":["` + good + `"]}`, "occurs twice"},
		"twice, escaped":              {`{"approved_hashes":["` + good + `"],"approved_hashe\u0073":["` + good + `"]}`, "occurs twice"},
		"twice, first null":           {`{"approved_hashes":null,"approved_hashes":["` + good + `"]}`, "occurs twice"},
		"the value null":              {`{"approved_hashes":null}`, "is not a JSON array"},
		"no entries":                  {`{"approved_hashes":[]}`, "approved_hashes has no entry"},
		"too many entries":            {document(manyBad...), "more than 1000 elements"},
		"a string for an array":       {`{"approved_hashes":"` + good + `"}`, "is not a JSON array"},
		"an object for an array":      {`{"approved_hashes":{"0":"` + good + `"}}`, "is not a JSON array"},
		"a number among the entries":  {`{"approved_hashes":["` + good + `",1]}`, "entry 2: "},
		"an array among the entries":  {`{"approved_hashes":["` + good + `",["` + good + `"]]}`, "entry 2: "},
		"null among the entries":      {`{"approved_hashes":["` + good + `",null]}`, `entry 2: null is not a string`},
		"an empty entry":              {document(good, ""), "entry 2"},
		"capitals":                    {document(good, "sha256:"+strings.Repeat("A", 64)), "entry 2"},
		"no prefix":                   {document(good, hash("b").Hex()), "entry 2"},
		"white space":                 {document(good, good+" "), "entry 2"},
		"too short":                   {document(good, good[:70]), "entry 2"},
		"sha512":                      {document(good, "sha512:"+strings.Repeat("a", 128)), "entry 2"},
		"half of a surrogate pair":    {`{"approved_hashes":["\ud800"]}`, "half a surrogate pair"},
		"one byte too large":          {document(good) + strings.Repeat(" ", approval.MaxSize+1-len(document(good))), "larger than 65536 bytes"},
		"a bad one behind a good one": {document(good, good, "x"), "entry 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list, err := approval.Parse([]byte(test.text))
			require.Error(t, err)
			assert.Empty(t, list.Digests(), "an error comes without a list")
			assert.Contains(t, err.Error(), test.says)
			assert.Less(t, len(err.Error()), 1000)
			var typed *approval.Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, exit.Config, exit.Of(err))
			assert.NotEmpty(t, exit.Hints(err))

			// And it never turns into the default.
			decision, err := approval.Select(&list, nil, hash("d"))
			require.Error(t, err)
			assert.Zero(t, decision)
		})
	}
}

func TestDigestsAreACopy(t *testing.T) {
	t.Parallel()
	list := parse(t, document(hash("a").String(), hash("b").String()))
	list.Digests()[0] = hash("c")
	assert.Equal(t, []digest.Digest{hash("a"), hash("b")}, list.Digests())
}

// TestSelect goes through every combination of what there can be and holds it against the contract's three sentences.
func TestSelect(t *testing.T) {
	t.Parallel()
	a, b, c, d := hash("a"), hash("b"), hash("c"), hash("d")
	lists := map[string]*approval.List{"no file": nil, "never read": {}}
	for _, entries := range [][]digest.Digest{{a}, {b}, {a, b}, {b, a}, {a, b, c}, {c, b, a}, {d}, {d, a}} {
		var texts []string
		for _, h := range entries {
			texts = append(texts, h.String())
		}
		list := parse(t, document(texts...))
		lists[fmt.Sprint(entries)] = &list
	}
	overrides := map[string]*digest.Digest{"no override": nil, "a": &a, "b": &b, "c": &c, "d": &d, "a zero override": {}}
	defaults := map[string]digest.Digest{"d": d, "a": a, "no default": {}}

	for listName, list := range lists {
		for overrideName, override := range overrides {
			for defaultName, def := range defaults {
				t.Run(listName+", "+overrideName+", default "+defaultName, func(t *testing.T) {
					t.Parallel()
					var want approval.Decision
					code := exit.OK
					switch {
					case list != nil && len(list.Digests()) == 0:
						code = exit.Internal
					case list == nil && def.IsZero():
						code = exit.Config
					case list == nil:
						want = approval.Decision{Digest: def, Reason: approval.Default}
					case override == nil:
						want = approval.Decision{Digest: list.Digests()[0], Reason: approval.Newest, Older: list.Digests()[1:]}
					case slices.Contains(list.Digests(), *override):
						want = approval.Decision{Digest: *override, Reason: approval.Override}
					default:
						code = exit.Config
					}
					got, err := approval.Select(list, override, def)
					assert.Equal(t, want, got)
					assert.Equal(t, code, exit.Of(err), "%v", err)
				})
			}
		}
	}
}

func TestSelectSaysWhatIsNotApproved(t *testing.T) {
	t.Parallel()
	list, override := parse(t, document(hash("a").String(), hash("b").String())), hash("c")
	_, err := approval.Select(&list, &override, hash("c"))
	var typed *approval.Error
	require.ErrorAs(t, err, &typed, "the default digest is no approval either")
	assert.Contains(t, err.Error(), override.String())
	assert.NotEmpty(t, exit.Hints(err))
}

// TestStay: what is measured stays if it is the default without a list, or in the list, and for no other reason.
func TestStay(t *testing.T) {
	t.Parallel()
	a, b, c := hash("a"), hash("b"), hash("c")
	list := parse(t, document(a.String(), b.String()))
	for _, s := range []struct {
		measured, def digest.Digest
		list          *approval.List
		stays         bool
	}{
		{a, a, nil, true}, {b, a, nil, false},
		{a, c, &list, true}, {b, c, &list, true},
		{digest.Digest{}, digest.Digest{}, nil, false}, {c, c, &list, false}, {c, a, &list, false},
	} {
		got, stays := approval.Stay(s.measured, s.list, s.def)
		assert.Equal(t, s.stays, stays, "%+v", s)
		if stays {
			assert.Equal(t, approval.Decision{Digest: s.measured, Reason: approval.Measured}, got)
		}
	}
}

func TestReasonsAreTheContracts(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "newest approved, override, default: no approved list, measured",
		fmt.Sprintf("%s, %s, %s, %s", approval.Newest, approval.Override, approval.Default, approval.Measured))
}

// FuzzParse holds the parser against encoding/json: what is accepted says under the exact name just what is returned.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := approval.Parse(data)
		if err != nil {
			require.Empty(t, list.Digests())
			require.Equal(t, exit.Config, exit.Of(err))
			require.Less(t, len(err.Error()), 1000)
			return
		}
		var members map[string]json.RawMessage // whose keys, unlike those of a struct, keep their letter case
		require.NoError(t, json.Unmarshal(data, &members))
		var entries []string
		require.NoError(t, json.Unmarshal(members["approved_hashes"], &entries))
		var want []digest.Digest
		for _, entry := range entries {
			h, err := digest.Parse(entry)
			require.NoError(t, err)
			require.Equal(t, entry, h.String())
			if !slices.Contains(want, h) {
				want = append(want, h)
			}
		}
		require.Equal(t, want, list.Digests())

		var again []string
		for _, h := range list.Digests() {
			again = append(again, h.String())
		}
		require.Equal(t, list, parse(t, document(again...)), "it survives being written")

		decision, err := approval.Select(&list, nil, digest.Digest{})
		if want[0].IsZero() {
			require.Equal(t, exit.Config, exit.Of(err))
			return
		}
		require.NoError(t, err)
		require.NotContains(t, decision.Older, digest.Digest{})
		older := slices.DeleteFunc(list.Digests()[1:], digest.Digest.IsZero)
		require.Equal(t, approval.Decision{Digest: want[0], Reason: approval.Newest, Older: older}, decision)
	})
}

func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"valid", "duplicates", "letter-case", "twice", "two-documents", "other-members", "null", "bom", "escaped"} {
		_, err := os.Stat(filepath.Join("testdata", "fuzz", "FuzzParse", name))
		assert.NoError(t, err)
	}
}
