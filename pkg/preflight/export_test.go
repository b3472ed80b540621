package preflight

// Judge holds an app-compose document against the verifier's rules.
func Judge(document []byte) ([]Finding, error) { return judge(document) }
