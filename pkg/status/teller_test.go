package status_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/status"
)

// TestTheTellerTells whenever something changes, and every so often.
func TestTheTellerTells(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lines, kept := make(chan string, 100), make(chan string, 100)
		var place atomic.Pointer[int]
		place.Store(ptr(0))
		teller := &status.Teller{Every: 10 * time.Minute, Print: func(line string) { lines <- line }}
		said := func() (last status.Status) {
			t.Helper()
			require.Len(t, lines, 1)
			object, ok := strings.CutPrefix(<-lines, status.Prefix)
			require.True(t, ok)
			last, err := status.Parse([]byte(object))
			require.NoError(t, err)
			return last
		}
		s := running()
		teller.Tell(s)
		assert.Nil(t, said().Approved, "nobody knows the list yet")
		teller.Tell(s)
		assert.Empty(t, lines, "nothing has changed")

		teller.Use(func(m []byte) { kept <- string(m) }, func(d digest.Digest) *int {
			assert.Equal(t, *s.Digest, d)
			return place.Load()
		})
		assert.Len(t, kept, 1)
		<-kept
		teller.Tell(s)
		first := said()
		assert.Equal(t, 0, *first.Approved)
		assert.Equal(t, time.Now().UTC(), *first.ApprovedSince)

		s.Phase, s.Percent = "load", ptr(1)
		teller.Tell(s)
		assert.Equal(t, 1, *said().Percent)
		s.Percent = ptr(50)
		teller.Tell(s)
		assert.Empty(t, lines, "how far it has come is told every so often")
		assert.Equal(t, 50, *teller.Current().Percent)

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); teller.Run(ctx) }()
		time.Sleep(9*time.Minute + 30*time.Second)
		synctest.Wait()
		assert.Empty(t, lines)
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Equal(t, 50, *said().Percent)
		assert.Equal(t, *first.ApprovedSince, *teller.Current().ApprovedSince, "since it is there")

		for len(kept) > 0 {
			<-kept
		}
		place.Store(ptr(3))
		time.Sleep(time.Minute)
		synctest.Wait()
		later := said()
		assert.Equal(t, 3, *later.Approved, "the list has others by now")
		assert.Greater(t, *later.ApprovedSince, *first.ApprovedSince)
		require.Len(t, kept, 1)
		assert.Contains(t, <-kept, "launcher_approved_place 3\n")
		place.Store(ptr(status.NotListed))
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Equal(t, status.NotListed, *said().Approved)
		place.Store(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Nil(t, said().Approved)

		cancel()
		<-ended
		time.Sleep(time.Hour)
		assert.Empty(t, lines, "it has ended")
	})
}

// get asks at a path.
func get(t *testing.T, client *http.Client, base, path string) (code int, body string) {
	t.Helper()
	response, err := client.Get(base + path)
	require.NoError(t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(data)
}

func serve(t *testing.T, teller *status.Teller, l net.Listener) {
	t.Helper()
	ended := make(chan error)
	go func() { ended <- teller.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		assert.NoError(t, <-ended)
	})
}

func TestServe(t *testing.T) {
	t.Parallel()
	var teller status.Teller
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	serve(t, &teller, l)
	base, client := "http://"+l.Addr().String(), new(http.Client)
	for _, c := range []struct {
		change func(*status.Status)
		code   int
		body   string
	}{
		{func(*status.Status) {}, 200, "ok\n"},
		{func(s *status.Status) { s.Measured = ptr(false) }, 503, "8 measurement\n"},
		{func(s *status.Status) { s.Measured = nil }, 200, "ok\n"},
		{func(s *status.Status) { s.Phase = "load" }, 503, "4 unavailable\n"},
		{func(s *status.Status) { s.Error = &status.Error{Code: 9} }, 503, "9 workload\n"},
	} {
		s := running()
		c.change(&s)
		teller.Tell(s)
		code, body := get(t, client, base, "/healthz")
		assert.Equal(t, c.code, code)
		assert.Equal(t, c.body, body)
	}
	code, body := get(t, client, base, "/metrics")
	assert.Equal(t, 200, code)
	assert.Equal(t, string(teller.Current().Metrics()), body)
	for _, path := range []string{"/", "/status"} {
		code, _ = get(t, client, base, path)
		assert.Equal(t, 404, code, path)
	}
	response, err := client.Post(base+"/metrics", "text/plain", strings.NewReader("x"))
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, 405, response.StatusCode)
}

// TestAConnectionIsBounded: who holds all of them has them for a short while, however busy he is.
func TestAConnectionIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var teller status.Teller
		teller.Tell(running())
		var network launchtest.Network
		l, err := network.Listen("node:80")
		require.NoError(t, err)
		dial := func() net.Conn {
			c, err := network.Dial(t.Context(), "tcp", "node:80")
			require.NoError(t, err)
			return c
		}
		ended := make(chan error)
		go func() { ended <- teller.Serve(l) }()
		begin := time.Now()
		const held = 8
		over := make(chan time.Duration, held)
		for range held {
			c := dial()
			go func() { // a byte now and then
				for {
					if _, err := c.Write([]byte("G")); err != nil {
						over <- time.Since(begin)
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}()
		}
		ninth := dial() // once it is let in
		request, err := http.NewRequest(http.MethodGet, "http://x/healthz", nil)
		require.NoError(t, err)
		require.NoError(t, request.Write(ninth))
		answer, err := io.ReadAll(ninth)
		require.NoError(t, err)
		assert.Contains(t, string(answer), "200 OK")
		assert.Contains(t, string(answer), "Connection: close", "one request each")
		assert.GreaterOrEqual(t, time.Since(begin), 4*time.Second, "it had to wait")
		for range held {
			assert.LessOrEqual(t, <-over, 6*time.Second)
		}
		l.Close()
		assert.NoError(t, <-ended)
	})
}

func TestSelf(t *testing.T) {
	t.Parallel()
	temporary := t.TempDir()
	_, err := status.Self(t.Context(), temporary)
	assert.ErrorIs(t, err, os.ErrNotExist)
	for range 2 { // the second in the place of one that was killed
		var teller status.Teller
		teller.Tell(full())
		l, err := status.Listen(temporary)
		require.NoError(t, err)
		info, err := os.Lstat(filepath.Join(temporary, "launcher", "status.sock"))
		require.NoError(t, err)
		assert.Equal(t, os.ModeSocket|0o600, info.Mode())
		ended := make(chan error)
		go func() { ended <- teller.Serve(l) }()
		got, err := status.Self(t.Context(), temporary)
		require.NoError(t, err)
		assert.Equal(t, teller.Current(), got)
		l.Close()
		assert.NoError(t, <-ended)
		_, err = status.Self(t.Context(), temporary)
		assert.Error(t, err, "nobody answers any more")
	}
	entries, err := os.ReadDir(filepath.Join(temporary, "launcher"))
	require.NoError(t, err)
	assert.Len(t, entries, 1)
}

// TestSomebodyElsesDirectory is neither used nor asked.
func TestSomebodyElsesDirectory(t *testing.T) {
	t.Parallel()
	for name, arrange := range map[string]func(dir string) error{
		"open to others": func(dir string) error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return os.Chmod(dir, 0o777)
		},
		"a link": func(dir string) error { return os.Symlink(filepath.Dir(dir), dir) },
		"a file": func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
	} {
		temporary := t.TempDir()
		require.NoError(t, arrange(filepath.Join(temporary, "launcher")), name)
		_, err := status.Listen(temporary)
		assert.Error(t, err, name)
		_, err = status.Self(t.Context(), temporary)
		assert.Error(t, err, name)
		_, err = os.Lstat(filepath.Join(temporary, "status.sock"))
		assert.ErrorIs(t, err, os.ErrNotExist, name)
	}
}
