package launchtest

import (
	"net"
	"sync"
	"time"
)

// link is a way that carries so many bytes per second. Rate 0 carries all at once.
type link struct {
	rate int64

	mu   sync.Mutex
	free time.Time // when it has carried all that was booked
}

// book books the way for n bytes, from idleSince on if nothing is before them, and returns when they have arrived.
func (l *link) book(n int, idleSince time.Time) time.Time {
	if l.rate == 0 {
		return time.Time{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(idleSince) {
		l.free = idleSince
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	return l.free
}

// slowListener makes connections of a link: each carries so many bytes per second, all together so many, and what a client
// says needs a round trip until it is heard and answered.
type slowListener struct {
	net.Listener
	rate      int64
	total     *link
	roundTrip time.Duration
}

func (l *slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || l.rate == 0 && l.total.rate == 0 && l.roundTrip == 0 {
		return c, err
	}
	return &slowConn{Conn: c, own: link{rate: l.rate}, total: l.total, roundTrip: l.roundTrip, quiet: true}, nil
}

type slowConn struct {
	net.Conn
	own       link
	total     *link
	roundTrip time.Duration

	mu    sync.Mutex
	quiet bool // nothing was heard since we spoke last
}

func (c *slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	first := c.quiet && n > 0
	if n > 0 {
		c.quiet = false
	}
	c.mu.Unlock()
	if first {
		time.Sleep(c.roundTrip)
	}
	return n, err
}

func (c *slowConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.quiet = true
	c.mu.Unlock()
	const (
		piece = 64 << 10
		// slack is what may be made up for: sleeping a little too long in each piece must not make one connection slower
		// than its link, and a client that doesn't read must not save up what it could have had.
		slack = 10 * time.Millisecond
	)
	written := 0
	idleSince := time.Now()
	for len(p) > 0 {
		n := min(len(p), piece)
		arrived := c.own.book(n, idleSince)
		if t := c.total.book(n, idleSince); t.After(arrived) {
			arrived = t
		}
		time.Sleep(time.Until(arrived))
		n, err := c.Conn.Write(p[:n])
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
		idleSince = time.Now().Add(-slack)
	}
	return written, nil
}
