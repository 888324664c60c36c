//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// diagnosis is what `lb why POOL/BACKEND --json` prints, as far as the tests look.
type diagnosis struct {
	Cause    string
	Headline string
	Do       []string
	Facts    []struct{ Name, Text string }
	History  []struct{ Text string }
}

func (d diagnosis) fact(name string) string {
	for _, f := range d.Facts {
		if f.Name == name {
			return f.Text
		}
	}
	return ""
}

func (l *lb) why(t testing.TB, subject string) (d diagnosis, err error) {
	t.Helper()
	r := run(t, patience, nil, lbBinary(t), "why", subject, "--json", "-s", l.socket)
	if r.code != 0 {
		return d, fmt.Errorf("lb why %s: got exit code %d; want 0: %s", subject, r.code, r.stderr)
	}
	return d, json.Unmarshal([]byte(r.stdout), &d)
}

// alike returns a headline without what is another at each run: numbers, names and addresses.
func alike(headline string) string {
	headline = regexp.MustCompile(`"[^"]*"`).ReplaceAllString(headline, `"…"`)
	headline = regexp.MustCompile(`[a-z]+\.invalid`).ReplaceAllString(headline, "HOST")
	headline = regexp.MustCompile(`(\*|[0-9]+\.[0-9.]+):[0-9]+`).ReplaceAllString(headline, "ADDRESS")
	return regexp.MustCompile(`\bv?[0-9]+(\.[0-9]+)?`).ReplaceAllString(headline, "N")
}

// documented returns the headlines of docs/troubleshooting.md, by cause.
func documented(t testing.TB) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\|[^|]*\\| `([a-z_]+)` \\| `app/[0-9a-z.]+: (.*)` \\|").FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = append(all[m[1]], alike(m[2]))
	}
	return all
}

// startFaultyLB runs lb with a config, and does not wait for its backends: they have faults.
func startFaultyLB(t *testing.T, config string) *lb {
	t.Helper()
	dir := tempDir(t)
	l := &lb{socket: filepath.Join(dir, "admin.sock")}
	file := writeFile(t, dir, "lb.toml", fmt.Sprintf("[admin]\nsocket = %q\nhttp = \"\"\n\n", l.socket)+config, 0o644)
	l.process = startProcess(t, "lb", exec.Command(lbBinary(t), "run", "-f", file))
	eventually(t, patience, func() error {
		if !l.running() {
			t.Fatalf("lb: got %v at its start; want it to run\n%s", l.cmd.ProcessState, l.tail())
		}
		_, err := l.readStatus(t)
		return err
	})
	return l
}

// preparedFault is a fault that a test has prepared, in a pool of its own.
type preparedFault struct {
	pool    string
	subject string // POOL/BACKEND or POOL/SLOT
	toml    string // lines of [pools.POOL]; then whole sections
	cause   string
	shows   map[string]string // what a fact has in it
}

func TestWhy_NamesTheCauseOfPreparedFaults(t *testing.T) {
	dir := tempDir(t)
	hung, full, drained, plain := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")
	listenBackend(t, hung) // and nobody accepts
	startHolder(t, full)
	startHolder(t, drained)
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go server.Serve(listenBackend(t, plain))
	t.Cleanup(func() { server.Close() })
	strict := freePort(t, "127.0.0.1")
	go closeWithoutHeader(listenBackend(t, strict))
	elsewhere := freePort(t, "127.0.0.1")
	crlf := writeFile(t, dir, "crlf.sh", "#!/bin/sh\r\nexec sleep 1000\r\n", 0o755)
	pyton := writeFile(t, dir, "pyton.py", "#!/usr/bin/pyton\nprint(1)\n", 0o755)
	crash := writeFile(t, dir, "crash.sh", "#!/bin/sh\necho 'panic: no database'\necho\ni=0; while [ $i -lt 200 ]; do echo \"r$i 0x0\"; i=$((i+1)); done\nexit 2\n", 0o755)

	backend := func(address, more string) string {
		return fmt.Sprintf("[[pools.POOL.backends]]\nname = \"w1\"\naddress = %q\n%s", address, more)
	}
	health := func(lines string) string { return "[pools.POOL.health]\ninterval = \"200ms\"\n" + lines + "\n" }
	worker := func(more, program string, args ...string) string {
		command := []string{strconv.Quote(program)}
		for _, a := range args {
			command = append(command, strconv.Quote(a))
		}
		return fmt.Sprintf("[pools.POOL.workers]\ncommand = [%s]\ncount = 1\n%s\n", strings.Join(command, ", "), more)
	}
	role := fmt.Sprintf("env = { %s = %q, PORT = \"{port}\" }", roleVariable, roleLines)
	faults := []preparedFault{
		{"refused", "w1", health("") + backend(freePort(t, "127.0.0.1"), ""), "refused", map[string]string{"got": "connection refused", "wanted": "accepts"}},
		{"hung", "w1", health("timeout = \"100ms\"") + backend(hung, ""), "hung", map[string]string{"got": "does not accept"}},
		{"port", "0", worker(role+"\nstart_timeout = \"2s\"", self(t), "w", elsewhere), "wrong_port", map[string]string{"command": elsewhere}},
		{"slow", "0", worker("ready = \"notify\"\nstart_timeout = \"1s\"", "sleep", "1000"), "never_ready", nil},
		{"loop", "0", worker("", crash), "crash_loop", map[string]string{"last words": "panic: no database", "last exit": "exit status 2"}},
		{"exec", "0", worker("", filepath.Join(dir, "nothing")), "exec", map[string]string{"last exit": "exit status 127"}},
		{"interpreter", "0", worker("", pyton), "interpreter", map[string]string{"last words": "/usr/bin/pyton"}},
		{"crlf", "0", worker("", crlf), "interpreter", map[string]string{"last words": "CRLF"}},
		{"full", "w1", health("type = \"connect\"") + backend(full, "max_conns = 1"), "max_conns", map[string]string{"connections": "1 active, max_conns 1"}},
		{"drained", "w1", health("type = \"connect\"") + backend(drained, ""), "drained", map[string]string{"state": "drain, "}},
		{"beat", "0", health("type = \"notify\"\nfall = 2") + worker(fmt.Sprintf("env = { %s = %q }", roleVariable, roleLines), self(t), "w", "unix:{socket}"), "no_heartbeat",
			map[string]string{"seen": "no heartbeat for"}},
		{"header", "w1", "send_proxy = \"v2\"\n" + health("type = \"http\"") + backend(plain, ""), "proxy_header",
			map[string]string{"sent": "a PROXY v2 header, then GET /", "wanted": "http status 200-399", "got": "http status 400"}},
		{"noheader", "w1", health("type = \"http\"") + backend(strict, ""), "proxy_header", map[string]string{"got": "closed the connection"}},
		{"name", "w1", health("") + backend("nobody.invalid:80", ""), "name", nil},
	}
	var config strings.Builder
	front := map[string]string{}
	for _, f := range faults {
		front[f.pool] = freePort(t, "127.0.0.1")
		fmt.Fprintf(&config, "[listeners.%s]\nbind = [%q]\npool = %q\n[pools.%s]\n%s\n", f.pool, front[f.pool], f.pool, f.pool, strings.ReplaceAll(f.toml, "POOL", f.pool))
	}
	l := startFaultyLB(t, config.String())
	client, err := net.Dial("tcp", front["full"])
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	l.mustCommand(t, "drain", "drained/w1")

	said := documented(t)
	for _, f := range faults {
		t.Run(f.pool, func(t *testing.T) {
			var d diagnosis
			eventually(t, patience, func() (err error) {
				if d, err = l.why(t, f.pool+"/"+f.subject); err != nil {
					return err
				}
				if d.Cause != f.cause {
					return fmt.Errorf("cause: got %+v; want %q", d, f.cause)
				}
				for name, want := range f.shows {
					if got := d.fact(name); !strings.Contains(got, want) {
						return fmt.Errorf("%s: got %q; want %q in it", name, got, want)
					}
				}
				return nil
			})
			if len(d.Do) == 0 || len(d.History) == 0 {
				t.Errorf("got %+v; want what to do, and what happened", d)
			}
			got, known := alike(d.Headline), false
			for _, want := range said[f.cause] {
				known = known || got == want
			}
			if !known {
				t.Errorf("headline: got %q (%s); want it as docs/troubleshooting.md has it: %q", d.Headline, got, said[f.cause])
			}
			// A person is shown the same, and of the pool too.
			if text := l.mustCommand(t, "why", f.pool).stdout; !strings.Contains(text, "  do: "+d.Do[0]) {
				t.Errorf("lb why %s: got %q; want %q in it", f.pool, text, d.Do[0])
			}
		})
	}
}

// closeWithoutHeader is a backend that closes every connection that does not begin with a PROXY header.
func closeWithoutHeader(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			r := bufio.NewReader(conn)
			if start, _ := r.Peek(5); string(start) != "PROXY" {
				r.Discard(r.Buffered()) // or the kernel resets
			}
		}()
	}
}

func TestWhy_ShowsWhatWasChangedAndRefusesWhatThereIsNot(t *testing.T) {
	port := freePort(t, "127.0.0.1")
	startHolder(t, port)
	l := startLB(t, onePool(t, port))
	l.mustCommand(t, "set-limit", "app/w1", "7")
	l.mustCommand(t, "weight", "app/w1", "50")
	d, err := l.why(t, "app/w1")
	if got := d.fact("connections") + ", " + d.fact("weight"); err != nil || !strings.Contains(got, "max_conns 7 (config 0)") || !strings.Contains(got, "50 now, 100 in the config") {
		t.Errorf("what was changed by hand: got %q, %v; want it beside the config's", got, err)
	}
	for _, c := range []struct {
		arg  string
		code int
		want string
	}{{"app/w9", 1, "w9"}, {"nope", 1, "nope"}, {"app/", 2, "POOL/BACKEND"}} {
		if r := l.command(t, "why", c.arg); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("lb why %s: got %+v; want exit code %d and %q", c.arg, r, c.code, c.want)
		}
	}
	if r := l.mustCommand(t, "why", "app/w1"); !strings.HasPrefix(r.stdout, "app/w1: nothing is wrong: up for ") {
		t.Errorf("lb why of a backend that is up: got %q; want that nothing is wrong", r.stdout)
	}
}
