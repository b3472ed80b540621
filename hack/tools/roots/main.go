// Command roots prints the CA roots of the launcher's image as PEM, from the module that this one pins. hack/image runs it.
//
// It leaves out roots that Go trusts under a condition: a PEM file can't say one, and without it more would be trusted than Go does.
// The first line names module, version and sum, so that what the file is can be read from the file.
package main

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const module = "golang.org/x/crypto/x509roots/fallback"

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(out io.Writer) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("built without modules")
	}
	w := bufio.NewWriter(out)
	for _, dep := range info.Deps {
		if dep.Path == module && dep.Replace == nil && dep.Sum != "" {
			fmt.Fprintf(w, "# %s %s %s\n", dep.Path, dep.Version, dep.Sum)
		}
	}
	if w.Buffered() == 0 {
		return fmt.Errorf("%s: no version with a sum", module)
	}
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n# %s\n", cert.Subject)
		if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return err
		}
	}
	return w.Flush()
}
