package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/waiting"
)

const (
	// patience is how long nothing may be said while something is waited for.
	patience = 5 * time.Second
	// longestSilence is how long it is at most after that has been said more than once.
	longestSilence = 30 * time.Second
	// redraw is how often the line on a terminal is drawn.
	redraw = 200 * time.Millisecond
	// pace is the time over which a rate is taken, and leastPace what it takes to tell the time that
	// is left.
	pace, leastPace = 15 * time.Second, 5 * time.Second
	// longestLeft is what is worth telling.
	longestLeft = 48 * time.Hour
	// narrow and wide bound the bar, in columns.
	narrow, wide = 10, 40
)

// console is stderr: whole lines, and where it is a terminal a line below them that says what is
// going on and is drawn anew. Elsewhere lines of the log say that.
//
// Whatever takes longer than its patience is said, with what is waited for.
type console struct {
	w        io.Writer
	log      *slog.Logger
	board    waiting.Board
	shows    string        // bar, plain or none
	patience time.Duration // 0: patience

	mu     sync.Mutex
	status string // the line that is drawn; empty: none
	spoke  time.Time
	told   string        // what was last said to be waited for
	quiet  time.Duration // how long nothing may be said next
	at     activity
	moved  *moved // nil: nothing moves
}

// activity is what a program is at.
type activity struct {
	step       string
	number, of int // of steps; 0 where there are none
	since      time.Time
}

// begin says what the program is at from now on, and, until it is over, what it waits for.
func (c *console) begin(ctx context.Context, step string) (_ context.Context, over func()) {
	if c.patience == 0 {
		c.patience = patience
	}
	c.mu.Lock()
	c.spoke, c.quiet = time.Now(), c.patience
	c.at = activity{step: step, since: time.Now()}
	c.mu.Unlock()
	every := c.patience / 5
	if c.shows == "bar" {
		every = redraw
	}
	ticker := time.NewTicker(every)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-ticker.C:
				c.tick()
			case <-stop:
				return
			}
		}
	}()
	return waiting.With(ctx, &c.board), func() {
		ticker.Stop()
		close(stop)
		<-stopped
		c.mu.Lock()
		defer c.mu.Unlock()
		c.draw("")
	}
}

const clearLine = "\r\x1b[K"

// Write prints whole lines above the one that is drawn.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spoke = time.Now()
	if c.status == "" {
		return c.w.Write(p)
	}
	if _, err := io.WriteString(c.w, clearLine+string(p)+c.status); err != nil {
		return 0, err
	}
	return len(p), nil
}

// draw shows a line below the others; an empty one removes it.
func (c *console) draw(status string) {
	if status == c.status {
		return
	}
	c.status = status
	_, _ = io.WriteString(c.w, clearLine+status) // a line that can't be drawn is no reason to stop
}

// tick says what is going on, if it is time to.
func (c *console) tick() {
	c.mu.Lock()
	now := time.Now()
	if c.moved != nil {
		c.moved.sample(now)
	}
	what, since := c.wait()
	if c.shows == "bar" {
		c.draw(c.line(now, what, since))
		c.mu.Unlock()
		return
	}
	silent := now.Sub(c.spoke)
	var message string
	var attributes []any
	switch {
	case c.moved != nil && c.shows == "plain" && now.Sub(c.moved.told) >= c.patience:
		c.moved.told = now
		message, attributes = c.moved.record(now)
		if c.moved.stalled(now) >= c.patience {
			attributes = append(attributes, "waiting_for", what)
		}
	case c.moved != nil && c.moved.stalled(now) < c.patience:
	case what == "":
	default:
		if c.told != what {
			c.told, c.quiet = what, c.patience
		}
		// While the workload is looked after, silence is as it should be.
		supervising := c.at.step == string(admission.AtSupervise)
		if silent < c.quiet || supervising && now.Sub(since) < c.patience {
			break
		}
		c.quiet = min(2*c.quiet, max(longestSilence, c.patience))
		message, attributes = "waiting", []any{"for", what, "waited", now.Sub(since).Round(time.Second)}
	}
	attributes = append(attributes, c.at.attributes()...)
	c.mu.Unlock()
	if message != "" {
		c.log.Info(message, attributes...)
	}
}

// wait returns what is waited for; nothing while the workload is looked after, unless something is
// in the way of that.
func (c *console) wait() (what string, since time.Time) {
	what, since = c.board.Longest()
	switch {
	case what != "":
	case c.at.step == string(admission.AtSupervise):
	default:
		what, since = c.at.doing(), c.at.since
	}
	return sanitize.Line(what, 200), since
}

// Step implements launch.Progress.
func (c *console) Step(name string, number, of int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = activity{name, number, of, time.Now()}
}

func (a activity) attributes() []any {
	if a.of == 0 {
		return nil
	}
	return []any{"step", a.step, "number", a.number, "of", a.of}
}

// doing is what a step does, for people.
func (a activity) doing() string {
	switch a.step {
	case string(admission.AtPull):
		return "resolving the image"
	case string(admission.AtLoad):
		return "loading the image"
	}
	return a.step
}

// Missing implements launch.Progress: a load begins with nothing of total bytes.
func (c *console) Missing(total int64, unpacking bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.moved = &moved{total: total, unpacking: unpacking, since: now, told: now, last: now}
	c.moved.sample(now)
}

// Fetched implements launch.Progress.
func (c *console) Fetched(n int64) { c.count(func(m *moved) { m.fetched += n }) }

// Sent implements launch.Progress.
func (c *console) Sent(n int64) { c.count(func(m *moved) { m.sent += n }) }

// Unpacked implements launch.Progress.
func (c *console) Unpacked(n int64) { c.count(func(m *moved) { m.unpacked += n }) }

func (c *console) count(add func(*moved)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moved != nil {
		add(c.moved)
		c.moved.last = time.Now()
	}
}

// Stop implements launch.Progress.
func (c *console) Stop(done bool) {
	c.mu.Lock()
	m := c.moved
	c.moved = nil
	attributes := c.at.attributes()
	c.mu.Unlock()
	if m == nil || c.shows != "plain" {
		return
	}
	took := time.Since(m.since).Round(time.Millisecond)
	if done {
		c.log.Info("loaded", append([]any{"fetched", size(m.fetched), "took", took}, attributes...)...)
		return
	}
	c.log.Info("loading failed", append([]any{"fetched", size(m.fetched), "total", size(m.total),
		"percent", m.percent(), "took", took}, attributes...)...)
}

// size is a number of bytes, which people read in words.
type size int64

func (s size) String() string { return preflight.Size(int64(s)) }

// speed is a number of bytes a second.
type speed int64

func (s speed) String() string { return preflight.Size(int64(s)) + "/s" }

// moved is how much of what was moved since when. Each byte counts once when it has arrived, and
// once more when the engine has unpacked it, or, where that isn't told, has taken it.
type moved struct {
	total, fetched, sent, unpacked int64
	unpacking                      bool // the engine tells how far it has unpacked
	since, last, told              time.Time
	samples                        []sample // of the last while, the oldest first
}

type sample struct {
	at            time.Time
	fetched, done int64
}

func (m *moved) sample(now time.Time) {
	done, _ := m.work()
	m.samples = append(m.samples, sample{now, m.fetched, done})
	for len(m.samples) > 1 && now.Sub(m.samples[1].at) >= pace {
		m.samples = m.samples[1:]
	}
}

// work returns what is done and what there is to do in all.
func (m *moved) work() (done, all int64) {
	taken := m.sent
	if m.unpacking {
		taken = m.unpacked
	}
	return min(m.fetched, m.total) + min(taken, m.total), 2 * m.total
}

// percent is under 100: that it is done says another line.
func (m *moved) percent() int64 {
	done, all := m.work()
	if all == 0 {
		return 99
	}
	return min(100*done/all, 99)
}

// stalled is for how long nothing has moved.
func (m *moved) stalled(now time.Time) time.Duration { return now.Sub(m.last) }

func (m *moved) doing() string {
	if m.fetched < m.total {
		return "downloading"
	}
	return "unpacking"
}

// rate is how many bytes a second arrive.
func (m *moved) rate(now time.Time) int64 {
	return per(m.fetched-m.samples[0].fetched, now.Sub(m.samples[0].at))
}

func per(n int64, d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64(float64(n) / d.Seconds())
}

// left is how long it will take. False: nobody can tell yet.
func (m *moved) left(now time.Time) (time.Duration, bool) {
	done, all := m.work()
	span := now.Sub(m.samples[0].at)
	pace := per(done-m.samples[0].done, span)
	if span < leastPace || pace <= 0 || m.stalled(now) >= leastPace {
		return 0, false
	}
	seconds := (all - done) / pace
	if seconds > int64(longestLeft/time.Second) {
		return 0, false
	}
	return time.Duration(seconds) * time.Second, true
}

// record is a line of the log.
func (m *moved) record(now time.Time) (message string, attributes []any) {
	attributes = []any{
		"fetched", size(m.fetched), "total", size(m.total), "percent", m.percent(), "rate", speed(m.rate(now)),
	}
	if left, known := m.left(now); known {
		attributes = append(attributes, "left", left)
	}
	return m.doing(), attributes
}

// line is what is drawn on a terminal: as much as fits. The last column stays free, because many
// terminals go on to the next line behind it.
func (c *console) line(now time.Time, what string, since time.Time) string {
	columns, _ := columnsOf(c.w)
	room := columns - 1
	head := ""
	if c.at.of > 0 {
		head = fmt.Sprintf("%d/%d ", c.at.number, c.at.of)
	}
	m := c.moved
	if m == nil || m.stalled(now) >= c.patience {
		if what == "" {
			return ""
		}
		percent := ""
		if m != nil {
			percent = fmt.Sprintf("%d%% ", m.percent())
		}
		waited := now.Sub(since).Truncate(time.Second)
		if waited == 0 {
			return cut(head+percent+what, room)
		}
		return cut(fmt.Sprintf("%s%swaiting for %s, %s", head, percent, what, waited), room)
	}
	percent := fmt.Sprintf("%d%%", m.percent())
	sizes := fmt.Sprintf("%s of %s", size(min(m.fetched, m.total)), size(m.total))
	rate := speed(m.rate(now)).String()
	parts := []string{sizes, rate}
	if left, known := m.left(now); known {
		parts = append(parts, left.String()+" left")
	}
	full := fmt.Sprintf("%s %s", percent, strings.Join(parts, ", "))
	doing := head + m.doing() + " "
	if bar := min(room-utf8.RuneCountInString(doing+full)-3, wide); bar >= narrow {
		filled := int(m.percent()) * bar / 100
		return doing + "[" + strings.Repeat("=", filled) + strings.Repeat(" ", bar-filled) + "] " + full
	}
	for n := len(parts); n >= 0; n-- {
		shorter := doing + percent
		if n > 0 {
			shorter += " " + strings.Join(parts[:n], ", ")
		}
		if utf8.RuneCountInString(shorter) <= room {
			return shorter
		}
	}
	return cut(head+percent, room)
}

// cut makes a line fit.
func cut(line string, room int) string {
	runes := []rune(line)
	if len(runes) <= room {
		return line
	}
	return string(runes[:max(room-1, 0)]) + "…"
}

// columnsOf returns how many columns w has where it is a terminal, and else how many are usual.
func columnsOf(w io.Writer) (columns int, terminal bool) {
	f, ok := w.(*os.File)
	if !ok || !isTerminal(f) {
		return usualColumns, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return usualColumns, true
	}
	return int(size.Col), true
}

// usualColumns is the width of every terminal.
const usualColumns = 80
