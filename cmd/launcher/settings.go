package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/sanitize"
)

// settings is what flags and environment say, parsed.
type settings struct {
	warnings  []string // about the environment
	launch    admission.Settings
	logFormat string
	logLevel  slog.Level
	progress  string
}

// setting is one row of the table from which flags, environment, help, completion and the README come.
type setting struct {
	flag     string
	env      string
	fallback string // the default; empty: none
	required bool   // for `run` and what asks whether it would succeed
	help     string
	values   []string // all that are allowed; nil: parse decides
	parse    func(*settings, string) error
}

func table() []setting {
	path := func(field func(*settings) *string) func(*settings, string) error {
		return func(s *settings, v string) error {
			if !filepath.IsAbs(v) {
				return errors.New("must be an absolute path")
			}
			*field(s) = v
			return nil
		}
	}
	text := func(field func(*settings) *string) func(*settings, string) error {
		return func(s *settings, v string) error { *field(s) = v; return nil }
	}
	return []setting{
		{
			flag: "platform", env: "PLATFORM", required: true, values: []string{"TEE", "NONTEE"},
			help: "TEE: measure what runs; NONTEE: outside a CVM, the same without the measurement",
			parse: func(s *settings, v string) (err error) {
				s.launch.Platform, err = config.ParsePlatform(v)
				return err
			},
		},
		{
			flag: "default-image-digest", env: "DEFAULT_IMAGE_DIGEST", required: true,
			help: "manifest digest that runs where there is no approved list: sha256: and 64 lower-case hex digits",
			parse: func(s *settings, v string) (err error) {
				s.launch.DefaultDigest, err = digest.Parse(v)
				return err
			},
		},
		{
			flag: "docker-content-trust", env: "DOCKER_CONTENT_TRUST", required: true, values: []string{"1"},
			help:  "must be 1; kept for compatibility, it has no effect on pulls by digest",
			parse: func(*settings, string) error { return nil },
		},
		{
			flag: "config", env: "LAUNCHER_CONFIG", fallback: "/tapp/user_config",
			help: "user config (TOML)", parse: path(func(s *settings) *string { return &s.launch.ConfigFile }),
		},
		{
			flag: "shared-dir", env: "LAUNCHER_SHARED_DIR", fallback: "/mnt/shared",
			help:  "where the launcher sees the shared volume; the workload always sees it at /mnt/shared",
			parse: path(func(s *settings) *string { return &s.launch.SharedDir }),
		},
		{
			flag: "dstack-socket", env: "LAUNCHER_DSTACK_SOCKET", fallback: "/var/run/dstack.sock",
			help: "socket of the dstack guest agent", parse: path(func(s *settings) *string { return &s.launch.AgentSocket }),
		},
		{
			flag: "docker-host", env: "DOCKER_HOST", fallback: "unix:///var/run/docker.sock",
			help: "the Docker engine; unix sockets only",
			parse: func(s *settings, v string) error {
				if !strings.HasPrefix(v, "unix:///") {
					return errors.New("must be unix:// and an absolute path")
				}
				s.launch.DockerHost = v
				return nil
			},
		},
		{
			flag: "compose", env: "LAUNCHER_COMPOSE",
			help:  "the compose command; found when unset: `docker compose`, then `docker-compose`, version 2 or later",
			parse: text(func(s *settings) *string { return &s.launch.Compose }),
		},
		{
			flag: "insecure-registry", env: "LAUNCHER_INSECURE_REGISTRIES",
			help: "registries that may be reached over plain http, comma-separated; loopback always may",
			parse: func(s *settings, v string) error {
				for host := range strings.SplitSeq(v, ",") {
					host = strings.TrimSpace(host)
					if host == "" || strings.ContainsAny(host, "/ @") {
						return fmt.Errorf("%.100q is not a registry's host", host)
					}
					s.launch.Insecure = append(s.launch.Insecure, host)
				}
				return nil
			},
		},
		{
			flag: "supervise", env: "LAUNCHER_SUPERVISE", fallback: "auto", values: []string{"auto", "on", "off"},
			help: "look after the workload: auto is on in TEE mode and off in NONTEE; off in TEE mode lets the engine start an unmeasured workload",
			parse: func(s *settings, v string) error {
				s.launch.Supervise = admission.Supervise(v)
				return nil
			},
		},
		{
			flag: "report", env: "LAUNCHER_REPORT",
			help: "path of the launch report, or none; launcher/report.json in the shared directory when unset",
			parse: func(s *settings, v string) error {
				if v != admission.NoReport && !filepath.IsAbs(v) {
					return errors.New("must be an absolute path, or none")
				}
				s.launch.Report = v
				return nil
			},
		},
		{
			flag: "log-format", env: "LOG_FORMAT", fallback: "text", values: []string{"text", "json"},
			help: "how to log on stderr", parse: text(func(s *settings) *string { return &s.logFormat }),
		},
		{
			flag: "log-level", env: "LOG_LEVEL", fallback: "info", values: []string{"debug", "info", "warn", "error"},
			help:  "what to log",
			parse: func(s *settings, v string) error { return s.logLevel.UnmarshalText([]byte(v)) },
		},
		{
			flag: "progress", env: "LAUNCHER_PROGRESS", fallback: "auto", values: []string{"auto", "bar", "plain", "none"},
			help:  "how to show progress: auto is a bar on a terminal and a line every few seconds elsewhere",
			parse: text(func(s *settings) *string { return &s.progress }),
		},
	}
}

// usage is a setting's help text as flags and README show it.
func (row setting) usage() string {
	help := row.help
	if row.values != nil {
		help += " (" + strings.Join(row.values, ", ") + ")"
	}
	return help
}

func addSettings(root *cobra.Command) {
	for _, row := range table() {
		// pflag takes a word in back quotes for the name of the value.
		help := strings.ReplaceAll(row.usage(), "`", "'")
		root.PersistentFlags().String(row.flag, "", help+" [$"+row.env+suffix(row)+"]")
		if row.values != nil {
			_ = root.RegisterFlagCompletionFunc(row.flag, cobra.FixedCompletions(row.values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
}

func suffix(row setting) string {
	switch {
	case row.required:
		return ", required"
	case row.fallback != "":
		return ", default " + row.fallback
	}
	return ""
}

// read takes each setting from its flag, else the environment, else its default. All mistakes are reported at once. Demanded
// says whether the required ones must be there.
func (p *program) read(cmd *cobra.Command, demanded bool) (settings, error) {
	environment := map[string]string{}
	for _, entry := range p.environ {
		name, value, _ := strings.Cut(entry, "=")
		environment[name] = value
	}
	var s settings
	var mistakes []error
	for _, row := range table() {
		value, origin := row.fallback, "--"+row.flag
		if v := environment[row.env]; v != "" {
			value, origin = v, row.env
		}
		if f := cmd.Flag(row.flag); f.Changed {
			value, origin = f.Value.String(), "--"+row.flag
			if value == "" {
				mistakes = append(mistakes, fmt.Errorf("%s: is empty", origin))
				continue
			}
		}
		var err error
		switch {
		case row.required && !demanded: // such as a PLATFORM that was meant for something else
		case value == "" && row.required:
			err = fmt.Errorf("%s is not set (or --%s)", row.env, row.flag)
		case value == "":
		case row.values != nil && !slices.Contains(row.values, value):
			err = fmt.Errorf("%s: %.100q is not allowed: must be %s", origin, value, strings.Join(row.values, " or "))
		default:
			if err = row.parse(&s, value); err != nil {
				err = fmt.Errorf("%s: %w", origin, err)
			}
		}
		if err != nil {
			mistakes = append(mistakes, err)
		}
	}
	s.warnings = unknownVariables(environment)
	if len(mistakes) > 0 {
		return s, usageError(cmd, errors.Join(mistakes...))
	}
	return s, nil
}

// unknownVariables warns of what begins like a setting of ours and is none: a misspelt one would be ignored without a word.
func unknownVariables(environment map[string]string) []string {
	const prefix = "LAUNCHER_"
	var ours []string
	for _, row := range table() {
		if strings.HasPrefix(row.env, prefix) {
			ours = append(ours, row.env)
		}
	}
	var warnings []string
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		if strings.HasPrefix(name, prefix) && !slices.Contains(ours, name) {
			warnings = append(warnings, fmt.Sprintf("%.60s is not a setting and is ignored; the nearest one is %s", name, config.Nearest(name, ours...)))
		}
	}
	return warnings
}

// cleanAttr cleans what is logged, wherever it came from.
func cleanAttr(_ []string, a slog.Attr) slog.Attr {
	value := a.Value.Resolve()
	text := value.String()
	if err, ok := value.Any().(error); ok {
		text = err.Error()
	}
	if clean := sanitize.Line(text, sanitize.MaxLine); clean != text {
		a.Value = slog.StringValue(clean)
	}
	return a
}

// log returns the logger that the settings ask for, and logs what they have to say.
func (s settings) log(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.logLevel, ReplaceAttr: cleanAttr}
	var log *slog.Logger
	if s.logFormat == "json" {
		log = slog.New(slog.NewJSONHandler(w, options))
	} else {
		log = slog.New(slog.NewTextHandler(w, options))
	}
	for _, warning := range s.warnings {
		log.Warn(warning)
	}
	for _, host := range s.launch.Insecure {
		log.Warn("plain http is allowed for a registry", "host", host)
	}
	return log
}
