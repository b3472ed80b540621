package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// parseSize reads a number of bytes such as 0, 500000, 8MB or 16MiB.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "kKMGiB")
	factor, known := map[string]int64{
		"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[strings.TrimPrefix(text, digits)]
	n, err := strconv.ParseUint(digits, 10, 63)
	if !known || err != nil || int64(n) > math.MaxInt64/factor {
		return 0, fmt.Errorf("%.100q is no number of bytes: write one such as 500kB, 8MB or 16MiB", text)
	}
	return int64(n) * factor, nil
}

// parseWait reads a time that isn't negative.
func parseWait(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%.100q is no time to wait: write one such as 0s, 90s, 10m or 2h", text)
	}
	return d, nil
}
