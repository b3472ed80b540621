package main

import v1 "github.com/google/go-containerregistry/pkg/v1"

// Assemble makes an image of three texts, and the files that stand for it.
func Assemble(version, commit, launcher, compose, roots string) (v1.Image, map[string][]byte, error) {
	o := options{Version: version, Commit: commit, Arch: "amd64"}
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	img, err := assemble(o, binaries{[]byte(launcher), []byte(compose), []byte(roots)})
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
