package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/fleet"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/status"
)

const (
	// maxNodes and maxNodesFile bound a list of nodes.
	maxNodes, maxNodesFile = 10_000, 1 << 20
	// leastWatch is how soon nodes are asked again at the earliest.
	leastWatch = 5 * time.Second
	// statusColumns is the width of a node's line.
	statusColumns = 100
	// aboutNodes is what has to be known of every answer.
	aboutNodes = "all of it is the nodes' word over a channel that nobody authenticates; consistent: the event log " +
		"replays to the register beside it; said: nothing but the launcher's log speaks for it; nothing is attested without a verified quote"
)

type statusOpts struct {
	program *program
	output  output
	self    bool
	nodes   string
	watch   time.Duration
	expect  string
}

func (p *program) newStatusCmd() *cobra.Command {
	o := &statusOpts{program: p}
	cmd := &cobra.Command{
		Use:   "status NODE…",
		Short: "How nodes are, from outside: a line each, the worst first",
		Long: `Reads what the launchers of nodes last said in their logs, and the event logs that the nodes'
agents show, and prints a line for each node, the worst first. A node is the URL of its agent's
outside port, such as http://host:8090, or a file with its launcher's log; - is standard input.

All of it is the node's word over a channel that nobody authenticates. A node is consistent where
its event log replays to the register beside it and names the image that its launcher names;
otherwise it is only said. Nothing is attested without a verified quote.

Exits with the worst node's code, in this order: 8, 9, 6, 7, 5, 3, 4, 0. A node that waits has the
code of what it waits for, one that isn't reachable, says nothing or doesn't run yet has 4, and one
that contradicts itself or runs something else than --expect has 8.`,
		Example: `  launcher status http://node-1:8090 http://node-2:8090
  launcher status --nodes nodes.txt --expect sha256:… -o json
  docker logs launcher 2>&1 | launcher status -
  # of this machine, for a health check
  launcher status --self`,
		RunE: o.runStatus,
	}
	addOutput(cmd, &o.output)
	flags := cmd.Flags()
	flags.BoolVar(&o.self, "self", false, "ask the launcher on this machine")
	flags.StringVar(&o.nodes, "nodes", "", "a file with a node on each line; - is standard input")
	flags.DurationVar(&o.watch, "watch", 0, "ask again so often, until a signal; on a terminal the lines are drawn anew")
	flags.StringVar(&o.expect, "expect", "", "the digest that all of them have to run")
	return cmd
}

func (o *statusOpts) runStatus(cmd *cobra.Command, args []string) error {
	p := o.program
	s, err := p.read(cmd)
	if err != nil {
		return err
	}
	reader := fleet.Reader{Stdin: p.stdin}
	if reader.Expect, err = digestFlag(cmd, "expect", o.expect); err != nil {
		return err
	}
	nodes, err := o.list(cmd, args)
	if err != nil {
		return err
	}
	ctx, c, over := p.attend(cmd, s)
	defer over()
	ask := func() []fleet.Answer {
		if !o.self {
			return reader.Ask(ctx, nodes)
		}
		said, err := status.Self(ctx, p.temporary())
		if err != nil {
			return []fleet.Answer{fleet.Away("self", fmt.Errorf("no launcher answers here: %w", err))}
		}
		return []fleet.Answer{reader.Of("self", said)}
	}
	for {
		answers := ask()
		if ctx.Err() != nil && o.watch == 0 {
			return context.Cause(ctx)
		}
		if err := o.print(answers, s, c.log); err != nil {
			return err
		}
		if o.watch == 0 || p.waited(ctx, o.watch) != nil {
			return worst(answers)
		}
	}
}

// waited waits, as far as nobody ends it.
func (p *program) waited(ctx context.Context, d time.Duration) error {
	if p.sleep != nil {
		return p.sleep(ctx, d)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// list returns the nodes that the command line names.
func (o *statusOpts) list(cmd *cobra.Command, args []string) ([]fleet.Node, error) {
	switch {
	case o.self && (len(args) > 0 || o.nodes != ""):
		return nil, usageError(cmd, errors.New("--self asks the launcher on this machine, and no other node"))
	case o.watch != 0 && o.watch < leastWatch:
		return nil, usageError(cmd, fmt.Errorf("--watch: must be %s at least", leastWatch))
	case o.watch != 0 && o.output == "json":
		return nil, usageError(cmd, errors.New("--watch goes without --output json, which is one document"))
	case o.self:
		return nil, nil
	}
	args = slices.Clone(args)
	if o.nodes != "" {
		more, err := o.read()
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
	}
	if len(args) == 0 {
		return nil, usageError(cmd, errors.New("at least one node is needed, or --self"),
			"a node is the URL of its agent's outside port, such as http://host:8090")
	}
	if len(args) > maxNodes {
		return nil, usageError(cmd, fmt.Errorf("%d nodes, at most %d are asked", len(args), maxNodes))
	}
	n := slices.Index(args, fleet.Stdin)
	if n >= 0 && (o.nodes == fleet.Stdin || o.watch != 0 || slices.Contains(args[n+1:], fleet.Stdin)) {
		return nil, usageError(cmd, errors.New("standard input can be read once"))
	}
	var nodes []fleet.Node
	for _, arg := range args {
		node, err := fleet.ParseNode(arg)
		if err != nil {
			return nil, usageError(cmd, fmt.Errorf("node %.100q: %w", withoutPassword(arg), err))
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// withoutPassword is what may be shown of a URL that can't be used.
func withoutPassword(arg string) string {
	scheme, rest, found := strings.Cut(arg, "://")
	if i := strings.LastIndexByte(rest, '@'); found && i >= 0 {
		return scheme + "://…" + rest[i:]
	}
	return arg
}

// read reads the list of nodes.
func (o *statusOpts) read() ([]string, error) {
	unreadable := func(err error) error {
		return &exit.Error{
			Code: exit.Config, Err: fmt.Errorf("--nodes: %w", err),
			Hint: []string{"a file with a node on each line, such as http://host:8090"},
		}
	}
	from := o.program.stdin
	if o.nodes != fleet.Stdin {
		f, err := os.Open(o.nodes)
		if err != nil {
			return nil, unreadable(err)
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxNodesFile+1))
	if err == nil && len(data) > maxNodesFile {
		err = fmt.Errorf("more than %d bytes", maxNodesFile)
	}
	if err != nil {
		return nil, unreadable(err)
	}
	var nodes []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			nodes = append(nodes, line)
		}
	}
	return nodes, nil
}

// worst says how many nodes are not as they should be; nil: none.
func worst(answers []fleet.Answer) error {
	code, bad := fleet.Worst(answers), 0
	for _, a := range answers {
		if a.Code != exit.OK {
			bad++
		}
	}
	if bad == 0 {
		return nil
	}
	err := fmt.Errorf("%d of %d nodes, the worst: %d, %s", bad, len(answers), code, code.Name())
	if len(answers) == 1 {
		err = fmt.Errorf("%s: %s", answers[0].Node, answers[0].Problem)
	}
	return &exit.Error{Code: code, Err: err}
}

func (o *statusOpts) print(answers []fleet.Answer, s settings, log *slog.Logger) error {
	p := o.program
	if o.output == "json" {
		return p.printJSON(answers)
	}
	header, rows := statusText(answers, time.Now())
	f, isFile := p.stdout.(*os.File)
	if o.watch != 0 && isFile && isTerminal(f) {
		var screen bytes.Buffer
		fmt.Fprintf(&screen, "\x1b[H\x1b[2J%s\n%s\n%s\n", time.Now().Format(time.DateTime), header, strings.Join(rows, "\n"))
		_, err := p.stdout.Write(screen.Bytes())
		return err
	}
	// What is on stdout is a line for each node, and nothing else.
	switch {
	case o.self || s.logLevel > slog.LevelInfo:
	case s.logFormat == "json":
		log.Info(aboutNodes)
	default:
		fmt.Fprintf(p.stderr, "note: %s\n%s\n", aboutNodes, header)
	}
	_, err := io.WriteString(p.stdout, strings.Join(rows, "\n")+"\n")
	return err
}

// measuredColumn is the last that doesn't come from a status alone.
const measuredColumn = 5

// statusText returns a line for each node, in as many columns as statusColumns, and one above them.
func statusText(answers []fleet.Answer, now time.Time) (header string, rows []string) {
	limits := []int{4, 22, 9, 5, 8, 12, 4, 4, 8, 10}
	cells := [][]string{{"EXIT", "NODE", "PHASE", "SINCE", "DIGEST", "MEASURED", "LIST", "RST", "STAGED", "LAUNCHER", "PROBLEM"}}
	for _, a := range answers {
		cells = append(cells, statusCells(a, now))
	}
	widths := make([]int, len(limits))
	for _, row := range cells {
		for i := range widths {
			row[i] = fit(row[i], limits[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for n, row := range cells {
		var b strings.Builder
		columns := widths
		if n > 0 && answers[n-1].Status == nil {
			columns = widths[:measuredColumn+1] // what the rest is for nobody knows, so why has more room
		}
		for i, width := range columns {
			b.WriteString(row[i] + strings.Repeat(" ", width-utf8.RuneCountInString(row[i])+1))
		}
		room := statusColumns - utf8.RuneCountInString(b.String())
		rows = append(rows, strings.TrimRight(b.String()+fit(row[len(row)-1], room), " "))
	}
	return rows[0], rows[1:]
}

func statusCells(a fleet.Answer, now time.Time) []string {
	row := []string{fmt.Sprint(int(a.Code)), shortNode(a.Node), "-", "-", "-", string(a.Evidence), "-", "-", "-", "-", a.Problem}
	runs := a.Measured
	if s := a.Status; s != nil {
		row[2], row[3] = s.Phase, age(now.Sub(s.Since))
		if s.Digest != nil {
			runs = s.Digest
		}
		if s.Measured != nil && !*s.Measured && a.Evidence != fleet.Contradicted {
			row[5] = "unmeasured"
		}
		if s.Approved != nil {
			row[6] = fmt.Sprint(*s.Approved)
		}
		row[7], row[8], row[9] = fmt.Sprint(s.Restarts), "no", s.Launcher
		if s.Restarts > 9999 {
			row[7] = "many"
		}
		if g := s.Staged; g != nil {
			row[8] = g.State
		}
	}
	if runs != nil {
		row[4] = runs.Hex()[:8]
	}
	if a.Problem == "" {
		row[10] = strings.Join(a.Notes, "; ")
	}
	return row
}

// shortNode is a node without what all have.
func shortNode(name string) string {
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "http://"), "https://"), ":8090")
}

// age is how long something has lasted, in five columns.
func age(d time.Duration) string {
	switch {
	case d < 0 || d > 9999*24*time.Hour:
		return "?" // two clocks, or a lie
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// fit makes text take so many columns at most. What isn't ASCII may take two of them, or none.
func fit(text string, room int) string {
	text = strings.Map(func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}, sanitize.Line(text, 4*statusColumns))
	if len(text) <= room {
		return text
	}
	return strings.TrimRight(text[:max(room-1, 0)], " ") + "…"
}
