package main

import v1 "github.com/google/go-containerregistry/pkg/v1"

// Assemble makes an image of four texts, and the files that stand for it.
func Assemble(version, commit, launcher, compose, roots, notices string) (v1.Image, map[string][]byte, error) {
	o := options{Version: version, Commit: commit, Arch: "amd64"}
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	img, err := assemble(o, binaries{[]byte(launcher), []byte(compose), []byte(roots), []byte(notices)})
	if err != nil {
		return nil, nil, err
	}
	files, err := content(img, version)
	named := map[string][]byte{}
	for _, f := range files {
		named[f.path] = f.data
	}
	return img, named, err
}

// Notices are those of one module in a directory, with packages in directories below it.
func Notices(name, version, dir string, packages ...string) (string, error) {
	text, err := notices([]module{{Path: name, Version: version, Dir: dir, packages: packages}})
	return string(text), err
}
