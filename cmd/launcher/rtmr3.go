package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/waiting"
)

type rtmr3Opts struct {
	program *program
	output  output
	log     string
	expect  string
	predict string
}

func (p *program) newRTMR3Cmd() *cobra.Command {
	o := &rtmr3Opts{program: p}
	cmd := &cobra.Command{
		Use:   "rtmr3",
		Short: "Replay an event log and say whether a verifier would accept it",
		Long: `Replays RTMR3's events, compares the result with the register, and applies the NEAR
verifier's rules: to the events, to the app-compose, and to the form of everything that its own
reader needs. Without --event-log the guest agent is asked, which makes a hardware quote. A quote's
signature is not checked, nor which digests are approved. Rejected, or --expect not met: exit code
8; not readable: 3.

Three rules are the launcher's own, because what they refuse has two readings: an event whose
measured bytes can be read as an image event (AmbiguousEvent), a JSON name that stands twice, and
one in two letter cases.`,
		Example: `  # of this CVM
  launcher rtmr3
  launcher rtmr3 --event-log tcb_info.json --expect sha256:…
  launcher rtmr3 --event-log before.json --predict sha256:…
  curl -s http://node:8080/public_data | launcher rtmr3 --event-log -`,
		Args: noArguments,
		RunE: o.runRTMR3,
	}
	addOutput(cmd, &o.output)
	flags := cmd.Flags()
	flags.StringVar(&o.log, "event-log", "", "a file with tcb_info, an answer of Info or "+
		"GetQuote, a node's /public_data, or a bare array of events; - is standard input")
	flags.StringVar(&o.expect, "expect", "", "also require that this digest is the measured one")
	flags.StringVar(&o.predict, "predict", "", "print the value that RTMR3 will have once this "+
		"digest is emitted; then a log without an image event isn't rejected, and one with it is")
	return cmd
}

// replay is the result, as it is printed.
type replay struct {
	Events    []replayedEvent `json:"events"`
	Replayed  string          `json:"replayed"`
	Reported  string          `json:"reported"` // what the input says of the register
	Quoted    string          `json:"quoted"`   // what the quote in the input says
	Image     string          `json:"image"`    // the measured digest, if the log is accepted
	Accepted  bool            `json:"accepted"`
	Reason    string          `json:"reason"` // why it isn't
	Predicted string          `json:"predicted"`
}

type replayedEvent struct {
	Event   string `json:"event"`
	Payload string `json:"payload"`
	Digest  string `json:"digest"` // as it is extended
	Image   string `json:"image"`  // what an image event says
}

func (o *rtmr3Opts) runRTMR3(cmd *cobra.Command, _ []string) error {
	s, err := o.program.read(cmd)
	if err != nil {
		return err
	}
	expect, err := digestFlag(cmd, "expect", o.expect)
	if err != nil {
		return err
	}
	predict, err := digestFlag(cmd, "predict", o.predict)
	if err != nil {
		return err
	}
	log, err := o.read(cmd, s)
	if err != nil {
		return err
	}
	r := replayOf(log)
	image, verdict := log.Accepted()
	r.Accepted = verdict == nil
	if r.Accepted {
		r.Image = image.String()
	}
	if expect != nil && verdict == nil && image != *expect {
		verdict = &rtmr.Rejection{
			Reason: rtmr.OtherDigest, Got: image.String(), Want: expect.String(),
		}
	}
	if predict != nil {
		predicted, err := log.Predict(*predict)
		if err != nil {
			return usageError(cmd, fmt.Errorf("--predict: %w", err))
		}
		r.Predicted = predicted.String()
		verdict = predictedVerdict(log, verdict, expect != nil)
	}
	if verdict != nil {
		r.Reason = verdict.Error()
	}
	if err := o.print(r); err != nil {
		return err
	}
	return verdict
}

// predictedVerdict is the verdict on what is to be emitted: that it isn't there yet is no
// rejection, unless somebody expects it, and that an image event is there already is one.
func predictedVerdict(log rtmr.Log, verdict error, expected bool) error {
	var rejected *rtmr.Rejection
	switch {
	case errors.As(verdict, &rejected) && rejected.Reason == rtmr.MissingEvent &&
		rejected.Entry == rtmr.EventName && !expected:
		return nil
	case verdict == nil && len(log.Images()) > 0:
		return &rtmr.Rejection{
			Reason: rtmr.DuplicateEvent,
			Entry:  "an image is already measured, a second event would be refused",
		}
	}
	return verdict
}

// digestFlag reads the value of a flag that is a digest; nil: it isn't set.
func digestFlag(cmd *cobra.Command, flag, value string) (*digest.Digest, error) {
	if !cmd.Flag(flag).Changed {
		return nil, nil
	}
	hash, err := digest.Parse(value)
	if err != nil {
		return nil, usageError(cmd, fmt.Errorf("--%s: %w", flag, err))
	}
	return &hash, nil
}

func (o *rtmr3Opts) read(cmd *cobra.Command, s settings) (rtmr.Log, error) {
	ctx, c, over := o.program.attend(cmd, s)
	defer over()
	if !cmd.Flag("event-log").Changed {
		agent := rtmr.Agent{Socket: s.launch.AgentSocket, Logger: c.log}
		return agent.Log(ctx)
	}
	defer waiting.For(ctx, "the event log from "+o.log)()
	from := o.program.stdin
	if o.log != "-" {
		f, err := os.Open(o.log)
		if err != nil {
			return rtmr.Log{}, unreadable(err)
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, rtmr.MaxSize+1)) // one more than Parse takes
	if err != nil {
		return rtmr.Log{}, unreadable(err)
	}
	log, err := rtmr.Parse(data)
	if exit.Of(err) == exit.Config {
		err = &exit.Error{Code: exit.Config, Err: err, Hint: []string{"--event-log takes tcb_info, " +
			"an answer of Info or GetQuote, a node's /public_data, or a bare array of events"}}
	}
	return log, err
}

func unreadable(err error) error {
	return &exit.Error{Code: exit.Config, Err: fmt.Errorf("event log: %w", err), Hint: []string{"--event-log is a file, or - for standard input"}}
}

func replayOf(log rtmr.Log) replay {
	r := replay{Events: []replayedEvent{}, Replayed: log.Replay().String()}
	for _, e := range log.Events() {
		event := replayedEvent{Event: e.Name, Payload: fmt.Sprintf("%x", e.Payload), Digest: e.Measured().String()}
		if image, ok := e.Image(); ok {
			event.Image = image.String()
		}
		r.Events = append(r.Events, event)
	}
	if reported, ok := log.Reported(); ok {
		r.Reported = reported.String()
	}
	if quoted, ok := log.Quoted(); ok {
		r.Quoted = quoted.String()
	}
	return r
}

func (o *rtmr3Opts) print(r replay) error {
	if o.output == "json" {
		return o.program.printJSON(r)
	}
	w := tabwriter.NewWriter(o.program.stdout, 0, 0, 2, ' ', 0)
	for _, e := range r.Events {
		payload := e.Payload
		if e.Image != "" {
			payload = e.Image
		}
		// Quoted, because whoever emits an event chooses its name: it might be a second line.
		fmt.Fprintf(w, "event\t%.100q\t%s\n", e.Event, shortened(payload))
	}
	for _, line := range [][2]string{{"replayed", r.Replayed}, {"reported", r.Reported}, {"quoted", r.Quoted}, {"predicted", r.Predicted}} {
		if line[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
		}
	}
	if r.Accepted {
		fmt.Fprintf(w, "accepted\t%s\n", r.Image)
	} else {
		fmt.Fprintf(w, "rejected\t%s\n", sanitize.Line(r.Reason, sanitize.MaxLine))
	}
	return w.Flush()
}

// shortened keeps a payload on its line.
func shortened(payload string) string {
	if len(payload) > 100 {
		return fmt.Sprintf("%s… (%d bytes)", payload[:100], len(payload)/2)
	}
	return payload
}
