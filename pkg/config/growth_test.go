package config_test

import (
	"strings"
	"testing"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest/growth"
)

const (
	launcherPart = "[launcher_config]\nimage = \"nearone/mpc-node\"\n"
	nodePart     = launcherPart + "[mpc_node_config]\n"
)

// TestGrowth feeds the reader the worst kinds of text, and the writer what of it is taken.
func TestGrowth(t *testing.T) {
	read := func(document []byte) {
		if c, _, err := config.Parse(file, document, config.TEE); err == nil {
			_, _ = c.NodeConfig(config.TEE, digest.Of(document))
		}
	}
	growth.Check(t, 64<<20, worstTOML, read)
	growth.Check(t, 64<<20, largestTOML, read)
}

// largestTOML is near the bounds on what is taken.
func largestTOML(size int) map[string]string {
	n := 79_000 * size / growth.Large
	array := func(key, one, end string) string {
		return key + " = [" + strings.Repeat(one, n) + "]" + end
	}
	key := nodePart + "k"
	long := strings.Repeat("k", 8*n)
	longTable := nodePart + "[mpc_node_config." + strings.Repeat("k", 1000) + "]\n"
	ports, end := launcherPart+"port_mappings", "\n[mpc_node_config]"
	port := manyLines(n/40, "{ host = 1%d, container = 1 },")
	nested := strings.Repeat("[", 120) + strings.Repeat("]", 120) + ","
	return map[string]string{
		"keys":                      nodePart + manyLines(n/20, "k%d = 0\n"),
		"tables":                    nodePart + manyLines(n/20, "[mpc_node_config.k%d]\n"),
		"tables of an array":        nodePart + strings.Repeat("[[mpc_node_config.k]]\n", n/20),
		"unknown keys":              launcherPart + manyLines(n/20, "k%d = 0\n"),
		"unknown tables":            nodePart + manyLines(n/20, "[k%d]\n"),
		"an array":                  array(key, "0,", ""),
		"an array of arrays":        key + " = [" + strings.Repeat("[],", n/2) + "]",
		"nested arrays":             key + " = [" + strings.Repeat(nested, n/125) + "]",
		"an array under a long key": array(nodePart+long, "0,", ""),
		"an array that isn't known": array(launcherPart+long, "0,", end),
		"inline tables":             key + " = [" + strings.Repeat("{},", n/11) + "]",
		"a wide inline table":       key + " = {" + manyLines(n/20, "k%d = 0, ") + "k = 0}",
		"ports":                     ports + " = [" + port + "]" + end,
		"what isn't a port":         array(ports, "0,", end),
		"tags":                      array(launcherPart+"image_tags", "'a',", end),
		"long paths":                longTable + manyLines(n/30, "k%d = {}\n"),
	}
}

func worstTOML(size int) map[string]string {
	fill := func(open, one, end string) string { return growth.Fill(size, open, one, end) }
	count := func(open, format string) string {
		return growth.FillCounting(size, open, format, "")
	}
	documents := map[string]string{
		"keys":               count(nodePart, "k%d = 0\n"),
		"dotted keys":        count(nodePart, "a.b.c.d.e.f.g.h.%d = 0\n"),
		"a dotted key":       fill(nodePart, "a.", "a = 0"),
		"a long key":         fill(nodePart, "k", " = 0"),
		"a long quoted key":  fill(nodePart+`"`, "é", `" = 0`),
		"equal keys":         fill(nodePart, "k = 0\n", ""),
		"unknown keys":       count(launcherPart, "k%d = 0\n"),
		"tables":             count(nodePart, "[%d]\n"),
		"a deep table":       fill(nodePart+"[", "a.", "a]"),
		"equal tables":       fill(nodePart, "[k]\n", ""),
		"tables of an array": fill(nodePart, "[[k]]\n", ""),
		"array of ports":     fill(launcherPart, "[[launcher_config.port_mappings]]\n", ""),
		"array of sources":   fill(launcherPart, "[[launcher_config.sources]]\n", ""),
		"logins":             count(launcherPart, "[launcher_config.registry_auth.\"%d.io\"]\n"),
		"deep inline tables": fill(nodePart+"k = ", "{k = ", ""),
		"wide inline table":  count(nodePart+"k = {", "k%d = 0, "),
		"comments":           fill(nodePart, "#\n", ""),
		"comments in arrays": fill(nodePart+"k = [", "#\n", "]"),
		"a comment":          fill(nodePart+"#", "x", ""),
		"line breaks":        fill(nodePart, "\r\n", ""),
		"space":              fill(nodePart+"k = ", " ", "0"),
		"escapes":            fill(nodePart+`k = "`, `\u0041`, `"`),
		"control characters": fill(nodePart+`k = "`, `\u0001`, `"`),
		"backslashes":        fill(nodePart+"k = '", `\`, "'"),
		"quotes":             fill(nodePart+"k = '", `"`, "'"),
		"lines":              fill(nodePart+`k = """`, "\n", `"""`),
		"joined lines":       fill(nodePart+`k = """`, "\\\n", `"""`),
		"a long integer":     fill(nodePart+"k = ", "9", ""),
		"underscores":        fill(nodePart+"k = 1", "_1", ""),
		"a long fraction":    fill(nodePart+"k = 1.", "9", ""),
		"a long exponent":    fill(nodePart+"k = 1e", "0", "1"),
		"a long image":       fill("[launcher_config]\nimage = \"", "a/", "a\"\n[mpc_node_config]"),
		"NULs":               fill(nodePart, "\x00", ""),
		"invalid UTF-8":      fill(nodePart+"#", "\xff", ""),
		".env":               count("MPC_ENV=\n", "k%d=0\n"),
		".env, one setting":  fill("", "MPC_ENV=0\n", ""),
		".env, ports":        count("PORTS=", "%d:1,"),
	}
	values := map[string]string{
		"numbers": "0,", "strings": "'',", "booleans": "true,", "dates": "1979-05-27T00:00:00Z,",
		"arrays": "[],", "inline tables": "{},", "deep arrays": "[",
		"nested arrays": strings.Repeat("[", 100) + strings.Repeat("]", 100) + ",",
	}
	for name, value := range values {
		documents[name] = fill(nodePart+"k = [", value, "]")
		long := nodePart + strings.Repeat("k", size/3)
		documents[name+" under a long key"] = fill(long+" = [", value, "]")
		ports := launcherPart + "port_mappings = ["
		documents[name+" as ports"] = fill(ports, value, "]\n[mpc_node_config]")
	}
	return documents
}
