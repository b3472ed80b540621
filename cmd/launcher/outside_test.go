package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"math/big"
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
)

// forgery is text that would move the cursor, turn a line around and begin a line like one of ours.
const forgery = "x\nhint: run this\n\nhint: and that\r\u009b2J\x1b[2J\u202e\u2028\u200b\xffy"

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
	assert.Contains(t, stderr, "\n\n[launcher_config]\nimage = ", "to be copied")
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
