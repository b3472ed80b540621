// Command registry serves the images of OCI layouts, for the end-to-end test of the launcher's image. There it runs in a container, in
// the network namespace of what pulls from it, so that it is a registry on loopback.
//
//	registry ADDRESS REPOSITORY=DIRECTORY…
//
// It keeps all in memory, speaks plain http and asks for no credentials: it is for tests.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: registry ADDRESS REPOSITORY=DIRECTORY…")
	}
	handler := registry.New()
	for _, arg := range args[1:] {
		repository, dir, _ := strings.Cut(arg, "=")
		if err := fill(handler, repository, dir); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	return http.Serve(listener, handler)
}

// fill puts what a layout holds where a push would put it.
func fill(handler http.Handler, repository, dir string) error {
	var index v1.IndexManifest
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	put := func(method, path, contentType string, data []byte) error {
		req := httptest.NewRequest(method, path, bytes.NewReader(data))
		req.Header.Set("Content-Type", contentType)
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, req)
		if answer.Code >= 300 {
			return fmt.Errorf("%s %s: %d %s", method, path, answer.Code, answer.Body)
		}
		return nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if data, err = os.ReadFile(file); err != nil {
			return err
		}
		upload := "/v2/" + repository + "/blobs/uploads/?digest=sha256:" + filepath.Base(file)
		if err := put(http.MethodPost, upload, "application/octet-stream", data); err != nil {
			return err
		}
	}
	for _, m := range index.Manifests {
		if data, err = os.ReadFile(filepath.Join(dir, "blobs", "sha256", m.Digest.Hex)); err != nil {
			return err
		}
		if err := put(http.MethodPut, "/v2/"+repository+"/manifests/"+m.Digest.String(), string(m.MediaType), data); err != nil {
			return err
		}
	}
	return nil
}
