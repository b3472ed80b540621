package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/stage"
)

// settings is what flags and environment say, parsed.
type settings struct {
	measure   string // what measures
	native    rtmr.Mounts
	fallback  bool     // an older approved digest may be tried
	warnings  []string // about the environment
	launch    admission.Settings
	stage     stage.Settings
	logFormat string
	logLevel  slog.Level
	progress  string

	statusEvery   time.Duration
	metricsListen string
}

// setting is one row of the table from which flags, environment, help, completion and the README come.
type setting struct {
	flag     string
	env      string
	fallback string   // the default; empty: none
	required bool     // for `run` and what asks whether it would succeed
	commands []string // that use it; the others have no such flag
	help     string
	values   []string // all that are allowed; nil: parse decides
	hint     string   // what else helps where it is missing or wrong
	parse    func(*settings, string) error
}

// The commands that have settings.
const (
	run     = "run"
	verify  = "verify"
	render  = "render"
	pull    = "pull"
	digests = "digest"
	rtmr3   = "rtmr3"
	nodes   = "status"
)

// native is the value of --measure that goes without EmitEvent.
const native = "native"

const dockerSocket = "unix:///var/run/docker.sock"

func table() []setting {
	boots := []string{run, verify, render}
	everywhere := []string{run, verify, render, pull, digests, rtmr3, nodes}
	// A relative path is one in the working directory.
	path := func(field func(*settings) *string) func(*settings, string) error {
		return func(s *settings, v string) (err error) {
			*field(s), err = filepath.Abs(v)
			return err
		}
	}
	text := func(field func(*settings) *string) func(*settings, string) error {
		return func(s *settings, v string) error { *field(s) = v; return nil }
	}
	wait := func(field func(*settings) *time.Duration) func(*settings, string) error {
		return func(s *settings, v string) (err error) {
			*field(s), err = parseWait(v)
			return err
		}
	}
	return []setting{
		{
			flag: "platform", env: "PLATFORM", required: true, values: []string{"TEE", "NONTEE"},
			commands: boots,
			help:     "TEE measures what runs; NONTEE is for outside a CVM: the same without the measurement",
			parse: func(s *settings, v string) (err error) {
				s.launch.Platform, err = config.ParsePlatform(v)
				return err
			},
		},
		{
			flag: "default-image-digest", env: "DEFAULT_IMAGE_DIGEST", required: true,
			commands: boots,
			help:     "manifest digest that runs where there is no approved list: sha256: and 64 lower-case hex digits",
			hint:     "`launcher digest IMAGE:TAG` prints the digest of an image",
			parse: func(s *settings, v string) (err error) {
				s.launch.DefaultDigest, err = digest.Parse(v)
				return err
			},
		},
		{
			flag: "docker-content-trust", env: "DOCKER_CONTENT_TRUST", required: true, values: []string{"1"},
			commands: boots,
			help:     "must be 1; kept for compatibility, it has no effect on pulls by digest",
			parse:    func(*settings, string) error { return nil },
		},
		{
			flag: "config", env: "LAUNCHER_CONFIG", fallback: "/tapp/user_config",
			commands: boots,
			help:     "user config (TOML)", parse: path(func(s *settings) *string { return &s.launch.ConfigFile }),
		},
		{
			flag: "shared-dir", env: "LAUNCHER_SHARED_DIR", fallback: "/mnt/shared",
			commands: append(boots, pull, digests),
			help:     "where the launcher sees the shared volume; the workload always sees it at /mnt/shared",
			parse:    path(func(s *settings) *string { return &s.launch.SharedDir }),
		},
		{
			flag: "dstack-socket", env: "LAUNCHER_DSTACK_SOCKET", fallback: "/var/run/dstack.sock",
			commands: append(boots, rtmr3),
			help:     "socket of the dstack guest agent", parse: path(func(s *settings) *string { return &s.launch.AgentSocket }),
		},
		{
			flag: "docker-host", env: "DOCKER_HOST", fallback: dockerSocket,
			commands: append(boots, pull),
			help:     "the Docker engine; unix sockets only",
			parse: func(s *settings, v string) error {
				if !strings.HasPrefix(v, "unix:///") {
					return fmt.Errorf("%.100q must be unix:// and an absolute path, such as %s", v, dockerSocket)
				}
				s.launch.DockerHost = v
				return nil
			},
		},
		{
			flag: "compose", env: "LAUNCHER_COMPOSE",
			commands: []string{run, verify},
			help:     "the compose command; found when unset: `docker compose`, then `docker-compose`, version 2 or later",
			parse:    text(func(s *settings) *string { return &s.launch.Compose }),
		},
		{
			flag: "insecure-registry", env: "LAUNCHER_INSECURE_REGISTRIES",
			commands: append(boots, pull, digests),
			help:     "registries that may be reached over plain http, comma-separated; loopback always may",
			parse: func(s *settings, v string) error {
				for host := range strings.SplitSeq(v, ",") {
					host = strings.TrimSpace(host)
					if host == "" || strings.ContainsAny(host, "/ @") {
						return fmt.Errorf("%.100q is not a registry's host: write host or host:port, without http://", host)
					}
					s.launch.Insecure = append(s.launch.Insecure, host)
				}
				return nil
			},
		},
		{
			flag: "supervise", env: "LAUNCHER_SUPERVISE", fallback: "auto", values: []string{"auto", "on", "off"},
			commands: boots,
			help:     "look after the workload: auto is on in TEE mode and off in NONTEE; off in TEE mode lets the engine start an unmeasured workload",
			parse: func(s *settings, v string) error {
				s.launch.Supervise = admission.Supervise(v)
				return nil
			},
		},
		{
			flag: "measure", env: "LAUNCHER_MEASURE", fallback: "agent", values: []string{"agent", native},
			commands: []string{run, verify},
			help:     "what measures: dstack's guest agent by EmitEvent, or the launcher itself through the kernel, as dstack 0.6 needs it; never one in place of the other",
			parse:    text(func(s *settings) *string { return &s.measure }),
		},
		{
			flag: "rtmr-dir", env: "LAUNCHER_RTMR_DIR", fallback: "/run/tsm",
			commands: []string{run, verify},
			help:     "where the kernel's directory tdx_guest/measurements is mounted; native only",
			parse:    path(func(s *settings) *string { return &s.native.Registers }),
		},
		{
			flag: "runtime-log-dir", env: "LAUNCHER_RUNTIME_LOG_DIR", fallback: "/run/log/dstack",
			commands: []string{run, verify},
			help:     "dstack's directory of its event log, its lock and its version; native only",
			parse:    path(func(s *settings) *string { return &s.native.Runtime }),
		},
		{
			flag: "fallback", env: "LAUNCHER_FALLBACK", fallback: "off", values: []string{"off", "unpullable"},
			commands: []string{run, verify},
			help:     "unpullable: where the newest approved digest can't be had for long, the next older one is tried; whoever controls the network can bring that about",
			parse: func(s *settings, v string) error {
				s.fallback = v == "unpullable"
				return nil
			},
		},
		{
			flag: "fallback-after", env: "LAUNCHER_FALLBACK_AFTER", fallback: "30m",
			commands: []string{run, verify},
			help:     "for how long it must have failed before that, such as 90s, 30m or 2h",
			parse: func(s *settings, v string) (err error) {
				s.launch.FallbackAfter, err = time.ParseDuration(v)
				if err != nil || s.launch.FallbackAfter <= 0 {
					return fmt.Errorf("%.100q is no length of time: write one such as 90s, 30m or 2h", v)
				}
				return nil
			},
		},
		{
			flag: "stage", env: "LAUNCHER_STAGE", fallback: "auto", values: []string{"auto", "on", "off"},
			commands: []string{run, verify},
			help:     "fetch the next approved image while the present one runs, for the next boot: auto where the workload is supervised",
			parse: func(s *settings, v string) error {
				s.stage.Mode = stage.Mode(v)
				return nil
			},
		},
		{
			flag: "stage-after", env: "LAUNCHER_STAGE_AFTER", fallback: "10m",
			commands: []string{run, verify},
			help:     "how long a digest must have been the choice before it is fetched ahead",
			parse:    wait(func(s *settings) *time.Duration { return &s.stage.After }),
		},
		{
			flag: "stage-rate", env: "LAUNCHER_STAGE_RATE", fallback: "8MB",
			commands: []string{run, verify},
			help:     "bytes per second that are fetched ahead at most, such as 500kB or 16MiB; 0 is no limit",
			parse: func(s *settings, v string) (err error) {
				s.stage.Rate, err = parseSize(v)
				return err
			},
		},
		{
			flag: "stage-delay", env: "LAUNCHER_STAGE_DELAY", fallback: "15m",
			commands: []string{run, verify},
			help:     "the longest random wait before a digest is fetched ahead, so that a fleet doesn't come at once",
			parse:    wait(func(s *settings) *time.Duration { return &s.stage.Delay }),
		},
		{
			flag: "status-every", env: "LAUNCHER_STATUS_EVERY", fallback: "10m",
			commands: []string{run, verify},
			help:     "print a status line at least so often; 0: only when something changes",
			parse: func(s *settings, v string) (err error) {
				s.statusEvery, err = time.ParseDuration(v)
				if err != nil || s.statusEvery < 0 || s.statusEvery > 0 && s.statusEvery < time.Second {
					return fmt.Errorf("%.100q must be a time such as 10m, of a second at least, or 0", v)
				}
				return nil
			},
		},
		{
			flag: "metrics-listen", env: "LAUNCHER_METRICS_LISTEN",
			commands: []string{run, verify},
			help:     "address such as 127.0.0.1:9464 at which /metrics and /healthz are served, to whoever reaches it; none when unset",
			parse: func(s *settings, v string) error {
				if _, port, err := net.SplitHostPort(v); err != nil || !isPort(port) {
					return fmt.Errorf("%.100q must be an address and a port, such as 127.0.0.1:9464", v)
				}
				s.metricsListen = v
				return nil
			},
		},
		{
			flag: "report", env: "LAUNCHER_REPORT",
			commands: []string{run, verify},
			help:     "path of the launch report, or none; launcher/report.json in the shared directory when unset",
			parse: func(s *settings, v string) error {
				if v == admission.NoReport {
					s.launch.Report = v
					return nil
				}
				return path(func(s *settings) *string { return &s.launch.Report })(s, v)
			},
		},
		{
			flag: "log-format", env: "LOG_FORMAT", fallback: "text", values: []string{"text", "json"},
			commands: everywhere,
			help:     "how to log on stderr; json has sizes in bytes and durations in seconds", parse: text(func(s *settings) *string { return &s.logFormat }),
		},
		{
			flag: "log-level", env: "LOG_LEVEL", fallback: "info", values: []string{"debug", "info", "warn", "error"},
			commands: everywhere,
			help:     "what to log",
			parse:    func(s *settings, v string) error { return s.logLevel.UnmarshalText([]byte(v)) },
		},
		{
			flag: "progress", env: "LAUNCHER_PROGRESS", fallback: "auto", values: []string{"auto", "bar", "plain", "none"},
			commands: []string{run, verify, pull},
			help:     "how to show progress: auto is a bar on a terminal and a line every few seconds elsewhere",
			parse:    text(func(s *settings) *string { return &s.progress }),
		},
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// either names all that is allowed.
func either(values []string) string {
	last := len(values) - 1
	if last == 0 {
		return values[0]
	}
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// usage is a setting's help text as flags and README show it.
func (row setting) usage() string {
	help := row.help
	if len(row.values) > 1 {
		help += " (" + strings.Join(row.values, ", ") + ")"
	}
	return help
}

// wanted says what a setting that is missing has to be.
func (row setting) wanted() string {
	if row.values != nil {
		return "it must be " + either(row.values)
	}
	return row.help
}

// addSettings gives a command the flags of the settings that it uses.
func addSettings(cmd *cobra.Command) {
	flags := cmd.Flags()
	for _, row := range table() {
		if !row.usedBy(cmd) {
			continue
		}
		// pflag takes a word in back quotes for the name of the value.
		help := strings.ReplaceAll(row.usage(), "`", "'")
		flags.String(row.flag, "", help+" [$"+row.env+suffix(row)+"]")
		if row.values != nil {
			_ = cmd.RegisterFlagCompletionFunc(row.flag, cobra.FixedCompletions(row.values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	flags.BoolP("quiet", "q", false, "print errors only, and the result")
	flags.BoolP("verbose", "v", false, "log what else happens, as --log-level debug")
}

// usedBy reports whether a command uses the setting.
func (row setting) usedBy(cmd *cobra.Command) bool {
	name := cmd.Name()
	if !cmd.HasParent() {
		name = run // what the launcher does without a command
	}
	return slices.Contains(row.commands, name)
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

// read takes each setting that the command uses from its flag, else the environment, else its
// default. All mistakes are reported at once.
func (p *program) read(cmd *cobra.Command) (settings, error) {
	environment := p.environment()
	var s settings
	var mistakes []error
	var hints []string
	mistake := func(err error, help ...string) {
		help = slices.DeleteFunc(help, func(h string) bool { return h == "" })
		mistakes = append(mistakes, &exit.Error{Code: exit.Usage, Err: err, Hint: help})
		for _, h := range help {
			if !slices.Contains(hints, h) {
				hints = append(hints, h)
			}
		}
	}
	for _, row := range table() {
		if !row.usedBy(cmd) {
			continue // such as a PLATFORM that was meant for something else
		}
		value, origin := row.fallback, "--"+row.flag
		if v := environment[row.env]; v != "" {
			value, origin = v, row.env
		}
		if f := cmd.Flag(row.flag); f.Changed {
			value, origin = f.Value.String(), "--"+row.flag
			if value == "" {
				mistake(fmt.Errorf("%s is empty", origin))
				continue
			}
		}
		help := row.hint
		if strings.Trim(value, " \t\r\n\"'") != value {
			help = "remove the quotes or spaces around the value of " + origin
		}
		switch {
		case value == "" && row.required:
			mistake(fmt.Errorf("%s is not set (or --%s): %s", row.env, row.flag, row.wanted()),
				"set it in `environment` of the launcher's compose file, or as a flag", help)
		case value == "":
		case row.values != nil && !slices.Contains(row.values, value):
			mistake(fmt.Errorf("%s: %.100q is not allowed: must be %s", origin, value, either(row.values)), help)
		default:
			if err := row.parse(&s, value); err != nil {
				mistake(fmt.Errorf("%s: %w", origin, err), help)
			}
		}
	}
	if err := s.loudness(cmd); err != nil {
		mistake(err)
	}
	if s.measure == native {
		s.launch.Native = s.native
	}
	if !s.fallback {
		s.launch.FallbackAfter = 0
	}
	s.warnings = unknownVariables(environment)
	if len(mistakes) > 0 {
		return s, usageError(cmd, errors.Join(mistakes...), hints...)
	}
	return s, nil
}

// loudness takes in what -q and -v say, which go before LOG_LEVEL as a flag does.
func (s *settings) loudness(cmd *cobra.Command) error {
	quiet, verbose := cmd.Flag("quiet").Changed, cmd.Flag("verbose").Changed
	switch {
	case quiet && verbose:
		return errors.New("--quiet and --verbose contradict each other")
	case (quiet || verbose) && cmd.Flag("log-level").Changed:
		return errors.New("--log-level goes with neither --quiet nor --verbose")
	case quiet:
		s.logLevel, s.progress = slog.LevelError, "none"
	case verbose:
		s.logLevel = slog.LevelDebug
	}
	return nil
}

func (p *program) environment() map[string]string {
	environment := map[string]string{}
	for _, entry := range p.environ {
		name, value, _ := strings.Cut(entry, "=")
		environment[name] = value
	}
	return environment
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
