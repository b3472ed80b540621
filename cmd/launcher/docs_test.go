package main_test

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/fleet"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/rtmr"
)

var update = flag.Bool("update", false, "write the generated parts of the documents anew")

// documents returns the texts of all documents by their paths, which begin at the repository's root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*.md", "testdata/*.md"} {
		paths, err := filepath.Glob(filepath.Join("..", "..", pattern))
		require.NoError(t, err)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			texts[strings.TrimPrefix(filepath.ToSlash(path), "../../")] = string(text)
		}
	}
	require.Contains(t, texts, "README.md")
	require.Contains(t, texts, "docs/verify.md")
	return texts
}

// TestDocs holds the generated parts of the documents to the tables and the programs that they come from.
func TestDocs(t *testing.T) {
	sections := main.Generated()
	shown := sessions(t)
	for name, content := range shown {
		sections[name] = content
	}
	sections["verify short"] = abridged(t, shown["verify"])
	deployment, err := os.ReadFile(filepath.Join("..", "..", "examples", "compose.yaml"))
	require.NoError(t, err)
	sections["compose"] = "```yaml\n" + string(deployment) + "```\n"
	example, err := os.ReadFile(filepath.Join("..", "..", "testdata", "status", "status.json"))
	require.NoError(t, err)
	sections["status"] = "```json\n" + string(example) + "```\n"
	texts := documents(t)
	found := map[string]int{}
	for path, old := range texts {
		text := old
		for name, content := range sections {
			if strings.Contains(text, marker("begin", name)) {
				found[name]++
				text = replaceSection(t, text, name, content)
			}
		}
		if *update {
			require.NoError(t, os.WriteFile(filepath.Join("..", "..", path), []byte(text), 0o644))
			continue
		}
		assert.Equal(t, text, old, "%s is out of date: run make docs", path)
	}
	for name := range sections {
		assert.Equal(t, 1, found[name], "documents with the section %q", name)
	}
}

// abridged is a session in ten lines or so: how it begins, what runs, and how it ends.
func abridged(t *testing.T, session string) string {
	t.Helper()
	lines := strings.SplitAfter(session, "\n")
	short := slices.Clone(lines[:5])
	short = append(short, "…\n")
	for _, line := range lines[5:] {
		for _, begin := range []string{"image ", "digest ", "reason ", "run would ", "$ echo"} {
			if strings.HasPrefix(line, begin) {
				short = append(short, line)
			}
		}
	}
	require.Len(t, short, 11, "the lines of verify that README shows")
	return strings.Join(append(short, lines[len(lines)-3:]...), "")
}

func marker(which, name string) string { return "<!-- " + which + " " + name + " -->\n" }

// TestDocsManual holds the manual pages to the commands.
func TestDocsManual(t *testing.T) {
	dir := filepath.Join("..", "..", "docs", "man")
	pages := main.Manuals()
	if *update {
		require.NoError(t, os.RemoveAll(dir))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		for name, page := range pages {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(page), 0o644))
		}
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, len(pages), "docs/man is out of date: run make docs")
	for name, page := range pages {
		written, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, page, string(written), "%s is out of date: run make docs", name)
	}
}

// replaceSection puts content between the markers of the section name.
func replaceSection(t *testing.T, text, name, content string) string {
	before, rest, _ := strings.Cut(text, marker("begin", name))
	_, after, ok := strings.Cut(rest, marker("end", name))
	require.True(t, ok, "section %q has no end", name)
	return before + marker("begin", name) + content + marker("end", name) + after
}

// TestLinks looks that whatever a document links to is there, and that README leads to all of them
// and can be read in one go.
func TestLinks(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	assert.LessOrEqual(t, strings.Count(texts["README.md"], "\n"), 150, "lines of README.md")
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	links := 0
	for path, text := range texts {
		if strings.HasPrefix(path, "docs/") {
			assert.Contains(t, texts["README.md"], "]("+path+")", "README links to every document")
		}
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			file := path
			if target != "" {
				file = filepath.ToSlash(filepath.Join(filepath.Dir(path), target))
			}
			_, err := os.Stat(filepath.Join("..", "..", file))
			if !assert.NoError(t, err, "%s links to %s", path, match[1]) || anchor == "" {
				continue
			}
			assert.Contains(t, anchors(texts[file]), anchor, "%s links to %s", path, match[1])
		}
	}
	assert.Greater(t, links, 20)
}

// anchors are the names under which the headings of a document can be linked to.
func anchors(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			name := strings.ToLower(strings.TrimSpace(title))
			name = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(name, "")
			names = append(names, strings.ReplaceAll(name, " ", "-"))
		}
	}
	return names
}

// TestCommandsInDocuments looks that each command that a document shows is one: the launcher's with its flags, and make's.
func TestCommandsInDocuments(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	require.NoError(t, err)
	inText := regexp.MustCompile("`(launcher [a-z0-9]+[^`]*|make [a-z-]+[^`]*)`")
	shown := regexp.MustCompile(`(?m)^\$ ((?:launcher|make) .*)$`)
	count := 0
	for path, text := range documents(t) {
		if path == "CHANGELOG.md" {
			continue // tells of what was, too
		}
		var commands []string
		for _, match := range append(inText.FindAllStringSubmatch(text, -1), shown.FindAllStringSubmatch(text, -1)...) {
			for _, command := range strings.Split(match[1], "&&") {
				words, _, _ := strings.Cut(command, " # ")
				commands = append(commands, strings.TrimSpace(words))
			}
		}
		for _, command := range commands {
			count++
			words := strings.Fields(command)
			if words[0] == "make" {
				assert.Contains(t, string(makefile), "\n"+words[1]+":", "%s: %s", path, command)
				continue
			}
			help, _, code := run(t, nil, words[1], "--help")
			if !assert.Zero(t, code, "%s: %s", path, command) || !assert.Contains(t, help, "launcher "+words[1], "%s: %s", path, command) {
				continue
			}
			for _, word := range words[2:] {
				name, _, _ := strings.Cut(word, "=")
				if strings.HasPrefix(name, "-") {
					assert.Regexp(t, `(^|[\s,])`+regexp.QuoteMeta(name)+`\b`, help, "%s: %s", path, command)
				}
			}
		}
	}
	assert.Greater(t, count, 20)
}

// TestTheUnit looks that the systemd unit of the examples starts a launcher that would understand it.
func TestTheUnit(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile(filepath.Join("..", "..", "examples", "launcher.service"))
	require.NoError(t, err)
	var environ, command []string
	for line := range strings.Lines(string(unit)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "Environment":
			environ = append(environ, strings.Fields(value)...)
		case "ExecStart":
			command = strings.Fields(value)
		}
	}
	require.Len(t, environ, 5)
	require.Equal(t, "/usr/local/bin/launcher", command[0])
	// It gets as far as the config, which isn't here: no setting is missing, and none is wrong.
	report, _, code := run(t, environ, append([]string{"verify", "-o", "json", "--skip", "engine,registry,compose,agent,host"}, command[2:]...)...)
	assert.Equal(t, exit.Config, code)
	assert.NotContains(t, report, `"SET00`)
	assert.Contains(t, report, "/etc/launcher/user_config.toml")
}

// TestTheFormats looks that each member of what is printed or written as JSON is told of, in the
// section on it.
func TestTheFormats(t *testing.T) {
	t.Parallel()
	text := documents(t)["docs/formats.md"]
	results := main.Results()
	results["report.json"], results["What `verify`"] = launch.Report{}, preflight.Report{}
	for name, result := range results {
		section := ""
		for _, beginning := range []string{"\n| `launcher " + name + "` |", "\n`" + name + "`, ", "\n## " + name} {
			if _, after, found := strings.Cut(text, beginning); found {
				section, _, _ = strings.Cut(after, map[bool]string{true: "\n", false: "\n## "}[beginning[1] == '|'])
			}
		}
		require.NotEmpty(t, section, name)
		for _, member := range members(reflect.TypeOf(result)) {
			assert.Contains(t, section, "`"+member+"`", "docs/formats.md on %s", name)
		}
	}
	for _, member := range members(reflect.TypeFor[fleet.Answer]()) {
		assert.Contains(t, documents(t)["docs/status.md"], "`"+member+"`")
	}
}

// members are the names of those that a value has as JSON, and of what is in it.
func members(of reflect.Type) (names []string) {
	switch of.Kind() {
	case reflect.Pointer, reflect.Slice:
		return members(of.Elem())
	case reflect.Struct:
		for i := range of.NumField() {
			field := of.Field(i)
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
				names = append(append(names, name), members(field.Type)...)
			}
		}
	}
	return names
}

// TestTheNativeExample: it is the deployment with what measuring natively needs, and no more; and the
// hints give those very lines.
func TestTheNativeExample(t *testing.T) {
	t.Parallel()
	read := func(name string) []string {
		text, err := os.ReadFile(filepath.Join("..", "..", "examples", name))
		require.NoError(t, err)
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	native := read("compose-native.yaml")
	require.True(t, strings.HasPrefix(native[0], "# "))
	var more, plain []string
	for _, line := range native[1:] {
		if line = strings.Replace(line, "LAUNCHER_MEASURE=native, ", "", 1); slices.Contains(read("compose.yaml"), line) {
			plain = append(plain, line)
		} else {
			more = append(more, strings.TrimSpace(line))
		}
	}
	assert.Equal(t, read("compose.yaml"), plain)
	var hints []string
	for _, piece := range []rtmr.Piece{rtmr.NoRegisters, rtmr.NoRuntime} {
		_, line, _ := strings.Cut((&rtmr.NativeError{Piece: piece}).Hints()[0], "without :ro: ")
		hints = append(hints, line)
	}
	assert.Equal(t, hints, more)
}
