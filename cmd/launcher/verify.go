package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/sanitize"
)

type verifyOpts struct {
	program    *program
	output     output
	skip       groups
	offline    bool
	deep       bool
	appCompose string
	arch       string
	when       when
}

func (p *program) newVerifyCmd() *cobra.Command {
	o := &verifyOpts{program: p}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Would run succeed, and with what result? Changes nothing",
		Long: `Checks everything that run would come across, without stopping at an error, and ends with the exit code
that run would have ended with. It loads, writes, measures and starts nothing.

Where a launcher is already at work, as on a node that runs, the answer is about the next boot, whatever is measured
and running now; --for says otherwise.

Each finding has a code that never changes, says what was found and what to do. What can't be checked where
you are is left out with --skip; then only what was checked decides the exit code.`,
		Example: `  export PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:…
  launcher verify
  # on a laptop, about a machine of another architecture
  launcher verify --skip agent,engine,compose,host --arch arm64 \
      --config ./user_config --shared-dir ./shared
  launcher verify --app-compose ./app-compose.json -o json`,
		Args: noArguments,
		RunE: o.runVerify,
	}
	flags := cmd.Flags()
	flags.Var(&o.skip, "skip", "what to leave out, comma-separated: "+strings.Join(groupNames(), ", "))
	flags.BoolVar(&o.offline, "offline", false, "leave out what needs a network")
	flags.BoolVar(&o.deep, "deep", false, "also download and hash every layer, without loading it")
	flags.StringVar(&o.appCompose, "app-compose", "", "check this app-compose document, instead of the agent's, against the verifiers' rules")
	flags.StringVar(&o.arch, "arch", "", "architecture of the machine that is to boot, such as amd64 or arm64; default: this one's")
	_ = cmd.RegisterFlagCompletionFunc("arch", cobra.FixedCompletions([]string{"amd64", "arm64"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("skip", completeGroups)
	flags.Var(&o.when, "for", "which boot is asked about: now, boot (the next one); default: the next one where a launcher is at work")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{"now", "boot"}, cobra.ShellCompDirectiveNoFileComp))
	addOutput(cmd, &o.output)
	return cmd
}

func (o *verifyOpts) runVerify(cmd *cobra.Command, _ []string) error {
	p := o.program
	if o.offline && o.deep {
		return usageError(cmd, errors.New("--offline and --deep contradict each other"))
	}
	s, mistakes := p.read(cmd)
	options := preflight.Options{
		Settings: s.launch, Mistakes: parts(mistakes), Warnings: s.warnings,
		For: preflight.For(o.when), Skip: o.skip, Offline: o.offline, Deep: o.deep, AppCompose: o.appCompose, Arch: o.arch,
		Tuning: registry.Tuning{Sleep: p.sleep},
	}
	s.launch.Insecure, s.warnings = nil, nil // what the log would say is among the findings
	ctx, c, over := p.attend(cmd, s)
	options.Log = c.log
	report, err := preflight.Run(ctx, options)
	over()
	if err != nil {
		return err
	}
	if o.output == "json" {
		err = p.printJSON(report)
	} else {
		_, err = io.WriteString(p.stdout, reportText(report, p.colourful()))
	}
	switch {
	case err != nil:
		return err
	case report.ExitCode != exit.OK:
		return &exit.Error{Code: report.ExitCode, Err: verdict(report)}
	}
	return nil
}

// verdict says what an error in the report means. What no step of a boot comes across doesn't end
// one.
func verdict(r *preflight.Report) error {
	ends := slices.ContainsFunc(r.Checks, func(c preflight.Result) bool {
		return c.Status == preflight.Failed && c.Step != ""
	})
	if !ends {
		return fmt.Errorf("run would go on, and verify ends with exit code %d", r.ExitCode)
	}
	return fmt.Errorf("run would end with exit code %d", r.ExitCode)
}

// parts returns the single mistakes of an error that joins them.
func parts(err error) []error {
	if err == nil {
		return nil
	}
	var usage *exit.Error
	var joined interface{ Unwrap() []error }
	if errors.As(err, &usage) && errors.As(usage.Err, &joined) {
		return joined.Unwrap()
	}
	return []error{err}
}

// colourful reports whether what is printed on stdout may have colours: on a terminal, unless NO_COLOR is set to anything.
func (p *program) colourful() bool {
	f, isFile := p.stdout.(*os.File)
	return isFile && isTerminal(f) && !slices.ContainsFunc(p.environ, func(entry string) bool {
		name, value, _ := strings.Cut(entry, "=")
		return name == "NO_COLOR" && value != "" || name == "TERM" && value == "dumb"
	})
}

// when is the value of --for.
type when string

func (w *when) String() string { return string(*w) }
func (w *when) Type() string   { return "when" }
func (w *when) Set(s string) error {
	if s != string(preflight.ForNow) && s != string(preflight.ForBoot) {
		return fmt.Errorf("%.40q is neither now nor boot", s)
	}
	*w = when(s)
	return nil
}

// groups is the value of --skip.
type groups []preflight.Group

func (g *groups) String() string {
	names := make([]string, 0, len(*g))
	for _, group := range *g {
		names = append(names, string(group))
	}
	return strings.Join(names, ",")
}
func (g *groups) Type() string { return "group,…" }
func (g *groups) Set(s string) error {
	for name := range strings.SplitSeq(s, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(groupNames(), name) {
			return fmt.Errorf("%.40q is none of %s", name, strings.Join(groupNames(), ", "))
		}
		*g = append(*g, preflight.Group(name))
	}
	return nil
}

func groupNames() []string {
	var names []string
	for _, g := range preflight.Groups() {
		names = append(names, string(g))
	}
	return names
}

// completeGroups completes the last of the groups that are being typed.
func completeGroups(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	before := typed[:strings.LastIndexByte(typed, ',')+1]
	var words []string
	for _, name := range groupNames() {
		if !slices.Contains(strings.Split(before, ","), name) {
			words = append(words, before+name)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// Colours of a terminal.
const (
	red    = "31"
	yellow = "33"
	green  = "32"
	faint  = "2"
)

// reportText is the report for people, in lines of at most 80 columns. What is to be copied is broken only where it doesn't fit on any line.
func reportText(r *preflight.Report, colour bool) string {
	paint := func(code, s string) string {
		if !colour || strings.TrimSpace(s) == "" {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	var b strings.Builder
	if r.For == preflight.ForBoot {
		b.WriteString("The next boot, " + preflight.AsOfNow + ":\n")
	}
	for _, c := range r.Checks {
		word, shade := statusWord(c)
		head := fmt.Sprintf("%-4s  %-16s  ", word, c.Check)
		b.WriteString(paint(shade, head[:4]) + head[4:])
		c.Detail = sanitize.Line(c.Detail, sanitize.MaxLine)
		switch {
		case c.Status == preflight.Failed || c.Detail == "":
			b.WriteString("\n")
		case utf8.RuneCountInString(head+c.Detail) <= usualColumns:
			b.WriteString(c.Detail + "\n")
		default:
			b.WriteString("\n" + wrap(c.Detail, "      ", "      "))
		}
		for _, f := range c.Findings {
			b.WriteString(wrap(fmt.Sprintf("%s %s: %s", f.Code, f.Severity, f.Found), "      ", "      "))
			for _, fix := range f.Fix {
				b.WriteString(wrap("→ "+fix, "      ", "      "))
			}
		}
	}
	if w := r.WouldRun; w != nil {
		b.WriteString("\n" + wouldRunText(w))
	}
	shade := green
	if r.ExitCode != exit.OK {
		shade = red
	}
	b.WriteString("\n" + paint(shade, r.Summary) + "\n")
	text := strings.Split(b.String(), "\n")
	for i := range text {
		text[i] = strings.TrimRight(text[i], " ")
	}
	return strings.Join(text, "\n")
}

func statusWord(c preflight.Result) (word, shade string) {
	switch c.Status {
	case preflight.Failed:
		return "FAIL", red
	case preflight.Skipped:
		return "skip", faint
	case preflight.Unchecked:
		return "-   ", faint
	}
	if slices.ContainsFunc(c.Findings, func(f preflight.Finding) bool { return f.Severity == preflight.Warning }) {
		return "warn", yellow
	}
	return "ok  ", green
}

func wouldRunText(w *preflight.WouldRun) string {
	var b strings.Builder
	row := func(name, value string) { b.WriteString(wrap(value, fmt.Sprintf("%-8s", name), "        ")) }
	row("image", w.Reference)
	row("digest", w.Digest.String())
	row("reason", w.Reason)
	if w.ConfigDigest != nil {
		row("config", w.ConfigDigest.String())
	}
	if w.ImageID != nil {
		row("id", w.ImageID.String())
	}
	if w.SizeBytes != nil && w.BytesLeft != nil && w.Layers != nil {
		row("size", fmt.Sprintf("%s in %d layers, %s to download", preflight.Size(*w.SizeBytes), *w.Layers, preflight.Size(*w.BytesLeft)))
	}
	if w.Event != nil {
		row("event", w.Event.Name)
		row("payload", w.Event.Payload)
		row("hash", halves(w.Event.Digest))
	}
	if w.RTMR3 != nil {
		row("RTMR3", halves(*w.RTMR3))
	}
	return b.String()
}

// halves parts a SHA-384, which no line of 80 columns holds beside its name.
func halves(hex string) string { return hex[:len(hex)/2] + " " + hex[len(hex)/2:] }

// wrap is wrapTo any terminal.
func wrap(text, first, rest string) string { return wrapTo(usualColumns, text, first, rest) }

// wrapTo puts words on lines, the first one behind first and the others behind rest.
func wrapTo(width int, text, first, rest string) string {
	var b strings.Builder
	line, empty := first, true
	flush := func() {
		b.WriteString(line + "\n")
		line, empty = rest, true
	}
	for i, paragraph := range sanitize.Lines(text, sanitize.MaxLine) {
		if i > 0 {
			flush()
		}
		for _, word := range strings.Fields(paragraph) {
			for _, piece := range pieces(word, max(width-utf8.RuneCountInString(rest), 1)) {
				space := " "
				if empty {
					space = ""
				}
				if !empty && utf8.RuneCountInString(line+space+piece) > width {
					flush()
					space = ""
				}
				line, empty = line+space+piece, false
			}
		}
	}
	flush()
	return b.String()
}

// pieces cuts a word that no line can hold: before its digest, so that this stays in one piece, or else anywhere.
func pieces(word string, room int) []string {
	var cut []string
	for utf8.RuneCountInString(word) > room {
		at := strings.IndexByte(word, '@')
		if runes := []rune(word); at <= 0 || at > room {
			at = len(string(runes[:room]))
		}
		cut = append(cut, word[:at])
		word = word[at:]
	}
	return append(cut, word)
}
