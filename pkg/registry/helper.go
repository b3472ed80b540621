package registry

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"

	"tee-launcher/pkg/internal/child"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/waiting"
)

// helperPrefix begins the name of every credential helper; a Docker config has the rest.
const helperPrefix = "docker-credential-"

// helperSuffix is a name and not a path: that could lead to where anybody may have put a program.
var helperSuffix = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// askHelper asks a credential helper for a key, in Docker's own protocol. Nothing that it says is
// told, in errors neither: it may be a secret.
func askHelper(ctx context.Context, suffix, key string,
	forbidden []string) (*credentials.Credentials, *helperError) {
	if !helperSuffix.MatchString(suffix) {
		return nil, &helperError{helperPrefix + sanitize.Line(suffix, 60), "is no name of a program"}
	}
	path := child.Search("", forbidden)
	program := path.Look(helperPrefix + suffix)
	if program == "" {
		return nil, &helperError{helperPrefix + suffix, "isn't on PATH"}
	}
	defer waiting.For(ctx, helperPrefix+suffix)()
	found, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env = append(os.Environ(), "PATH="+path.String())
		return &helper{cmd}
	}, key)
	switch {
	case err == nil:
		return found, nil
	case credentials.IsErrCredentialsNotFound(err):
		return &credentials.Credentials{}, nil
	case ctx.Err() != nil:
		return nil, &helperError{helperPrefix + suffix, "didn't answer in time"}
	}
	return nil, &helperError{helperPrefix + suffix, "failed"}
}

// helperError is a helper that is of no use.
type helperError struct{ helper, why string }

func (e *helperError) Error() string { return e.helper + " " + e.why }

// helper is a client.Program that ends with its context, and whose stderr isn't ours.
type helper struct{ cmd *exec.Cmd }

// Input implements client.Program.
func (h *helper) Input(from io.Reader) { h.cmd.Stdin = from }

// Output implements client.Program.
func (h *helper) Output() ([]byte, error) {
	var said bounded
	h.cmd.Stdout = &said
	err := child.Run(h.cmd)
	return said.data, err
}

// bounded takes as much as any helper has to say.
type bounded struct{ data []byte }

func (b *bounded) Write(p []byte) (int, error) {
	const limit = 1 << 20
	if len(b.data)+len(p) > limit {
		return 0, errors.New("a helper says too much")
	}
	b.data = append(b.data, p...)
	return len(p), nil
}
