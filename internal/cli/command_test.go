package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/build"
)

// programs stand in for the daemon: all that the command line shows of it is why it does not start.
var programs = Programs{Run: func(file string) error {
	_, err := config.Load(file)
	return err
}}

// lb runs a command line as main does.
func lb(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Execute(args, &out, &errs, programs)
	return code, out.String(), errs.String()
}

// writeConfig writes a config and returns its path.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lb.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const goodConfig = `
[listeners.web]
bind = ["127.0.0.1:8080"]
pool = "app"

[pools.app]
[[pools.app.backends]]
name = "w1"
address = "unix:/run/app/w1.sock"
[[pools.app.backends]]
name = "w2"
address = "unix:/run/app/w2.sock"
`

const unusedPool = `
[pools.spare]
[[pools.spare.backends]]
address = "unix:/run/app/w3.sock"
`

func TestUsage_IsExitCode2AndSaysWhereHelpIs(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string
	}{
		{"", `which command?`},
		{"nonsense", `there is no command "nonsense"`},
		{"stauts", `did you mean "status"?`},
		{"show", `did you mean "status"?`}, {"stats", `did you mean "status"?`}, {"ls", `did you mean "status"?`}, {"ps", `did you mean "status"?`},
		{"enable", `did you mean "ready"?`}, {"disable", `did you mean "maint"?`},
		{"stopp", "there is no command \"stopp\"\n"}, {"kil", "there is no command \"kil\"\n"},
		{"--nonsense", `unknown flag: --nonsense`},
		{"status --nonsense", `unknown flag: --nonsense`},
		{"status app extra", `accepts at most 1 arg`},
		{"stop now", `"now"`},
		{"weight app/w1", `accepts 2 arg`},
		{"weight app 50", `"app" is not POOL/BACKEND`},
		{"weight app/w1 half", `"half" is no weight`},
		{"weight app/w1 50%%", `"50%" is no weight`},
		{"split web blue", `"blue": write POOL=N`},
		{"drain app/w1 --timeout 1s", `--timeout is for --wait`},
		{"set-limit web -- -1", `"-1" is no limit`},
		{"weight", "Usage: lb weight POOL/BACKEND N|N%\n"},
		{"weight app/w1 -5", `"-5" is negative; write a whole number from 0 on`},
		{"weight app/w1 -5%", `"-5%" is negative`},
		{"set-limit web -1", `"-1" is negative`},
		{"weight app/w1 -x", `unknown shorthand flag: 'x' in -x`},
		{"kill", "Usage: lb kill SESSION|POOL/BACKEND [--over 30s] [--older 10m]\n"},
		{"run lb.toml", "a config is named with -f: lb run -f lb.toml"},
		{"conns /w1", `"/w1" is neither POOL nor POOL/BACKEND`},
		{"kill app/", `"app/" is not POOL/BACKEND`},
		{"run", `-f FILE`},
		{"check -f", `-f`},
		{"bench --cases tea", `there is no case "tea"; there are even, few`},
		{"bench --peers envoy", `there is no "envoy"; there are reuseport`},
		{"bench --peers target", `--target ADDR`},
		{"bench --law tea", `there is no law "tea"; write one of constant:T`},
		{"bench --law constant:0s", `name one`},
		{"bench --workers 1", `--workers 1 is not within 2..64`},
		{"bench --rate -1", `--rate is not negative`},
		{"bench --rate 5 --closed", `leave one out`},
		{"bench --burn --together", `leave one out`},
		{"bench --burn --worker ./app", `--worker names another`},
		{"bench --worker=", `--worker is empty`},
		{"bench --duration 0s", `--duration 0s is not within 1s..1h`},
		{"bench --timeout 1ms", `timeout: 1ms`},
		{"bench --rounds 0", `rounds: 0`},
		{"bench --path work", `path: "work"`},
		{"bench now", `"now"`},
		{"help nonsense", `there is no command "nonsense"`},
		{"completion nonsense", `there is no command "nonsense"`},
	} {
		code, stdout, stderr := lb(t, strings.Fields(tc.args)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tc.want) || !strings.Contains(stderr, "--help") {
			t.Errorf("lb %s: got %d, %q, %q; want 2 and an error with %q that names --help", tc.args, code, stdout, stderr, tc.want)
		}
	}
}

func TestUsage_EveryCommandThatMissesArgumentsSaysWhichItTakes(t *testing.T) {
	for _, cmd := range newRoot(Programs{}).Commands() {
		if cmd.Hidden || cmd.Args == nil || cmd.Args(cmd, nil) == nil {
			continue // it would do its work
		}
		code, _, stderr := lb(t, cmd.Name())
		if code != exitUsage || !cmd.HasSubCommands() && !strings.Contains(stderr, "\nUsage: "+cmd.UseLine()+"\n") {
			t.Errorf("lb %s: got %q; want its usage %q", cmd.Name(), stderr, cmd.UseLine())
		}
	}
}

func TestHelp_IsShortAndListsEveryCommand(t *testing.T) {
	code, stdout, stderr := lb(t, "--help")
	if code != exitDone || stderr != "" || strings.Count(stdout, "\n") > 70 {
		t.Errorf("lb --help: got %d, %d lines, %q; want 0 and at most 70 lines", code, strings.Count(stdout, "\n"), stderr)
	}
	order := []string{"lb accepts TCP connections", "lb run -f lb.toml", "  run ", "  check ", "  bench ", "may do everything"}
	for i, words := range order[1:] {
		if before := order[i]; strings.Index(stdout, words) < strings.Index(stdout, before) || !strings.Contains(stdout, words) {
			t.Errorf("lb --help: got %q; want %q after %q", stdout, words, before)
		}
	}
	for _, cmd := range newRoot(Programs{}).Commands() {
		if cmd.Hidden == strings.Contains(stdout, "  "+cmd.Name()+" ") {
			t.Errorf("lb --help: got %q; want it to list %q unless it is hidden", stdout, cmd.Name())
		}
		if code, out, _ := lb(t, "help", cmd.Name()); code != exitDone || !strings.Contains(out, "Usage:") {
			t.Errorf("lb help %s: got %d, %q; want its usage", cmd.Name(), code, out)
		}
	}
}

func TestCheck_CountsWhatAGoodFileHas(t *testing.T) {
	file := writeConfig(t, goodConfig)
	code, stdout, stderr := lb(t, "check", "-f", file)
	want := file + ": ok (1 listener, 1 pool, 2 backends)\n"
	if line, fits, _ := strings.Cut(stdout, "\n"); code != exitDone || line+"\n" != want || !strings.Contains(fits, " sessions fit at once into this shell's limit of open files, beside ") || stderr != "" {
		t.Errorf("lb check: got %d, %q, %q; want 0 and %q", code, stdout, stderr, want)
	}
}

func TestCheck_SaysEveryFaultOnALine(t *testing.T) {
	file := writeConfig(t, strings.ReplaceAll(goodConfig, `pool = "app"`, "pool = \"app\"\nbacklog = -1\nnonsense = 1"))
	code, stdout, stderr := lb(t, "check", "-f", file)
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if code != exitFailed || stdout != "" || len(lines) != 2 {
		t.Fatalf("lb check: got %d, %q, %q; want 1 and two lines", code, stdout, stderr)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, file+":") || !strings.Contains(line, "listeners.web.") {
			t.Errorf("line: got %q; want the file, the line and the key", line)
		}
	}
	if code, _, again := lb(t, "run", "-f", file); code != exitFailed || again != stderr {
		t.Errorf("lb run: got %d, %q; want 1 and the same faults as lb check", code, again)
	}
}

func TestCheck_WarningsFailOnlyWhenStrict(t *testing.T) {
	file := writeConfig(t, goodConfig+unusedPool)
	code, stdout, stderr := lb(t, "check", "-f", file)
	if code != exitDone || !strings.Contains(stdout, ": ok (1 listener, 2 pools, 3 backends)") || !strings.Contains(stderr, "pools.spare: warning: ") {
		t.Errorf("lb check: got %d, %q, %q; want 0 and a warning of pools.spare", code, stdout, stderr)
	}
	code, stdout, stderr = lb(t, "check", "--strict", "-f", file)
	if code != exitFailed || stdout != "" || !strings.Contains(stderr, "pools.spare: warning: ") {
		t.Errorf("lb check --strict: got %d, %q, %q; want 1 and the warning", code, stdout, stderr)
	}
}

func TestCheck_WarnsOfWhatThisHostHasNot(t *testing.T) {
	file := writeConfig(t, goodConfig+"[log]\noutput = \"/nonexistent/lb.log\"\n")
	code, stdout, stderr := lb(t, "check", "-f", file)
	if code != exitDone || !strings.Contains(stdout, ": ok (") || !strings.Contains(stderr, `log.output: warning: there is no directory "/nonexistent" on this host`) {
		t.Errorf("lb check: got %d, %q, %q; want 0 and a warning", code, stdout, stderr)
	}
	if code, _, _ := lb(t, "check", "--strict", "-f", file); code != exitFailed {
		t.Errorf("lb check --strict: got %d; want 1", code)
	}
}

func TestCheck_JSONHasTheSame(t *testing.T) {
	bad := writeConfig(t, "nonsense = 1\n"+goodConfig)
	for _, tc := range []struct {
		file     string
		args     []string
		code     int
		faults   int
		warnings int
	}{
		{writeConfig(t, goodConfig), nil, exitDone, 0, 0},
		{writeConfig(t, goodConfig+unusedPool), nil, exitDone, 0, 1},
		{writeConfig(t, goodConfig+unusedPool), []string{"--strict"}, exitFailed, 0, 1},
		{bad, nil, exitFailed, 1, 0},
	} {
		code, stdout, stderr := lb(t, append([]string{"check", "--json", "-f", tc.file}, tc.args...)...)
		var got checkResult
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatalf("lb check --json: got %q, %v; want JSON", stdout, err)
		}
		if code != tc.code || got.OK != (code == exitDone) || len(got.Faults) != tc.faults || len(got.Warnings) != tc.warnings || stderr != "" {
			t.Errorf("lb check --json: got %d, %s, %q; want %d with %d faults and %d warnings", code, stdout, stderr, tc.code, tc.faults, tc.warnings)
		}
	}
}

func TestCheck_FileThatCannotBeReadIsExitCode1(t *testing.T) {
	code, stdout, stderr := lb(t, "check", "-f", "/nonexistent/lb.toml")
	if code != exitFailed || stdout != "" || !strings.HasPrefix(stderr, "lb: ") || !strings.Contains(stderr, "/nonexistent/lb.toml") {
		t.Errorf("lb check: got %d, %q, %q; want 1 and the path", code, stdout, stderr)
	}
}

func TestVersion_SaysTheSameInTextAndJSON(t *testing.T) {
	_, text, _ := lb(t, "version")
	_, flag, _ := lb(t, "--version")
	_, raw, _ := lb(t, "version", "--json")
	var got build.Facts
	if err := json.Unmarshal([]byte(raw), &got); err != nil || got.Version == "" || got.String()+"\n" != text || flag != text {
		t.Errorf("version: got %q, %q and %q, %v; want one version in all", text, flag, raw, err)
	}
}

// startAdmin serves a status at a control socket of its own.
func startAdmin(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "a.sock")
	s, err := admin.NewServer(admin.Config{Socket: socket, SocketMode: "0600"}, admin.Sources{
		Listeners: func() []api.ListenerStatus {
			return []api.ListenerStatus{{Name: "web", Addresses: []string{"127.0.0.1:8080"}, Pool: "app", Active: 3}}
		},
		Process: func() api.ProcessStatus {
			return api.ProcessStatus{Version: "1.2.3", Started: time.Now(), Sessions: 3}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.ServeSelf()
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		s.Close(context.Background())
		<-served
	})
	return socket
}

func TestStatus_AsksTheSocketOfTheFlagOrOfTheEnvironment(t *testing.T) {
	socket := startAdmin(t)
	code, stdout, stderr := lb(t, "status", "-s", socket)
	if code != exitDone || !strings.Contains(stdout, "lb 1.2.3") || !strings.Contains(stdout, "127.0.0.1:8080") || stderr != "" {
		t.Errorf("lb status -s: got %d, %q, %q; want 0 and the listener", code, stdout, stderr)
	}
	t.Setenv("LB_SOCKET", socket)
	code, stdout, _ = lb(t, "status", "--json")
	var st api.Status
	if err := json.Unmarshal([]byte(stdout), &st); code != exitDone || err != nil || st.Sessions != 3 || len(st.Listeners) != 1 {
		t.Errorf("lb status --json with LB_SOCKET: got %d, %q, %v; want 0 and the status", code, stdout, err)
	}
	code, _, stderr = lb(t, "status", "-s", socket+".other")
	if code != exitFailed || stderr != `lb: cannot reach lb at "`+socket+`.other": no such file: is lb running? name its socket with -s or LB_SOCKET`+"\n" {
		t.Errorf("lb status of nothing: got %d, %q; want 1 and what to do", code, stderr)
	}
}
