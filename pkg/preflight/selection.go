package preflight

import "context"

// checkSelection decides which digest would run, and why.
func checkSelection(_ context.Context, f *facts) outcome {
	if f.list == nil && f.options.DefaultDigest.IsZero() && len(f.options.Mistakes) > 0 {
		return outcome{unknown: "the default digest isn't known"}
	}
	var found []Finding
	if f.list == nil && f.config.Override != nil {
		found = append(found, warning(OverrideIgnored, "mpc_hash_override says nothing while there is no approved list: the default digest runs"))
	}
	known := f.boots()
	if !f.next && f.events != nil {
		known.Log = &f.events.Log
	}
	decision, err := known.Select(f.list, f.config.Override)
	if err != nil {
		return refuse("", err)
	}
	f.decision = &decision
	return ok(decision.Digest.String()+" ("+string(decision.Reason)+")", found...)
}
