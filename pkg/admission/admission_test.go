package admission_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// logs returns an event log before and after the digest was measured.
func logs(t *testing.T, measured digest.Digest) (before, after *rtmr.Log) {
	t.Helper()
	agent, err := launchtest.NewAgent(filepath.Join(t.TempDir(), "a"), launchtest.AgentOptions{})
	require.NoError(t, err)
	defer agent.Close()
	read := func() *rtmr.Log {
		log, err := rtmr.Parse([]byte(agent.TCBInfo()))
		require.NoError(t, err)
		return &log
	}
	before = read()
	agent.Emit(rtmr.EventName, measured[:])
	return before, read()
}

func TestDecide(t *testing.T) {
	t.Parallel()
	want, other := digest.Of([]byte("want")), digest.Of([]byte("other"))
	nothing, measured := logs(t, want)
	_, elsewise := logs(t, other)
	now := time.Now()
	begun := admission.Record{ID: "boot"}
	intent := admission.Record{ID: "boot", Digest: want, Intent: now}
	done := admission.Record{ID: "boot", Digest: want, Intent: now, Done: true}
	doneOther := admission.Record{ID: "boot", Digest: other, Intent: now, Done: true}

	container := func(name, boot, status, policy, holds string) admission.Container {
		c := inspect.Container{Name: name, Status: status, RestartPolicy: policy}
		c.Labels = map[string]string{compose.BootLabel: boot}
		return admission.Container{Container: c, Holds: holds}
	}
	ours := container("mpc-node", "boot", "running", "no", "/run/dstack.sock")
	over := container("mpc-node", "boot", "exited", "no", "/run/dstack.sock")
	paused := container("mpc-node", "boot", "paused", "no", "/run/dstack.sock")
	beside := container("stranger", "boot", "running", "no", "")
	restarts := container("mpc-node", "boot", "running", "on-failure", "/run/dstack.sock")
	old := container("mpc-node", "before", "running", "no", "/run/dstack.sock")
	ended := container("mpc-node", "before", "exited", "no", "/run/dstack.sock")
	made := container("mpc-node", "before", "created", "no", "/run/dstack.sock")
	holder := container("holder", "", "running", "no", "/")
	idle := container("holder", "", "exited", "no", "/")
	bystander := container("bystander", "", "running", "always", "")

	for name, c := range map[string]struct {
		log        *rtmr.Log
		record     admission.Record
		supervise  admission.Supervise
		containers []admission.Container
		codes      []admission.Code
		measured   bool
		old        int
		excused    int
	}{
		"a first boot":                       {log: nothing},
		"a log that isn't known":             {containers: []admission.Container{old, bystander}, old: 1},
		"an old workload":                    {log: nothing, containers: []admission.Container{old, ended}, old: 1},
		"one of this boot, unmeasured":       {log: nothing, containers: []admission.Container{ours}, old: 1},
		"a holder":                           {log: nothing, containers: []admission.Container{holder}, codes: []admission.Code{admission.SocketHeld}},
		"an idle holder":                     {log: nothing, containers: []admission.Container{idle}},
		"an intent and no event":             {log: nothing, record: intent, codes: []admission.Code{admission.MeasuredByOthers}},
		"a record of having done it":         {log: nothing, record: done},
		"measured":                           {log: measured, record: done, containers: []admission.Container{ours}, measured: true},
		"measured, and killed then":          {log: measured, record: intent, containers: []admission.Container{ours}, measured: true},
		"measured, without a record":         {log: measured, containers: []admission.Container{ours}, measured: true},
		"measured before any intent":         {log: measured, record: begun, codes: []admission.Code{admission.MeasuredByOthers}},
		"measured, another was meant":        {log: measured, record: doneOther, codes: []admission.Code{admission.MeasuredByOthers}},
		"another is measured":                {log: elsewise, record: doneOther, codes: []admission.Code{admission.OtherMeasured}},
		"measured, and an old one runs":      {log: measured, record: done, containers: []admission.Container{old}, codes: []admission.Code{admission.WorkloadRestarts}, measured: true},
		"measured, and ours restarts":        {log: measured, record: done, containers: []admission.Container{restarts}, codes: []admission.Code{admission.WorkloadRestarts}, measured: true},
		"measured, and an old one ended":     {log: measured, record: done, containers: []admission.Container{ended, ours}, codes: []admission.Code{admission.ImpostorEnded}, measured: true},
		"the same, and nobody supervises":    {log: measured, record: done, supervise: admission.SuperviseOff, containers: []admission.Container{ended, ours}, codes: []admission.Code{admission.ImpostorEnded}, measured: true},
		"measured, and an old one never ran": {log: measured, record: done, containers: []admission.Container{made, ours}, measured: true},
		"the same, as it is meant":           {log: measured, record: done, supervise: admission.SuperviseOff, containers: []admission.Container{restarts}, measured: true, excused: 1},
		"the same, killed before it knew":    {log: measured, record: intent, supervise: admission.SuperviseOff, containers: []admission.Container{restarts}, measured: true, excused: 1},
		"the same, without a record":         {log: measured, supervise: admission.SuperviseOff, containers: []admission.Container{restarts}, codes: []admission.Code{admission.WorkloadRestarts}, measured: true},
		"a holder, and a record":             {log: measured, record: done, containers: []admission.Container{holder}, codes: []admission.Code{admission.SocketHeld}, measured: true},
		"a holder, and the workload runs":    {log: measured, record: done, containers: []admission.Container{holder, ours}, measured: true},
		"a holder, and it ran":               {log: measured, record: done, containers: []admission.Container{holder, over}, codes: []admission.Code{admission.SocketHeld}, measured: true},
		"a holder, and it is paused":         {log: measured, record: done, containers: []admission.Container{holder, paused}, codes: []admission.Code{admission.SocketHeld}, measured: true},
		"a holder, and another one runs":     {log: measured, record: done, containers: []admission.Container{holder, beside}, codes: []admission.Code{admission.SocketHeld}, measured: true},
		"a holder, and nothing explains it":  {log: measured, containers: []admission.Container{holder}, codes: []admission.Code{admission.SocketHeld}, measured: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := admission.Facts{
				Settings: admission.Settings{Platform: config.TEE, Supervise: c.supervise}, Boot: "boot",
				Record: c.record, Log: c.log, Wanted: &approval.Decision{Digest: want}, Containers: c.containers,
			}
			v := admission.Decide(f)
			var codes []admission.Code
			for _, r := range v.Refusals {
				codes = append(codes, r.Code)
				assert.Equal(t, exit.Measurement, r.ExitCode())
				assert.NotEmpty(t, r.Hints())
			}
			assert.Equal(t, c.codes, codes)
			assert.Equal(t, c.measured, v.Measured)
			assert.Len(t, v.Old, c.old)
			assert.Len(t, v.Excused, c.excused)

			f.Settings.Platform = config.NONTEE
			assert.Equal(t, admission.Verdict{}, admission.Decide(f), "outside a CVM nothing is measured")
		})
	}
}

func TestOurOwnProjectMayHoldTheSocket(t *testing.T) {
	t.Parallel()
	project := map[string]string{compose.ProjectLabel: "launcher"}
	sibling := admission.Container{Container: inspect.Container{Status: "running", Labels: project}, Holds: "/"}
	f := admission.Facts{Settings: admission.Settings{Platform: config.TEE}, Containers: []admission.Container{sibling}}
	require.Error(t, admission.Decide(f).Err())
	f.Self = inspect.Container{Labels: project}
	assert.NoError(t, admission.Decide(f).Err())
}

// TestUnmeasured names all places whose files others than the measured compose file choose.
func TestUnmeasured(t *testing.T) {
	t.Parallel()
	s := admission.Settings{Platform: config.TEE, ConfigFile: "/etc/launcher/user_config", SharedDir: "/shared"}
	assert.ElementsMatch(t, []string{"/tapp", "/etc/launcher", "/shared"}, s.Unmeasured())
	s.Platform = config.NONTEE
	assert.ElementsMatch(t, []string{"/tapp", "/shared"}, s.Unmeasured(), "it may be a home directory")
}

func TestRoom(t *testing.T) {
	t.Parallel()
	classic := inspect.Info{Store: inspect.Classic, Root: "/var/lib/docker"}
	assert.NoError(t, admission.Room(classic, 50, 100))
	err := admission.Room(classic, 51, 100)
	assert.Equal(t, exit.Engine, exit.Of(err))
	assert.NotEmpty(t, exit.Hints(err))
	assert.NoError(t, admission.Room(inspect.Info{Store: inspect.Containerd}, 51, 0), "it may be anywhere")
}

// TestPasses has every step end with every code, at first and once the boot has waited.
func TestPasses(t *testing.T) {
	t.Parallel()
	tee := admission.Settings{Platform: config.TEE}
	passing := map[bool]map[admission.Step][]exit.Code{false: {}, true: {}}
	for _, waited := range []bool{false, true} {
		for _, step := range append(admission.Steps(), "") {
			for code := range exit.Terminated + 1 {
				if tee.Passes(step, code, waited) {
					passing[waited][step] = append(passing[waited][step], code)
				}
				for _, s := range []admission.Settings{
					{Platform: config.TEE, Supervise: admission.SuperviseOff}, {Platform: config.NONTEE}, {},
				} {
					assert.False(t, s.Passes(step, code, waited), "nobody stays to try again: %v", s)
				}
				s := admission.Settings{Platform: config.NONTEE, Supervise: admission.SuperviseOn}
				assert.Equal(t, tee.Passes(step, code, waited), s.Passes(step, code, waited))
			}
		}
	}
	first := []exit.Code{exit.Unavailable, exit.Refused, exit.Mismatch, exit.Engine}
	assert.Equal(t, map[bool]map[admission.Step][]exit.Code{
		false: {admission.AtPull: first, admission.AtLoad: first, admission.AtCreate: first},
		true: {
			admission.AtPull: first, admission.AtLoad: first, admission.AtCreate: first,
			admission.AtConfig: {exit.Config},
		},
	}, passing)
}
