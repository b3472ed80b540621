//go:build !race

package registry_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// childReference makes the test binary a process that pulls a reference and prints its peak memory.
const childReference = "REGISTRY_TEST_PULL"

func TestMain(m *testing.M) {
	if ref := os.Getenv(childReference); ref != "" {
		if err := pullInChild(ref); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func pullInChild(reference string) error {
	ref, err := name.NewDigest(reference)
	if err != nil {
		return err
	}
	ctx := context.Background()
	v, err := resolve(ctx, new(registry.Client), ref)
	if err != nil {
		return err
	}
	stream := v.Open(ctx, []int{0})
	defer stream.Close()
	layer, err := stream.Next()
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, layer); err != nil {
		return err
	}
	status, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if peak, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			fmt.Println(strings.TrimSuffix(strings.TrimSpace(peak), " kB"))
			return layer.Close()
		}
	}
	return errors.New("no VmHWM")
}

// TestPeakMemory measures the whole process that pulls, as an operator's tools would: 18 buffers of
// 2 MiB, 9 MiB of the program's own file, which the tests' libraries are part of, and 10 of heap,
// stacks and runtime. How busy the machine is changes less than one of it, because nothing that is
// fetched lies in the heap.
func TestPeakMemory(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10 // KiB
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true})
	ref, err := r.Push("test/big", bigImage(t, 400_000_000))
	require.NoError(t, err)
	program, err := os.Executable()
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), program)
	authority := filepath.Join(t.TempDir(), "authority.pem")
	require.NoError(t, os.WriteFile(authority, r.CertPEM(), 0o600))
	child.Env = append(os.Environ(), childReference+"="+ref.String(), "SSL_CERT_FILE="+authority, "HOME=", "DOCKER_CONFIG=")
	child.Stderr = os.Stderr
	out, err := child.Output()
	require.NoError(t, err)
	peak, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	t.Logf("peak: %d KiB", peak)
	assert.Less(t, peak, limit, "peak RSS of a pull of 400 MB in KiB")
}
