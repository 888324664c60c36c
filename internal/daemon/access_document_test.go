package daemon

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/proxy"
)

//go:generate go test . -run TestDocument_OfTheAccessLog -update-access-log

var updateAccessLog = flag.Bool("update-access-log", false, "write docs/access-log.md anew")

// accessLogDocument returns the text of docs/access-log.md.
func accessLogDocument() string {
	text, object := logs.AccessExample(&logs.Entry{
		Start:  time.Date(2026, 9, 21, 8, 12, 33, 123456000, time.FixedZone("", 2*3600)),
		Client: netip.MustParseAddrPort("127.0.0.1:40312"), Listener: "web", Pool: "app", Backend: "w1",
		ConnectTime: 1123 * time.Microsecond, SessionTime: 1250417 * time.Microsecond, BytesIn: 512, BytesOut: 4210,
		Sessions: 3, ListenerActive: 3, PoolActive: 2, BackendActive: 1,
	})
	var b strings.Builder
	fmt.Fprintf(&b, `# The access log

<!-- Generated from AccessFields in internal/logs and TerminationNotes in proxy by `+"`go generate ./internal/daemon`"+`. Do not edit. -->

`+"`log.access`"+` turns it on: one line a session, written when the session has ended. `+"`log.access_format`"+` is `+"`text`"+` or `+"`json`"+`.
Text is HAProxy's tcplog with one field more, so that what reads that reads this:

`+"```"+`
client [time] listener pool/backend Tw/Tc/Tt bytes_out termination sessions/listener_active/pool_active/backend_active/retries 0/0 bytes_in

%s
%s`+"```"+`

Times in text are milliseconds, and -1 for what it did not come to; in JSON they are seconds with six decimals, and null.

| in text | in JSON | what it is |
|---|---|---|
`, text, object)
	code := func(s string) string {
		if s == "" {
			return ""
		}
		return "`" + s + "`"
	}
	for _, f := range logs.AccessFields {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", code(f.Text), code(f.JSON), f.Means)
	}
	b.WriteString(`
## Terminations

The first letter says who or what ended the session: ` + "`C`" + ` the client, ` + "`S`" + ` the backend, ` + "`c` and `s`" + ` that it was silent for too long,
` + "`P`" + ` a rule or a limit, ` + "`R`" + ` a resource that lb is short of, ` + "`D`" + ` a backend that went down, ` + "`K`" + ` the operator. The second says the phase:
` + "`R`" + ` before it was let in, ` + "`Q`" + ` in the queue, ` + "`C`" + ` connecting, ` + "`D`" + ` relaying data, ` + "`H`" + ` handed over to a worker.

| code | what happened | what to do |
|---|---|---|
`)
	for _, n := range proxy.TerminationNotes {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.Join(n.Codes, "` `"), n.Means, n.Do)
	}
	return b.String()
}

func TestDocument_OfTheAccessLogIsWhatTheCodeSays(t *testing.T) {
	const name = "../../docs/access-log.md"
	if *updateAccessLog {
		if err := os.WriteFile(name, []byte(accessLogDocument()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != accessLogDocument() {
		t.Error("docs/access-log.md is not what the code says; run: go generate ./internal/daemon")
	}
}
