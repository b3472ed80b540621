package inspect_test

import (
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/launchtest/growth"
)

// TestGrowth has an engine answer with the worst kinds of JSON.
func TestGrowth(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	var answer []byte
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(answer)
	})}
	go server.Serve(listener)
	defer server.Close()
	engine, err := inspect.New("unix://" + socket)
	require.NoError(t, err)
	ctx := t.Context()
	for around, ask := range map[string]func(){
		`{"Mounts":%s}`:               func() { _, _ = engine.Container(ctx, "x") },
		`%s`:                          func() { _, _ = engine.Published(ctx) },
		`[{"RepoTags":%s}]`:           func() { _, _ = engine.Labelled(ctx, "x") },
		`{"Actor":{"Attributes":%s}}`: func() { _, _ = engine.Events(ctx, "x", time.Time{}) },
	} {
		growth.Check(t, 512<<20, growth.JSON(around), func(document []byte) {
			answer = document
			ask()
		})
	}
	growth.Check(t, 64<<20, func(size int) map[string]string {
		return map[string]string{"events": growth.Fill(size, "", "{}\n", "")}
	}, func(document []byte) {
		answer = document
		_, _ = engine.Events(ctx, "x", time.Time{})
	})
	growth.Check(t, 64<<20, func(size int) map[string]string {
		return map[string]string{
			"frames":       growth.Fill(size, "", "\x01\x00\x00\x00\x00\x00\x00\x01x", ""),
			"empty frames": growth.Fill(size, "", "\x01\x00\x00\x00\x00\x00\x00\x00", ""),
			"a long frame": growth.Fill(size, "\x01\x00\x00\x00\xff\xff\xff\xff", "x", ""),
		}
	}, func(document []byte) {
		answer = document
		_, _ = engine.Logs(ctx, "x", 10, 1<<16)
	})
}
