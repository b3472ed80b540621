package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/preflight"
)

const (
	barWidth    = 30
	barInterval = 100 * time.Millisecond
	logInterval = 5 * time.Second
)

// screen is stderr shared by lines of text and a status line below them that is drawn anew after each.
type screen struct {
	mu     sync.Mutex
	w      io.Writer
	status string
}

const clearLine = "\r\x1b[K"

// Write prints whole lines above the status line.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status == "" {
		return s.w.Write(p)
	}
	if _, err := io.WriteString(s.w, clearLine+string(p)+s.status); err != nil {
		return 0, err
	}
	return len(p), nil
}

// show draws the status line; empty removes it.
func (s *screen) show(status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if status == "" && s.status == "" {
		return
	}
	s.status = status
	_, _ = io.WriteString(s.w, clearLine+status) // a bar that can't be drawn is no reason to stop
}

// newProgress returns what the setting asks for.
func newProgress(setting string, terminal bool, s *screen, log *slog.Logger) launch.Progress {
	if setting == "auto" {
		setting = "plain"
		if terminal {
			setting = "bar"
		}
	}
	switch setting {
	case "bar":
		return &progress{interval: barInterval, print: func(m moved, end bool) {
			if end {
				s.show("")
				return
			}
			s.show(m.bar())
		}}
	case "plain":
		return &progress{interval: logInterval, print: func(m moved, end bool) {
			message := "loading"
			if end {
				message = "loading ended"
			}
			log.Info(message, "fetched", preflight.Size(m.sent), "of", preflight.Size(m.total), "percent", m.percent(), "rate", preflight.Size(m.rate())+"/s", "left", m.left())
		}}
	}
	return nil
}

// progress prints how far a load is, at most once an interval, and at its end.
type progress struct {
	interval time.Duration
	print    func(m moved, end bool)

	mu    sync.Mutex
	moved moved
	last  time.Time
}

// Missing begins with nothing of total bytes.
func (p *progress) Missing(total int64, unpacking bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	p.moved = moved{total: total, unpacking: unpacking, since: p.last}
}

// Sent counts n more bytes that were fetched and handed to the engine.
func (p *progress) Sent(n int64) { p.add(&p.moved.sent, n) }

// Unpacked counts n more bytes that the engine has unpacked.
func (p *progress) Unpacked(n int64) { p.add(&p.moved.unpacked, n) }

func (p *progress) add(to *int64, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*to += n
	if time.Since(p.last) >= p.interval {
		p.last = time.Now()
		p.print(p.moved, false)
	}
}

// Stop prints the end.
func (p *progress) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.print(p.moved, true)
}

// moved is how much of what was moved since when. Each byte counts once when the engine has taken it, and once more when it is unpacked,
// if the engine tells that.
type moved struct {
	total, sent, unpacked int64
	unpacking             bool
	since                 time.Time
}

// work returns what is done and what there is to do in all.
func (m moved) work() (done, all int64) {
	if !m.unpacking {
		return min(m.sent, m.total), m.total
	}
	return min(m.sent, m.total) + min(m.unpacked, m.total), 2 * m.total
}

func (m moved) percent() int64 {
	done, all := m.work()
	if all == 0 {
		return 100
	}
	return 100 * done / all
}

// rate is how many bytes a second were fetched so far.
func (m moved) rate() int64 { return per(m.sent, time.Since(m.since)) }

func per(n int64, d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64(float64(n) / d.Seconds())
}

func (m moved) left() string {
	done, all := m.work()
	pace := per(done, time.Since(m.since))
	if pace == 0 {
		return "unknown"
	}
	return (time.Duration((all-done)/pace) * time.Second).String()
}

func (m moved) bar() string {
	filled := int(m.percent() * barWidth / 100)
	return fmt.Sprintf("[%s%s] %3d%% %s of %s, %s/s, %s left", strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled),
		m.percent(), preflight.Size(m.sent), preflight.Size(m.total), preflight.Size(m.rate()), m.left())
}
