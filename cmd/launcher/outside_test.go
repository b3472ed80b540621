package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// forgery is text that would move the cursor, turn a line around and begin a line like one of ours.
const forgery = "x\n{\"level\":\"ERROR\",\"msg\":\"forged\"}\nerror: forged\ntime=now level=ERROR msg=forged\nhint: run this\n\nhint: and that\r\u009b2J\x1b[2J\u202e\u2028\u200b\xffy"

// requireClean looks for what nobody outside may bring to a terminal.
func requireClean(t *testing.T, text string) {
	t.Helper()
	require.NotEmpty(t, text)
	for _, r := range text {
		require.True(t, r == '\n' || unicode.IsPrint(r), "%q in %q", r, text)
	}
	for line := range strings.Lines(text) {
		require.False(t, strings.HasPrefix(line, "hint: run"), "%s", text)
		require.False(t, strings.HasPrefix(line, "hint: and"), "%s", text)
		require.False(t, strings.HasPrefix(line, "error: forged"), "%s", text)
		require.False(t, strings.HasPrefix(line, "time=now"), "%s", text)
		var record struct{ Msg string }
		if json.Unmarshal([]byte(line), &record) == nil {
			require.NotEqual(t, "forged", record.Msg, "%s", text)
		}
	}
}

// TestNobodyOutsideForgesALine lets a registry and a certificate say the worst there is.
func TestNobodyOutsideForgesALine(t *testing.T) {
	t.Parallel()
	refuses := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"errors": []map[string]string{{"code": "X" + forgery, "message": "why" + forgery}},
		})
	})
	plain := httptest.NewServer(refuses)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(refuses)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{forged(t)}}
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	for name, server := range map[string]*httptest.Server{"registry": plain, "certificate": secure} {
		host := "localhost" + server.URL[strings.LastIndexByte(server.URL, ':'):]
		for _, args := range [][]string{
			{"digest", host + "/x:1", "--log-level", "debug"},
			{"digest", host + "/x:1", "--log-level", "debug", "--log-format", "json"},
		} {
			stdout, stderr, _ := run(t, nil, args...)
			assert.Empty(t, stdout, name)
			requireClean(t, stderr)
			assert.Contains(t, stderr, "run this", "%s is told, on a line of ours", name)
		}
	}
}

// TestNobodyOutsideForgesALineOfABoot lets whatever a boot meets say the worst there is, on stderr
// and in the report.
func TestNobodyOutsideForgesALineOfABoot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		arrange func(t *testing.T, m *launchtest.Machine)
		onStart func(m *launchtest.Machine) // what the workload does before it ends with 1
		compose func(t *testing.T) string
		quiet   bool // what it says isn't told, or not that far
	}{
		"workload": {onStart: func(m *launchtest.Machine) { _ = m.Engine.Log("mpc-node", forgery, forgery) }},
		"engine": {arrange: func(_ *testing.T, m *launchtest.Machine) {
			m.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Times: -1, Status: 500, Message: forgery})
		}},
		"engine's load": {arrange: func(_ *testing.T, m *launchtest.Machine) {
			m.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Status: 500, Message: forgery})
		}},
		"engine's answer": {quiet: true, arrange: func(_ *testing.T, m *launchtest.Machine) {
			m.Engine.Fail(launchtest.EngineFault{Match: "GET /info", Times: -1, Edit: func([]byte) []byte { return []byte(forgery) }})
		}},
		"registry": {arrange: func(_ *testing.T, m *launchtest.Machine) {
			m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Status: 403, Times: -1, Message: forgery})
		}},
		"agent": {arrange: func(t *testing.T, m *launchtest.Machine) {
			require.NoError(t, os.Remove(m.AgentSocket))
			listener, err := net.Listen("unix", m.AgentSocket)
			require.NoError(t, err)
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(w).Encode(map[string]string{"error": "Service not found" + forgery})
			})}
			go server.Serve(listener)
			t.Cleanup(func() { server.Close() })
		}},
		"user config": {quiet: true, arrange: func(t *testing.T, m *launchtest.Machine) {
			name, err := json.Marshal(strings.ToValidUTF8(forgery, ""))
			require.NoError(t, err)
			require.NoError(t, m.Configure(string(name)+" = 1", ""))
		}},
		"compose": {compose: func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "compose")
			words := strings.NewReplacer("'", "", "\\", "").Replace(forgery)
			require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\ncat >&2 <<'END'\n"+words+"\nEND\nexit 1\n"), 0o755))
			return path
		}},
	} {
		for _, format := range []string{"text", "json"} {
			t.Run(name+"/"+format, func(t *testing.T) {
				t.Parallel()
				var m *launchtest.Machine
				o := launchtest.MachineOptions{Images: 1}
				o.Engine.OnStart = func(launchtest.ContainerInfo) (int, bool) {
					if c.onStart != nil {
						c.onStart(m)
					}
					return 1, c.onStart == nil
				}
				var err error
				m, err = launchtest.NewMachine(o)
				require.NoError(t, err)
				defer m.Close()
				compose := os.Args[0] + " compose-double"
				if c.compose != nil {
					compose = c.compose(t)
				}
				if c.arrange != nil {
					c.arrange(t, m)
				}
				environ := []string{
					"PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + m.Digests[0].String(),
					"LAUNCHER_CONFIG=" + m.ConfigFile, "LAUNCHER_SHARED_DIR=" + m.SharedDir, "DOCKER_HOST=" + m.Engine.Host(),
					"LAUNCHER_DSTACK_SOCKET=" + m.AgentSocket, "LAUNCHER_COMPOSE=" + compose, "LOG_LEVEL=debug", "LOG_FORMAT=" + format,
				}
				stdout, stderr, _ := runUntilSupervised(t, environ, "verify")
				requireClean(t, stdout+stderr)
				_, stderr, _ = runUntilSupervised(t, environ, "run")
				requireClean(t, stderr)
				if !c.quiet {
					assert.Contains(t, stderr, "run this", "it is told, on a line of ours")
				}
				report, err := os.ReadFile(m.Shared("launcher/report.json"))
				if name == "engine's answer" {
					require.ErrorIs(t, err, fs.ErrNotExist, "the engine is asked first")
					return
				}
				require.NoError(t, err)
				requireClean(t, string(report))
				assert.Equal(t, name != "workload" && name != "compose" && !c.quiet, strings.Contains(string(report), "run this"))
			})
		}
	}
}

// TestEachMistakeHasALineOfItsOwn: what makes several lines of an error are its types, in a boot too.
func TestEachMistakeHasALineOfItsOwn(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "user_config")
	require.NoError(t, os.WriteFile(config, []byte("[launcher_config]\nx = 1\ny = 1\n"), 0o600))
	_, stderr, code := run(t, nonTEE(t), "run", "--config", config)
	assert.Equal(t, exit.Config, code)
	for _, place := range []string{":1:2: ", ":2:1: ", ":3:1: "} {
		assert.Regexp(t, "(?m)^error: (config: )?"+regexp.QuoteMeta(config+place), stderr)
	}

	require.NoError(t, os.WriteFile(config, []byte("PORTS=1:2\n"), 0o600))
	_, stderr, code = run(t, nonTEE(t), "run", "--config", config)
	assert.Equal(t, exit.Config, code)
	assert.Contains(t, stderr, "\n\n[launcher_config]\nimage_reference = ", "to be copied")
}

// forged returns a certificate whose names are forged lines.
func forged(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"x\nhint: run this\x1b[2J", "y\n\nhint: and that"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
