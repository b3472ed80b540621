package preflight

import (
	"context"
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/approval"
)

// checkSelection decides which digest would run, and why.
func checkSelection(_ context.Context, f *facts) outcome {
	if f.list == nil && f.settings.DefaultDigest == (v1.Hash{}) {
		return outcome{unknown: "the default digest isn't known"}
	}
	var found []Finding
	if f.list == nil && f.config.Override != nil {
		found = append(found, warning(OverrideIgnored, "mpc_hash_override says nothing while there is no approved list: the default digest runs"))
	}
	decision, err := approval.Select(f.list, f.config.Override, f.settings.DefaultDigest)
	var refused *approval.Error
	if errors.As(err, &refused) {
		return fail(OverrideRefused, err)
	}
	if err != nil {
		return fail(ListWrong, err)
	}
	f.decision = &decision
	return ok(decision.Digest.String()+" ("+string(decision.Reason)+")", found...)
}
