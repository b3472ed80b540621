package main_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
)

// TestProgressOnATerminal: one line that is drawn anew, below the lines of the log, and gone at the end.
func TestProgressOnATerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p, screen := main.NewProgress("auto", true, &out)
	p.Missing(200_000_000, true)
	p.Sent(100_000_000)
	p.Unpacked(50_000_000)
	assert.Contains(t, out.String(), "\r\x1b[K[=======")
	assert.Contains(t, out.String(), " 37% 100.0 MB of 200.0 MB, ")
	out.Reset()
	_, err := fmt.Fprintln(screen, "a line of the log")
	require.NoError(t, err)
	assert.Regexp(t, `^\r\x1b\[Ka line of the log\n\[=+ +\]  37% `, out.String(), "the line stands above the bar, which is drawn again")
	out.Reset()
	p.Stop()
	assert.Equal(t, "\r\x1b[K", out.String())
	out.Reset()
	_, err = fmt.Fprintln(screen, "the next line")
	require.NoError(t, err)
	assert.Equal(t, "the next line\n", out.String())
}

// TestProgressInALog: lines of the log, without a control character.
func TestProgressInALog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p, _ := main.NewProgress("auto", false, &out)
	p.Missing(200_000_000, false)
	p.Sent(200_000_000)
	p.Stop()
	assert.Contains(t, out.String(), `msg=loading fetched="200.0 MB" of="200.0 MB" percent=100`)
	assert.Contains(t, out.String(), `msg="loading ended"`)
	assert.NotContains(t, out.String(), "\x1b")
	assert.NotContains(t, out.String(), "\r")

	p, _ = main.NewProgress("none", true, &out)
	assert.Nil(t, p)
}
