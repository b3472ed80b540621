package launchtest

import (
	"context"
	"net"
	"strconv"
	"sync"
	"syscall"
)

// Network is a network in memory: in a bubble of testing/synctest, time stands still while a real
// socket is waited for. The zero value is a network on which nobody listens yet.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	ports     int
}

// Listen listens at an address, which port 0 leaves to the network.
func (n *Network) Listen(address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == "0" {
		n.ports++
		port = strconv.Itoa(40_000 + n.ports)
	}
	l := &pipeListener{network: n, address: pipeAddr(net.JoinHostPort(host, port)), incoming: make(chan net.Conn), closed: make(chan struct{})}
	if n.listeners == nil {
		n.listeners = map[string]*pipeListener{}
	}
	if n.listeners[l.address.String()] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: l.address, Err: syscall.EADDRINUSE}
	}
	n.listeners[l.address.String()] = l
	return l, nil
}

// Dial connects to who listens at an address, as net.Dialer's DialContext does.
func (n *Network) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.ports++
	local := pipeAddr(net.JoinHostPort("127.0.0.1", strconv.Itoa(40_000+n.ports)))
	n.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: pipeAddr(address), Err: syscall.ECONNREFUSED}
	if l == nil {
		return nil, refused
	}
	client, server := net.Pipe()
	select {
	case l.incoming <- &pipeConn{server, l.address, local}:
		return &pipeConn{client, local, l.address}, nil
	case <-l.closed:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeListener struct {
	network  *Network
	address  pipeAddr
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		defer l.network.mu.Unlock()
		delete(l.network.listeners, l.address.String())
		close(l.closed)
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.address }

type pipeConn struct {
	net.Conn
	local, remote pipeAddr
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.local }
func (c *pipeConn) RemoteAddr() net.Addr { return c.remote }

type pipeAddr string

func (pipeAddr) Network() string  { return "tcp" }
func (a pipeAddr) String() string { return string(a) }
