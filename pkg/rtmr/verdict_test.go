package rtmr_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest/growth"
	"tee-launcher/pkg/rtmr"
)

// verdicts holds documents with what the NEAR verifier's own code says of them.
const verdicts = "../../testdata/verdicts"

func goodAppCompose(t testing.TB) string {
	return string(readFile(t, filepath.Join(verdicts, "00-good-app-compose.json")))
}

// verdict says what a document comes to: empty if it is accepted.
func verdict(document []byte) string {
	log, err := rtmr.Parse(document)
	if err == nil {
		_, err = log.Accepted()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func appComposeVerdict(document []byte) string {
	faults, err := rtmr.JudgeAppCompose(document)
	if err != nil {
		return err.Error()
	}
	if len(faults) > 0 {
		return fmt.Sprint(faults)
	}
	return ""
}

func TestVerdictsOfTheVerifier(t *testing.T) {
	t.Parallel()
	var want map[string]string
	require.NoError(t, json.Unmarshal(readFile(t, filepath.Join(verdicts, "verdicts.json")), &want))
	files, err := filepath.Glob(filepath.Join(verdicts, "*.json"))
	require.NoError(t, err)
	require.Len(t, files, len(want)+1, "each document has a verdict")
	for name, want := range want {
		judge := verdict
		if strings.HasPrefix(name, "A") || name == "00-good-app-compose.json" {
			judge = appComposeVerdict
		}
		got := judge(readFile(t, filepath.Join(verdicts, name)))
		assert.Equal(t, want == "accept", got == "", "%s: want %s, got %q", name, want, got)
	}
}

// variant is one change of a good document, and whether the verifier's types allow it.
type variant struct {
	name   string
	change func(map[string]any)
	accept bool
}

// member returns what becomes of a member in every form that JSON has. Accepted are those named.
func member(path, name string, accepted ...string) []variant {
	forms := map[string]any{
		"missing": nil, "null": nil, "true": true, "false": false, "0": 0, "-1": -1,
		"2": 2, "2.0": json.RawMessage("2.0"), "2e0": json.RawMessage("2e0"), "4294967296": 1 << 32,
		"text": "text", "empty text": "", "[]": []any{}, `["x"]`: []any{"x"}, "{}": map[string]any{},
		"31 bytes": strings.Repeat("ab", 31), "32 bytes": strings.Repeat("ab", 32),
		"47 bytes": strings.Repeat("ab", 47), "48 bytes": strings.Repeat("ab", 48),
		"49 bytes": strings.Repeat("ab", 49), "48 bytes prefixed": "0x" + strings.Repeat("ab", 47),
		"48 bytes in capitals": strings.Repeat("AB", 48), "32 bytes in capitals": strings.Repeat("AB", 32),
	}
	var variants []variant
	for form, value := range forms {
		variants = append(variants, variant{path + name + " " + form, func(d map[string]any) {
			if form == "missing" {
				delete(d, name)
				return
			}
			d[name] = value
		}, slices.Contains(accepted, form)})
	}
	return variants
}

func anyText(more ...string) []string {
	return append(more, "text", "empty text", "31 bytes", "32 bytes", "47 bytes", "48 bytes", "49 bytes",
		"48 bytes prefixed", "48 bytes in capitals", "32 bytes in capitals")
}

func anything() []string {
	return anyText("missing", "null", "true", "false", "0", "-1", "2", "2.0", "2e0", "4294967296",
		"[]", `["x"]`, "{}")
}

// appComposeVariants tells the verifier's type once more, and what it demands of the values.
func appComposeVariants() []variant {
	return slices.Concat(
		member("", "manifest_version", "2"),
		member("", "name", anyText()...),
		member("", "docker_compose_file", anyText()...),
		member("", "runner"),
		member("", "kms_enabled", "missing", "false"),
		member("", "gateway_enabled", "false"),
		member("", "tproxy_enabled", "missing", "null", "false"),
		member("", "public_logs", "true"),
		member("", "public_sysinfo", "true"),
		member("", "local_key_provider_enabled", "true"),
		member("", "no_instance_id", "true"),
		member("", "allowed_envs", "missing", "[]"),
		member("", "key_provider_id", anyText("missing", "null")...),
		member("", "secure_time", "missing", "null", "true", "false"),
		member("", "public_tcbinfo", "missing", "null", "true", "false"),
		member("", "pre_launch_script", "missing", "null"),
		member("", "init_script", "missing", "null"),
		member("", "bash_script", "missing", "null"),
		member("", "features", anything()...),
		member("", "key_provider", anything()...),
		member("", "storage_fs", anything()...),
		member("", "swap_size", anything()...),
		member("", "port_policy", anything()...),
		member("", "docker_config", anything()...),
		member("", "requirements", "missing"),
		member("", "", "missing"),
	)
}

func TestEveryFormOfAnAppCompose(t *testing.T) {
	t.Parallel()
	for _, v := range appComposeVariants() {
		document := changed(t, []byte(goodAppCompose(t)), v.change)
		got := appComposeVerdict(document)
		assert.Equal(t, v.accept, got == "", "%s: %q", v.name, got)
	}
}

func changed(t testing.TB, document []byte, change func(map[string]any)) []byte {
	t.Helper()
	var d map[string]any
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	require.NoError(t, dec.Decode(&d))
	change(d)
	b, err := json.Marshal(d)
	require.NoError(t, err)
	return b
}

// tcbInfoVariants are changes of a tcb_info document that has an entry of register 0 in front.
func tcbInfoVariants() []variant {
	firmware := func(change func(map[string]any)) func(map[string]any) {
		return func(d map[string]any) { change(d["event_log"].([]any)[0].(map[string]any)) }
	}
	all := slices.Concat(
		member("", "mrtd", "48 bytes", "48 bytes in capitals"),
		member("", "rtmr0", "48 bytes", "48 bytes in capitals"),
		member("", "rtmr1", "48 bytes", "48 bytes in capitals"),
		member("", "rtmr2", "48 bytes", "48 bytes in capitals"),
		member("", "rtmr3"),
		member("", "os_image_hash", "empty text", "32 bytes", "32 bytes in capitals"),
		member("", "compose_hash"),
		member("", "device_id", "32 bytes", "32 bytes in capitals"),
		member("", "app_compose"),
		member("", "event_log"),
		member("", "something", anything()...),
	)
	for _, v := range slices.Concat(
		member("entry: ", "imr", "0", "2"),
		member("entry: ", "event_type", "0", "2"),
		member("entry: ", "digest", "48 bytes", "48 bytes in capitals"),
		member("entry: ", "event", anyText()...),
		member("entry: ", "event_payload", anyText()...),
		member("entry: ", "version", anything()...),
		member("entry: ", "preimage", anything()...),
	) {
		all = append(all, variant{v.name, firmware(v.change), v.accept})
	}
	return all
}

// goodTCBInfo is an accepted document with an entry of register 0 in front.
func goodTCBInfo(t testing.TB) []byte {
	return changed(t, readFile(t, filepath.Join(verdicts, "00-good-tcb.json")), func(d map[string]any) {
		d["event_log"] = append([]any{map[string]any{
			"imr": 0, "event_type": 2147483659, "digest": strings.Repeat("22", 48), "event": "", "event_payload": "zz",
		}}, d["event_log"].([]any)...)
	})
}

func TestEveryFormOfATCBInfo(t *testing.T) {
	t.Parallel()
	good := goodTCBInfo(t)
	require.Empty(t, verdict(good))
	for _, v := range tcbInfoVariants() {
		got := verdict(changed(t, good, v.change))
		assert.Equal(t, v.accept, got == "", "%s: %q", v.name, got)
	}
}

// publicData is what a node serves, with a document's register in its quote.
func publicData(t testing.TB, tcbInfo []byte) []byte {
	t.Helper()
	log, err := rtmr.Parse(tcbInfo)
	require.NoError(t, err)
	quote := append(unhex(t, quoteOf(t))[:632], 0, 0, 0, 0) // without its signature
	copy(quote[520:], unhex(t, log.Replay().String()))
	list := func(b []byte) []int {
		numbers := make([]int, len(b))
		for i := range b {
			numbers[i] = int(b[i])
		}
		return numbers
	}
	const key = "ed25519:J992NeWhuaJXeUVJcDCVwfS5j1G26B5aJDUZ8iuBCYdc"
	b, err := json.Marshal(map[string]any{
		"near_signer_public_key": key, "near_p2p_public_key": key, "near_responder_public_keys": []string{key},
		"tee_participant_info": map[string]any{"Dstack": map[string]any{
			"quote": list(quote),
			"collateral": map[string]any{
				"pck_crl_issuer_chain": "x", "root_ca_crl": list(quote[:9]), "pck_crl": []int{0, 255},
				"tcb_info_issuer_chain": "x\u0000", "tcb_info": "{}", "tcb_info_signature": []int{},
				"qe_identity_issuer_chain": "", "qe_identity": "{}", "qe_identity_signature": []int{1},
				"pck_certificate_chain": nil,
			},
			"tcb_info": json.RawMessage(tcbInfo),
		}},
	})
	require.NoError(t, err)
	return b
}

// info is an answer of the agent.
func info(t testing.TB, tcbInfo []byte) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"app_id": "00", "instance_id": "", "app_cert": "", "app_name": "x", "device_id": "", "os_image_hash": "",
		"key_provider_info": "", "compose_hash": "", "vm_config": "", "tcb_info": string(tcbInfo),
	})
	require.NoError(t, err)
	return b
}

func TestEveryFormOfAnInfo(t *testing.T) {
	t.Parallel()
	good := goodTCBInfo(t)
	require.Empty(t, verdict(info(t, good)))
	for _, v := range slices.Concat(
		member("", "app_id", anyText()...), member("", "instance_id", anyText()...),
		member("", "app_cert", anyText()...), member("", "app_name", anyText()...),
		member("", "device_id", anyText()...), member("", "key_provider_info", anyText()...),
		member("", "compose_hash", anyText()...), member("", "os_image_hash", anyText("missing")...),
		member("", "vm_config", anything()...), member("", "tcb_info"),
	) {
		got := verdict(changed(t, info(t, good), v.change))
		assert.Equal(t, v.accept, got == "", "%s: %q", v.name, got)
	}
	for _, v := range tcbInfoVariants() {
		got := verdict(info(t, changed(t, good, v.change)))
		accept := v.accept || v.name == "os_image_hash missing" // the SDK has a default for it
		assert.Equal(t, accept, got == "", "tcb_info: %s: %q", v.name, got)
	}
	asObject := changed(t, info(t, good), func(d map[string]any) { d["tcb_info"] = json.RawMessage(good) })
	assert.Empty(t, verdict(asObject), "an object in place of a string")
}

func TestEveryFormOfPublicData(t *testing.T) {
	t.Parallel()
	good := goodTCBInfo(t)
	document := publicData(t, good)
	log, err := rtmr.Parse(document)
	require.NoError(t, err)
	image, err := log.Accepted()
	require.NoError(t, err)
	assert.Equal(t, "sha256:"+strings.Repeat("07", 32), image.String())
	quoted, ok := log.Quoted()
	assert.True(t, ok)
	assert.Equal(t, log.Replay(), quoted)

	dstack := func(d map[string]any) map[string]any {
		return d["tee_participant_info"].(map[string]any)["Dstack"].(map[string]any)
	}
	within := func(find func(map[string]any) map[string]any, variants []variant) []variant {
		for i := range variants {
			change := variants[i].change
			variants[i].change = func(d map[string]any) { change(find(d)) }
		}
		return variants
	}
	collateral := func(d map[string]any) map[string]any { return dstack(d)["collateral"].(map[string]any) }
	tcbInfo := func(d map[string]any) map[string]any { return dstack(d)["tcb_info"].(map[string]any) }
	for _, v := range slices.Concat(
		member("", "near_signer_public_key"), member("", "near_p2p_public_key"),
		member("", "near_responder_public_keys", "[]"), member("", "tee_participant_info"),
		member("", "something", anything()...),
		within(dstack, slices.Concat(
			member("Dstack: ", "quote"), member("Dstack: ", "collateral"), member("Dstack: ", "tcb_info"),
			member("Dstack: ", "something", anything()...),
		)),
		within(collateral, slices.Concat(
			member("collateral: ", "pck_crl_issuer_chain", anyText()...), member("collateral: ", "root_ca_crl", "[]"),
			member("collateral: ", "pck_crl", "[]"), member("collateral: ", "tcb_info_issuer_chain", anyText()...),
			member("collateral: ", "tcb_info", anyText()...), member("collateral: ", "tcb_info_signature", "[]"),
			member("collateral: ", "qe_identity_issuer_chain", anyText()...), member("collateral: ", "qe_identity", anyText()...),
			member("collateral: ", "qe_identity_signature", "[]"),
			member("collateral: ", "pck_certificate_chain", anyText("missing", "null")...),
		)),
		within(tcbInfo, tcbInfoVariants()),
	) {
		got := verdict(changed(t, document, v.change))
		assert.Equal(t, v.accept, got == "", "%s: %q", v.name, got)
	}
	for name, kind := range map[string]any{
		"a mock": map[string]any{"Mock": "Valid"}, "no kind": map[string]any{}, "a word": "Dstack",
		"two kinds": map[string]any{"Dstack": json.RawMessage("{}"), "Mock": "Valid"},
	} {
		got := verdict(changed(t, document, func(d map[string]any) { d["tee_participant_info"] = kind }))
		assert.NotEmpty(t, got, name)
	}
	otherQuote := changed(t, document, func(d map[string]any) { dstack(d)["quote"].([]any)[520+47] = 300 })
	assert.Contains(t, verdict(otherQuote), "not a byte")
	otherQuote = changed(t, document, func(d map[string]any) {
		q := dstack(d)["quote"].([]any)
		q[520], q[521] = q[521], q[520]
	})
	assert.Contains(t, verdict(otherQuote), "WrongQuote")
}

// TestGrowth feeds the readers documents that hold the worst kinds of JSON, wherever they may.
func TestGrowth(t *testing.T) {
	read := func(document []byte) { assert.Less(t, len(verdict(document)), 2000) }
	good := string(goodTCBInfo(t))
	entry := `"imr":0`
	require.Contains(t, good, entry)
	for _, around := range []string{
		"%s",
		`{"x":%s,` + good[1:],
		strings.Replace(good, entry, entry+`,"x":%s`, 1),
		`{"quote":"00","event_log":%s}`,
		`{"tee_participant_info":{"Dstack":{"quote":%s}}}`,
	} {
		growth.Check(t, 128<<20, growth.JSON(around), read)
	}
	growth.Check(t, 128<<20, func(size int) map[string]string {
		return map[string]string{
			"entries":         growth.Fill(size, `[{"imr":0}`, `,{"imr":0}`, "]"),
			"a string of one": growth.Fill(size, `{"tcb_info":"`, `\u0022`, `"}`),
			"a quote of ones": growth.Fill(size, `{"tee_participant_info":{"Dstack":{"quote":[1`, ",1", "]}}}"),
		}
	}, read)
	fields := `{"x":%s,` + goodAppCompose(t)[1:]
	growth.Check(t, 128<<20, growth.JSON(fields), func(document []byte) {
		assert.Less(t, len(appComposeVerdict(document)), 20_000)
	})
}

func TestManyUnknownFields(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	good := string(goodTCBInfo(t))
	assert.Empty(t, verdict([]byte(growth.FillCounting(size, "{", `"%d":0,`, good[1:]))))
	compose := growth.FillCounting(size, "{", `"%d":0,`, goodAppCompose(t)[1:])
	quoted, err := json.Marshal(compose)
	require.NoError(t, err)
	within := strings.Replace(good, `"app_compose":`, `"app_compose":`+string(quoted)+`,"x":`, 1)
	got := verdict([]byte(within))
	assert.NotEmpty(t, got)
	assert.Less(t, len(got), 2000)
	faults, err := rtmr.JudgeAppCompose([]byte(compose))
	require.NoError(t, err)
	assert.Less(t, len(faults), 100, "enough to see what is wrong")
}

// TestOurOwnRules are those in which the launcher refuses what the verifier takes, and says so.
func TestOurOwnRules(t *testing.T) {
	t.Parallel()
	good := string(goodTCBInfo(t))
	for name, document := range map[string]string{
		"a name twice":        `{"x":1,"x":2,` + good[1:],
		"in two letter cases": `{"x":1,"X":2,` + good[1:],
		"in another case":     `{"MRTD":1,` + good[1:],
		"an image in disguise": string(readFile(t, filepath.Join(verdicts,
			"S4-mpc-image-digest-colon-x-after.json"))),
	} {
		log, err := rtmr.Parse([]byte(document))
		if err == nil {
			_, err = log.Accepted()
		}
		require.Error(t, err, name)
		assert.Contains(t, strings.Join(exit.Hints(err), "\n"), "this rule is the launcher's own", name)
	}
}

// required is what the verifier's types demand of an accepted tcb_info, told from the JSON alone.
func requireForm(t *testing.T, document []byte) {
	t.Helper()
	var d struct {
		MRTD, RTMR0, RTMR1, RTMR2, RTMR3 string
		ComposeHash                      string  `json:"compose_hash"`
		DeviceID                         string  `json:"device_id"`
		OSImageHash                      *string `json:"os_image_hash"`
		AppCompose                       string  `json:"app_compose"`
		EventLog                         []struct {
			IMR     *uint32
			Type    *uint32 `json:"event_type"`
			Digest  string
			Event   *string
			Payload *string `json:"event_payload"`
		} `json:"event_log"`
	}
	require.NoError(t, json.Unmarshal(document, &d))
	for _, register := range []string{d.MRTD, d.RTMR0, d.RTMR1, d.RTMR2, d.RTMR3} {
		require.Len(t, unhex(t, register), 48)
	}
	require.Len(t, unhex(t, d.ComposeHash), 32)
	require.Len(t, unhex(t, d.DeviceID), 32)
	require.NotNil(t, d.OSImageHash)
	require.Contains(t, []int{0, 32}, len(unhex(t, *d.OSImageHash)))
	require.Empty(t, appComposeVerdict([]byte(d.AppCompose)))
	count := map[string]int{}
	for _, e := range d.EventLog {
		require.NotNil(t, e.IMR)
		require.NotNil(t, e.Type)
		require.Len(t, unhex(t, e.Digest), 48)
		require.NotNil(t, e.Event)
		require.NotNil(t, e.Payload)
		if *e.IMR == 3 {
			count[*e.Event]++
			require.EqualValues(t, rtmr.EventType, *e.Type)
			_, err := hex.DecodeString(*e.Payload)
			require.NoError(t, err)
		}
	}
	for _, name := range []string{"compose-hash", "key-provider", "mpc-image-digest"} {
		require.Equal(t, 1, count[name], name)
	}
}

// requirePublicData is the same for what stands around a node's tcb_info, requireInfo for an answer
// of the agent.
func requirePublicData(t *testing.T, document []byte) {
	t.Helper()
	d := members(t, document)
	const key = `^"ed25519:[1-9A-HJ-NP-Za-km-z]{32,44}"$`
	require.Regexp(t, key, string(d["near_signer_public_key"]))
	require.Regexp(t, key, string(d["near_p2p_public_key"]))
	var keys []json.RawMessage
	require.NoError(t, json.Unmarshal(d["near_responder_public_keys"], &keys))
	require.NotNil(t, keys)
	for _, k := range keys {
		require.Regexp(t, key, string(k))
	}
	dstack := members(t, members(t, d["tee_participant_info"])["Dstack"])
	requireBytes(t, dstack, "quote")
	collateral := members(t, dstack["collateral"])
	requireTexts(t, collateral, "pck_crl_issuer_chain", "tcb_info_issuer_chain", "tcb_info",
		"qe_identity_issuer_chain", "qe_identity")
	requireBytes(t, collateral, "root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
}

func requireInfo(t *testing.T, document []byte) {
	t.Helper()
	requireTexts(t, members(t, document), "app_id", "instance_id", "app_cert", "app_name", "device_id",
		"key_provider_info", "compose_hash")
}

func members(t *testing.T, object []byte) (found map[string]json.RawMessage) {
	t.Helper()
	require.NoError(t, json.Unmarshal(object, &found))
	return found
}

func requireTexts(t *testing.T, object map[string]json.RawMessage, names ...string) {
	t.Helper()
	for _, name := range names {
		var text *string
		require.NoError(t, json.Unmarshal(object[name], &text), name)
		require.NotNil(t, text, name)
	}
}

func requireBytes(t *testing.T, object map[string]json.RawMessage, names ...string) {
	t.Helper()
	for _, name := range names {
		var numbers []*uint8
		require.Regexp(t, `^\[`, string(object[name]), name)
		require.NoError(t, json.Unmarshal(object[name], &numbers), name)
		require.NotContains(t, numbers, (*uint8)(nil), name)
	}
}

// Whatever is accepted has every field that the verifier's types require.
func FuzzAccepted(f *testing.F) {
	f.Add(goodTCBInfo(f))
	f.Add(info(f, goodTCBInfo(f)))
	f.Add(publicData(f, goodTCBInfo(f)))
	for _, v := range tcbInfoVariants() {
		f.Add(changed(f, goodTCBInfo(f), v.change))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if verdict(document) != "" {
			return
		}
		var d struct {
			RTMR3    string
			TCBInfo  json.RawMessage `json:"tcb_info"`
			Attested struct {
				Dstack struct {
					TCBInfo json.RawMessage `json:"tcb_info"`
				}
			} `json:"tee_participant_info"`
		}
		if json.Unmarshal(document, &d) != nil {
			return // a bare array
		}
		var text string
		switch {
		case d.Attested.Dstack.TCBInfo != nil:
			requirePublicData(t, document)
			requireForm(t, d.Attested.Dstack.TCBInfo)
		case d.TCBInfo != nil:
			requireInfo(t, document)
			if json.Unmarshal(d.TCBInfo, &text) != nil {
				text = string(d.TCBInfo) // an object, which the node's own reader takes as well
			}
			requireForm(t, changed(t, []byte(text), func(d map[string]any) {
				if _, there := d["os_image_hash"]; !there {
					d["os_image_hash"] = ""
				}
			}))
		case d.RTMR3 != "":
			requireForm(t, document)
		}
	})
}

// Whatever no rule refuses is one JSON object in which every reader finds what the rules demand.
func FuzzJudgeAppCompose(f *testing.F) {
	f.Add([]byte(goodAppCompose(f)))
	for _, v := range appComposeVariants() {
		f.Add(changed(f, []byte(goodAppCompose(f)), v.change))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if appComposeVerdict(document) != "" {
			return
		}
		var got map[string]any
		require.NoError(t, json.Unmarshal(document, &got))
		require.EqualValues(t, 2, got["manifest_version"])
		require.Equal(t, "docker-compose", got["runner"])
		require.IsType(t, "", got["name"])
		require.IsType(t, "", got["docker_compose_file"])
		require.Equal(t, false, got["gateway_enabled"])
		for _, name := range []string{"public_logs", "public_sysinfo", "local_key_provider_enabled", "no_instance_id"} {
			require.Equal(t, true, got[name], name)
		}
		for _, name := range []string{"kms_enabled", "tproxy_enabled"} {
			require.NotEqual(t, true, got[name], name)
		}
		for _, name := range []string{"pre_launch_script", "init_script", "bash_script"} {
			require.Nil(t, got[name], name)
		}
		if envs, there := got["allowed_envs"]; there {
			require.Equal(t, []any{}, envs)
		}
		require.Subset(t, fieldNames(), slices.Collect(maps.Keys(got)))
	})
}

func fieldNames() []string {
	return strings.Fields(`manifest_version name runner docker_compose_file kms_enabled tproxy_enabled
		gateway_enabled public_logs public_sysinfo local_key_provider_enabled key_provider_id allowed_envs
		no_instance_id secure_time pre_launch_script init_script bash_script features public_tcbinfo
		key_provider storage_fs swap_size port_policy docker_config`)
}
