package preflight

import "tee-launcher/pkg/admission"

// Judge holds an app-compose document against the verifier's rules.
func Judge(document []byte) ([]Finding, error) { return judge(document) }

// NextBoot returns the containers as the next boot finds them.
func NextBoot(now []admission.Container) []admission.Container { return nextBoot(now) }
