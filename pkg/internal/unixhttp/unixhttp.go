// Package unixhttp makes HTTP clients that speak to one unix socket and to nothing else: no proxy, no redirect, no
// other address, whatever the request's URL says.
package unixhttp

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Client returns a client for the socket at path. With keepAlive false every request has a connection of its own: a
// server may close an idle one just as a request is written, and a request that must not be sent twice can't be repeated.
// Deadlines are the caller's, through the request's context.
func Client(path string, keepAlive bool) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:              nil,
			DisableCompression: true,
			WriteBufferSize:    64 << 10, // of a long body: a chunk and its frame in one system call, not in three
			DisableKeepAlives:  !keepAlive,
			MaxIdleConns:       4,
			IdleConnTimeout:    5 * time.Second,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", path)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
