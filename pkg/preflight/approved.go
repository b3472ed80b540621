package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/exit"
)

// checkApproved reads the approved list. That there is none is what a first boot finds.
func checkApproved(_ context.Context, f *facts) outcome {
	data, err := f.shared.Read(approval.File, approval.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return ok("there is none, so the default digest counts")
	}
	if err != nil {
		return outcome{findings: []Finding{ending(ListUnreadable, exit.Config, fmt.Errorf("approved list: %w", err),
			"the workload writes this file: look at what stands in its place")}}
	}
	list, err := approval.Parse(data)
	if err != nil {
		return fail(ListWrong, fmt.Errorf("%s: %w", approval.File, err))
	}
	f.list = &list
	return ok(fmt.Sprintf("%d approved", len(list.Digests())))
}
