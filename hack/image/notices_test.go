package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/hack/image"
)

const (
	apache = "Apache License\n   Version 2.0, January 2004"
	mit    = "Permission is hereby granted, free of charge, to any person\r\nobtaining a copy"
	bsd2   = "Redistribution and use in source and binary forms, with or without\nmodification"
	bsd3   = bsd2 + "\nNeither … may be used to endorse\nor promote products"
)

// TestNotices: what is linked, and what is above it, is named with its texts; what isn't known ends
// the build.
func TestNotices(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		files map[string]string // of packages a and a/b; c isn't linked
		want  string            // licences, or what is wrong
	}{
		{"one", map[string]string{"LICENSE": apache}, "Apache-2.0"},
		{"British", map[string]string{"LICENCE.md": mit}, "MIT"},
		{"two clauses", map[string]string{"COPYING": bsd2}, "BSD-2-Clause"},
		{"three clauses", map[string]string{"License.txt": bsd3}, "BSD-3-Clause"},
		{"two in one file", map[string]string{"LICENSE": mit + "\n\n" + apache}, "Apache-2.0 AND MIT"},
		{"of a package", map[string]string{"LICENSE": mit, "a/b/LICENSE": bsd3, "a/LICENSE": mit},
			"BSD-3-Clause AND MIT"},
		{"what isn't linked", map[string]string{"LICENSE": mit, "c/LICENSE": apache}, "MIT"},
		{"documentation, code", map[string]string{"LICENSE": mit, "LICENSE.docs": "?",
			"a/license.go": "package a"}, "MIT"},
		{"a notice", map[string]string{"LICENSE": apache, "NOTICE": "By us."}, "Apache-2.0"},
		{"none", map[string]string{"NOTICE": "By us.", "README": mit}, "m v1: no licence"},
		{"unknown", map[string]string{"LICENSE": mit, "a/LICENSE": "All rights reserved."},
			"m v1: a/LICENSE: none of the licences that are known"},
		{"four clauses", map[string]string{"LICENSE": bsd3 + "\nAll advertising materials"},
			"m v1: LICENSE: none of the licences that are known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			packages := []string{filepath.Join(dir, "a", "b"), filepath.Join(dir, "a")}
			for _, p := range append(packages, filepath.Join(dir, "c")) {
				require.NoError(t, os.MkdirAll(p, 0o755))
			}
			for name, text := range c.files {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
			}
			got, err := main.Notices("m", "v1", dir, packages...)
			if strings.HasPrefix(c.want, "m v1: ") {
				assert.EqualError(t, err, c.want)
				return
			}
			require.NoError(t, err)
			parts := strings.SplitN(got, "\n\n", 3)
			require.Len(t, parts, 3)
			assert.Equal(t, "m v1 "+c.want, parts[1])
			if _, has := c.files["NOTICE"]; has {
				assert.Contains(t, got, "\nm@v1/NOTICE\n\nBy us.\n")
			}
			assert.NotContains(t, got, "m@v1/c/")
			assert.NotContains(t, got, "\r")
		})
	}
}
