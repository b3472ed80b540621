package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// printHelp prints a command's help in the width of the terminal, or of any where there is none.
func (p *program) printHelp(cmd *cobra.Command, _ []string) {
	columns, _ := columnsOf(p.stdout)
	_, _ = io.WriteString(p.stdout, helpText(cmd, columns))
}

// helpText is a command's help. Examples stand as they are: they are to be copied.
func helpText(cmd *cobra.Command, columns int) string {
	var b strings.Builder
	about := cmd.Long
	if about == "" {
		about = cmd.Short
	}
	for _, paragraph := range paragraphs(about) {
		b.WriteString(wrapTo(columns, paragraph, "", "") + "\n")
	}
	section := func(name string) { b.WriteString(name + ":\n") }
	section("Usage")
	for _, line := range usageLines(cmd) {
		b.WriteString(wrapTo(columns, line, "  ", "      "))
	}
	if cmd.HasExample() {
		b.WriteString("\n")
		section("Examples")
		b.WriteString(strings.TrimRight(cmd.Example, "\n") + "\n")
	}
	if commands := available(cmd); len(commands) > 0 {
		b.WriteString("\n")
		section("Commands")
		widest := 0
		for _, c := range commands {
			widest = max(widest, len(c.Name()))
		}
		for _, c := range commands {
			name := "  " + c.Name() + strings.Repeat(" ", widest-len(c.Name())+2)
			b.WriteString(wrapTo(columns, c.Short, name, strings.Repeat(" ", len(name))))
		}
	}
	if flags := visibleFlags(cmd); len(flags) > 0 {
		b.WriteString("\n")
		section("Flags")
		for _, f := range flags {
			b.WriteString(wrapTo(columns, flagName(f), "  ", "  "))
			b.WriteString(wrapTo(columns, f.Usage, "      ", "      "))
		}
	}
	if len(available(cmd)) > 0 {
		b.WriteString("\n" + wrapTo(columns, "`"+cmd.CommandPath()+" COMMAND --help` says more about a command.", "", ""))
	}
	return b.String()
}

func usageLines(cmd *cobra.Command) []string {
	var lines []string
	if cmd.Runnable() {
		lines = append(lines, cmd.UseLine())
	}
	if len(available(cmd)) > 0 {
		lines = append(lines, cmd.CommandPath()+" COMMAND")
	}
	return lines
}

func available(cmd *cobra.Command) []*cobra.Command {
	var commands []*cobra.Command
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			commands = append(commands, c)
		}
	}
	return commands
}

func visibleFlags(cmd *cobra.Command) []*pflag.Flag {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	var flags []*pflag.Flag
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, f)
		}
	})
	return flags
}

// flagName is a flag as it is typed, with what it takes.
func flagName(f *pflag.Flag) string {
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	if f.Value.Type() != "bool" {
		name += " " + f.Value.Type()
	}
	return name
}

// paragraphs joins the lines of each paragraph of a text.
func paragraphs(text string) []string {
	var joined []string
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		joined = append(joined, strings.Join(strings.Fields(paragraph), " "))
	}
	return joined
}
