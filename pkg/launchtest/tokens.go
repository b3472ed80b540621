package launchtest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// TokenServer is what real registries can have in front of them: an https server on 127.0.0.1 that
// gives a signed token to whoever
// knows user and password.
type TokenServer struct {
	authority *authority
	listener  net.Listener
	server    *http.Server
	user      string
	password  string
	given     atomic.Int64
}

// The names that a registry's configuration has to have of a TokenServer.
const (
	TokenIssuer  = "test issuer"
	TokenService = "test registry"
)

// NewTokenServer starts a token server.
func NewTokenServer(user, password string) (*TokenServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &TokenServer{authority: newAuthority(false), listener: listener, user: user,
		password: password}
	s.server = &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0),
		ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.authority.leaf},
			MinVersion: tls.VersionTLS12}}
	go s.server.ServeTLS(listener, "", "")
	return s, nil
}

// Port returns where it listens.
func (s *TokenServer) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// Given returns how many tokens it gave.
func (s *TokenServer) Given() int64 { return s.given.Load() }

// Close ends it.
func (s *TokenServer) Close() error { return s.server.Close() }

// WriteFiles writes what a registry with this token server needs: the authority of both, and a
// certificate with its key for 127.0.0.1,
// localhost and *.test.
func (s *TokenServer) WriteFiles(dir string) (authority, certificate, key string, err error) {
	leaf := s.authority.leaf
	authority, certificate, key = filepath.Join(dir, "authority.pem"),
		filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	return authority, certificate, key, errors.Join(
		os.WriteFile(authority, s.authority.pem, 0o644),
		os.WriteFile(certificate,
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}), 0o644),
		os.WriteFile(key,
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY",
				Bytes: must(x509.MarshalPKCS8PrivateKey(leaf.PrivateKey))}), 0o600),
	)
}

// ServeHTTP gives a token for what is asked, as far as that is pulling.
func (s *TokenServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	user, password, _ := q.BasicAuth()
	if q.Method != http.MethodGet { // as those servers do that have no OAuth
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if user != s.user || password != s.password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	access := []any{}
	for _, scope := range q.URL.Query()["scope"] {
		if repository, ok := strings.CutPrefix(strings.TrimSuffix(scope, ":pull"),
			"repository:"); ok {
			access = append(access, map[string]any{"type": "repository", "name": repository,
				"actions": []string{"pull"}})
		}
	}
	s.given.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": s.sign(access), "expires_in": 60})
}

// sign makes a token as registries check it: a JWT with the certificate of its signer.
func (s *TokenServer) sign(access []any) string {
	part := func(value any) string { return base64.RawURLEncoding.EncodeToString(must(json.Marshal(value))) }
	now := time.Now()
	text := part(map[string]any{"typ": "JWT", "alg": "ES256",
		"x5c": []any{s.authority.leaf.Certificate[0]}}) + "." +
		part(map[string]any{"iss": TokenIssuer, "sub": s.user, "aud": TokenService,
			"jti": rand.Text(), "access": access,
			"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(),
			"exp": now.Add(time.Minute).Unix()})
	hash := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.authority.leaf.PrivateKey.(*ecdsa.PrivateKey), hash[:])
	must(0, err)
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}
