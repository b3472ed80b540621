package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// module is a module of somebody else, and where the packages of it are that are linked.
type module struct {
	Path, Version, Dir string
	packages           []string
}

// linked lists the modules whose packages a program is made of on some system.
func (g *goTool) linked(ctx context.Context, dir string, target []string, pkg string) ([]module, error) {
	out, err := g.run(ctx, dir, target, "list", "-deps", "-json=Dir,Module", pkg)
	if err != nil {
		return nil, err
	}
	modules := map[string]module{}
	for packages := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir    string
			Module *struct {
				module
				Main    bool
				Replace *module
			}
		}
		err := packages.Decode(&p)
		if errors.Is(err, io.EOF) {
			return slices.Collect(maps.Values(modules)), nil
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Module == nil || p.Module.Main { // the standard library, and ours
			continue
		}
		m := p.Module.module
		if p.Module.Replace != nil {
			m = *p.Module.Replace
		}
		m.packages = append(modules[m.name()].packages, p.Dir)
		modules[m.name()] = m
	}
}

func (m module) name() string { return m.Path + " " + m.Version }

// standard is the standard library, as a module of its own.
func (g *goTool) standard(ctx context.Context) (module, error) {
	root, err := g.run(ctx, ".", nil, "env", "GOROOT")
	dir := strings.TrimSpace(string(root))
	return module{Path: "std", Version: toolchain, Dir: dir, packages: []string{dir}}, err
}

// notices names the licences of modules, and holds their texts and whatever else they want to be
// passed on. hack/sbom reads the list. A licence that isn't known, or none, is an error: somebody
// has to look at it first.
func notices(modules []module) ([]byte, error) {
	var list []string
	from := map[string][]string{} // text → where it stands
	for _, m := range modules {
		texts, err := m.texts()
		if err != nil {
			return nil, err
		}
		ids := map[string]bool{}
		for name, text := range texts {
			if isLicence.MatchString(filepath.Base(name)) {
				found := licencesIn(text)
				if len(found) == 0 {
					return nil, fmt.Errorf("%s: %s: none of the licences that are known", m.name(), name)
				}
				for _, id := range found {
					ids[id] = true
				}
			}
			where := m.Path + "@" + m.Version + "/" + name
			if !slices.Contains(from[text], where) { // it is in both programs
				from[text] = append(from[text], where)
			}
		}
		if len(ids) == 0 {
			return nil, fmt.Errorf("%s: no licence", m.name())
		}
		list = append(list, m.name()+" "+strings.Join(slices.Sorted(maps.Keys(ids)), " AND "))
	}
	slices.Sort(list)
	var sections []string
	for text, files := range from {
		slices.Sort(files)
		sections = append(sections, strings.Join(files, "\n")+"\n\n"+text+"\n")
	}
	slices.Sort(sections)
	const line = "\n----------------------------------------------------------------------\n"
	return []byte("What others wrote and is part of this: modules, their versions and licences, and the texts.\n" +
		"`go mod download MODULE@VERSION` fetches the source of each; std is Go's own library.\n\n" +
		strings.Join(slices.Compact(list), "\n") + "\n" + line +
		strings.Join(sections, line)), nil
}

var (
	isLicence = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)([._-]|$)`)
	isNotice  = regexp.MustCompile(`(?i)^(notice|patents|copyright)([._-]|$)`)
)

// texts returns the licences and notices of a module, by file: of its packages that are linked, and
// of all that is above them. Documentation has licences of its own, and isn't linked.
func (m module) texts() (map[string]string, error) {
	texts := map[string]string{}
	seen := map[string]bool{}
	for _, dir := range m.packages {
		for ; !seen[dir]; dir = filepath.Dir(dir) {
			seen[dir] = true
			entries, err := os.ReadDir(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				ext := filepath.Ext(e.Name())
				wanted := isLicence.MatchString(e.Name()) || isNotice.MatchString(e.Name())
				if !wanted || !e.Type().IsRegular() || ext == ".docs" || ext == ".go" {
					continue
				}
				data, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					return nil, err
				}
				name, err := filepath.Rel(m.Dir, filepath.Join(dir, e.Name()))
				if err != nil {
					return nil, err
				}
				text := strings.ReplaceAll(string(data), "\r\n", "\n")
				texts[filepath.ToSlash(name)] = strings.Trim(text, "\n")
			}
			if dir == m.Dir {
				break
			}
		}
	}
	return texts, nil
}

// licencesIn returns the SPDX names of the licences that a text is, or holds.
func licencesIn(text string) []string {
	words := strings.Join(strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}), " ")
	var found []string
	for _, known := range []struct{ id, says, not string }{
		{"Apache-2.0", "apache license version 2 0", ""},
		{"BSD-2-Clause", "redistribution and use in source and binary forms with or without",
			"may be used to endorse or promote products"},
		{"BSD-3-Clause", "may be used to endorse or promote products", "advertising materials"},
		{"ISC", "permission to use copy modify and or distribute this software for any purpose", ""},
		{"ISC", "permission to use copy modify and distribute this software for any purpose", ""},
		{"MIT", "permission is hereby granted free of charge to any person obtaining a copy", ""},
		{"MPL-2.0", "mozilla public license version 2 0", ""},
	} {
		says := strings.Contains(words, known.says)
		if says && (known.not == "" || !strings.Contains(words, known.not)) {
			found = append(found, known.id)
		}
	}
	return found
}
