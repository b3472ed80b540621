package launchtest_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

func TestTokenServer(t *testing.T) {
	t.Parallel()
	s, err := launchtest.NewTokenServer("somebody", "secret")
	require.NoError(t, err)
	defer s.Close()
	authority, certificate, key, err := s.WriteFiles(t.TempDir())
	require.NoError(t, err)
	_, err = tls.LoadX509KeyPair(certificate, key)
	require.NoError(t, err)
	text, err := os.ReadFile(authority)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(text))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots},
		DisableKeepAlives: true}
	ask := func(method, password string) *http.Response {
		q, err := http.NewRequest(method,
			fmt.Sprintf("https://127.0.0.1:%d/token?service=x&scope=repository:a/b:pull", s.Port()),
			nil)
		require.NoError(t, err)
		q.SetBasicAuth("somebody", password)
		answer, err := transport.RoundTrip(q)
		require.NoError(t, err)
		t.Cleanup(func() { answer.Body.Close() })
		return answer
	}
	assert.Equal(t, http.StatusUnauthorized, ask("GET", "wrong").StatusCode)
	assert.Equal(t, http.StatusNotFound, ask("POST", "secret").StatusCode)
	assert.Zero(t, s.Given())

	answer := ask("GET", "secret")
	require.Equal(t, http.StatusOK, answer.StatusCode)
	assert.EqualValues(t, 1, s.Given())
	var given struct{ Token string }
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&given))
	parts := strings.Split(given.Token, ".")
	require.Len(t, parts, 3)
	decoded := make([][]byte, 3)
	for i, part := range parts {
		decoded[i], err = base64.RawURLEncoding.DecodeString(part)
		require.NoError(t, err)
	}
	var head struct{ X5c [][]byte }
	require.NoError(t, json.Unmarshal(decoded[0], &head))
	leaf, err := x509.ParseCertificate(head.X5c[0])
	require.NoError(t, err)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots})
	assert.NoError(t, err, "its signer is the registry's")
	hash := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r, v := new(big.Int).SetBytes(decoded[2][:32]), new(big.Int).SetBytes(decoded[2][32:])
	assert.True(t, ecdsa.Verify(leaf.PublicKey.(*ecdsa.PublicKey), hash[:], r, v), "signed")
	var claims struct {
		Access []struct {
			Name    string
			Actions []string
		}
	}
	require.NoError(t, json.Unmarshal(decoded[1], &claims))
	require.Len(t, claims.Access, 1)
	assert.Equal(t, "a/b", claims.Access[0].Name)
	assert.Equal(t, []string{"pull"}, claims.Access[0].Actions)
}
