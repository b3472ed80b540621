package main_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
)

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "7B": 7, "500kB": 500e3, "500KB": 500e3, "8MB": 8e6, "2GB": 2e9,
		"4KiB": 4 << 10, "16MiB": 16 << 20, "1GiB": 1 << 30, "9223372036854775807": 1<<63 - 1,
	} {
		got, err := main.ParseSize(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{
		"", "MB", "-1", "+1", "1.5MB", "8 MB", "8mb", "8M", "8Mi", "8MBB", "0x10", "1e6", "8MB/s",
		"9223372036854775808", "9223372036854776kB",
	} {
		_, err := main.ParseSize(text)
		assert.Error(t, err, text)
	}
}

func TestWaits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"0": 0, "0s": 0, "90s": 90 * time.Second, "2h": 2 * time.Hour} {
		got, err := main.ParseWait(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "10", "-1s", "10 m", "1d", "soon"} {
		_, err := main.ParseWait(text)
		assert.Error(t, err, text)
	}
}
