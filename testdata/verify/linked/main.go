// Command linked is all of preflight and nothing else, for a test that looks at what the linker found reachable from it.
package main

import (
	"context"
	"fmt"

	"tee-launcher/pkg/preflight"
)

func main() {
	report, err := preflight.Run(context.Background(), preflight.Options{})
	fmt.Println(report, err)
	rendered, err := preflight.Render(context.Background(), preflight.Options{})
	fmt.Println(rendered, err)
}
