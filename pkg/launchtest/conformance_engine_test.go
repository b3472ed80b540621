//go:build e2e

package launchtest_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// TestConformanceOfTheEngine runs the conformance table on a real engine, that of hack/with-engine.
func TestConformanceOfTheEngine(t *testing.T) {
	socket, ok := strings.CutPrefix(os.Getenv("LAUNCHER_E2E_DOCKER_HOST"), "unix://")
	require.True(t, ok, "LAUNCHER_E2E_DOCKER_HOST is not set: run make e2e")
	conforms(t, socket, nodeProgram(t))
}

// TestConformanceOfCompose runs on that engine what the compose double is held to: with the double,
// and with the real Compose.
func TestConformanceOfCompose(t *testing.T) {
	host := os.Getenv("LAUNCHER_E2E_DOCKER_HOST")
	real := strings.Fields(os.Getenv("LAUNCHER_E2E_COMPOSE"))
	require.NotEmpty(t, real, "LAUNCHER_E2E_COMPOSE is not set: run make e2e")
	program := nodeProgram(t)
	for name, run := range map[string]*composeRun{"double": doubleRun(t, host, ""),
		"real": newComposeRun(t, real, host, "")} {
		t.Run(name, func(t *testing.T) {
			s := newSubject(t, strings.TrimPrefix(host, "unix://"))
			s.program = program
			composes(t, s, run)
		})
	}
}

// nodeProgram builds the program that stands in for the node.
func nodeProgram(t *testing.T) []byte {
	t.Helper()
	img, err := launchtest.NodeImage(t.Context(), "go")
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	content, err := layers[len(layers)-1].Uncompressed()
	require.NoError(t, err)
	defer content.Close()
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		require.False(t, errors.Is(err, io.EOF), "no program in the image")
		require.NoError(t, err)
		if header.Name == "app/mpc-node" {
			program, err := io.ReadAll(r)
			require.NoError(t, err)
			return program
		}
	}
}
