package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/waiting"
)

// required is an environment in which a command line needs no further setting.
func required(more ...string) []string {
	return append([]string{"PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + zeros}, more...)
}

// lines is what somebody reads while somebody else writes.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// take returns what was written since the last time.
func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.buf.Reset()
	return l.buf.String()
}

// TestProgressInALog: a line every five seconds, whether something moves or not, without a time
// left before there can be one, and never with 100 percent.
func TestProgressInALog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out lines
		c := main.NewConsole(t, &out, nil, "pull")
		defer c.Over()
		c.Step("load", 2, 2)
		c.Missing(200_000_000, true)
		time.Sleep(3 * time.Second)
		c.Fetched(30_000_000)
		time.Sleep(2100 * time.Millisecond)
		first := out.take()
		assert.Contains(t, first, `msg=downloading fetched="30.0 MB" total="200.0 MB" percent=7 rate=`)
		assert.Contains(t, first, "step=load number=2 of=2")

		// Nothing more comes.
		over := waiting.For(c.Context, "registry.example")
		time.Sleep(5 * time.Second)
		stalled := out.take()
		assert.Contains(t, stalled, "msg=downloading")
		assert.Contains(t, stalled, "waiting_for=registry.example")
		time.Sleep(15 * time.Second)
		stalled = out.take()
		assert.Equal(t, 3, strings.Count(stalled, "msg=downloading"), "%s", stalled)
		assert.Contains(t, stalled, `rate="0 B/s"`)
		assert.NotContains(t, stalled, "left=", "nothing moves")
		over()

		for range 10 {
			time.Sleep(time.Second)
			c.Fetched(10_000_000)
		}
		moving := out.take()
		assert.Contains(t, moving, "left=")
		assert.NotContains(t, moving, "waiting_for")

		c.Fetched(200_000_000) // some of it a second time
		c.Unpacked(200_000_000)
		time.Sleep(5 * time.Second)
		assert.Contains(t, out.take(), `msg=unpacking fetched=`)
		c.Stop(false)
		failed := out.take()
		assert.Contains(t, failed, `msg="loading failed"`)
		assert.NotContains(t, failed, "percent=100")
		assert.NotContains(t, failed, "\x1b")
		assert.NotContains(t, failed, "\r")
	})
}

// TestATimeIsLeftOnceItCanBeTold: not from the first bytes.
func TestATimeIsLeftOnceItCanBeTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := main.NewConsole(t, io.Discard, nil, "pull")
		defer c.Over()
		c.Step("load", 2, 2)
		c.Missing(100_000_000, true)
		for range 3 {
			time.Sleep(time.Second)
			c.Fetched(1_000_000)
		}
		assert.NotContains(t, c.Line(), "left")
		for range 7 {
			time.Sleep(time.Second)
			c.Fetched(1_000_000)
		}
		assert.Regexp(t, `, 3m\d+s left$`, c.Line())
	})
}

// TestProgressOnATerminal: one line that is drawn anew, below those of the log, that fits, and that
// is gone at the end.
func TestProgressOnATerminal(t *testing.T) {
	t.Parallel()
	for _, columns := range []int{20, 40, 80, 200} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			t.Parallel()
			pty := main.NewPty(t)
			pty.Resize(t, columns)
			c := main.NewConsole(t, pty.Terminal, []string{"TERM=xterm"}, "pull")
			defer c.Over()
			c.Step("pull", 1, 2)
			fits(t, c, columns)
			c.Step("load", 2, 2)
			over := waiting.For(c.Context, "a host with a very long name.registry.example that nobody would want")
			fits(t, c, columns)
			over()
			c.Missing(200_000_000, true)
			c.Fetched(100_000_000)
			c.Unpacked(48_000_000)
			assert.Contains(t, fits(t, c, columns), "37%")

			for _, resized := range []int{21, 120, columns} {
				pty.Resize(t, resized)
				assert.Contains(t, fits(t, c, resized), "37%", "resized to %d", resized)
			}
			c.Fetched(100_000_000)
			c.Unpacked(200_000_000)
			assert.Contains(t, fits(t, c, columns), "99%", "it isn't over")
		})
	}
}

// TestTheLineBelowTheLog is about what a real terminal gets.
func TestTheLineBelowTheLog(t *testing.T) {
	t.Parallel()
	pty := main.NewPty(t)
	pty.Resize(t, 80)
	screen := screenOf(t, pty)
	c := main.NewConsole(t, pty.Terminal, []string{"TERM=xterm"}, "pull")
	c.Step("load", 2, 2)
	c.Missing(200_000_000, true)
	c.Fetched(100_000_000)
	c.Tick()
	c.Log().Info("a line of the log")
	c.Over()
	c.Log().Info("the next line")
	pty.Terminal.Close()
	shown := screen()
	assert.Contains(t, shown, "\r\x1b[K2/2 downloading [===")
	assert.Regexp(t, `\r\x1b\[Ktime=\S+ level=INFO msg="a line of the log" version=\S+ commit=.*\r?\n2/2 downloading`, shown,
		"the line of the log stands above, and the other is drawn again")
	assert.Regexp(t, `\r\x1b\[Ktime=\S+ level=INFO msg="the next line"\r\n$`, shown, "it is gone")
}

// fits returns the line that would be drawn now.
func fits(t *testing.T, c main.Console, columns int) string {
	t.Helper()
	line := c.Line()
	assert.NotEmpty(t, line)
	assert.Less(t, utf8.RuneCountInString(line), columns, "%q", line)
	return line
}

// screenOf reads what a pseudo-terminal is sent. The function that it returns waits for the end.
func screenOf(t *testing.T, pty main.Pty) (shown func() string) {
	t.Helper()
	all := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(pty.Master) // ends with an error once nobody has the terminal
		all <- string(data)
	}()
	return func() string { return <-all }
}

// TestADumbTerminal gets lines, and so does whoever wants JSON.
func TestADumbTerminal(t *testing.T) {
	t.Parallel()
	for _, environ := range [][]string{{"TERM=dumb"}, {"TERM=xterm", "LOG_FORMAT=json"}} {
		pty := main.NewPty(t)
		screen := screenOf(t, pty)
		c := main.NewConsole(t, pty.Terminal, environ, "pull", "--progress", "bar")
		c.Missing(200_000_000, false)
		c.Fetched(200_000_000)
		c.Tick()
		c.Stop(true)
		c.Over()
		pty.Terminal.Close()
		shown := screen()
		assert.Contains(t, shown, "loaded")
		assert.NotContains(t, shown, "\x1b")
		assert.Equal(t, strings.Count(shown, "\r"), strings.Count(shown, "\r\n"))
	}
}

// TestSilenceIsAMessage: what takes long is said, ever more rarely, and neither the supervision nor
// a stop of it is taken for a wait.
func TestSilenceIsAMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out lines
		c := main.NewConsole(t, &out, required("LOG_FORMAT=json", "LAUNCHER_PROGRESS=none"), "run")
		defer c.Over()
		c.Step("gate", 3, 10)
		time.Sleep(2 * time.Second)
		over := waiting.For(c.Context, "the Docker engine: stopping container mpc-node")
		time.Sleep(2 * time.Second)
		assert.Empty(t, out.take())
		time.Sleep(2 * time.Second)
		var record struct {
			Level, Msg, For, Step string
			Waited                float64
			Number, Of            int
		}
		require.NoError(t, json.Unmarshal([]byte(out.take()), &record))
		assert.Equal(t, "waiting", record.Msg)
		assert.Equal(t, "the Docker engine: stopping container mpc-node", record.For)
		assert.Equal(t, "gate", record.Step)
		assert.Equal(t, []int{3, 10}, []int{record.Number, record.Of})
		assert.InDelta(t, 3, record.Waited, 1)
		time.Sleep(10 * time.Minute)
		assert.InDelta(t, 10*time.Minute/(30*time.Second), strings.Count(out.take(), "waiting"), 3)
		over()

		c.Step("supervise", 10, 10)
		time.Sleep(24 * time.Hour)
		assert.Empty(t, out.take(), "it looks after the workload")
		over = waiting.For(c.Context, "the Docker engine: inspecting container mpc-node")
		time.Sleep(7 * time.Second)
		over()
		assert.Contains(t, out.take(), "inspecting container mpc-node")
	})
}
