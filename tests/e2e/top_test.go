//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestTop_InATerminal drives lb top as a person does.
func TestTop_InATerminal(t *testing.T) {
	dir := tempDir(t)
	serveUnix(t, dir+"/w1.sock")
	serveUnix(t, dir+"/w2.sock")
	config := onePool(t, "unix:"+dir+"/w1.sock", "unix:"+dir+"/w2.sock", "127.0.0.1:1")
	config.Pools[0].Backends[1].Options = "weight = 300"
	config.Options = fmt.Sprintf(`[listeners.jobs]
bind = [%q]
pool = "jobs"
[pools.jobs.workers]
count = 1
command = ["sh", "-c", "printf 'this is worker %%s \\033[31m\\n' $LB_WORKER_ID; exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr SYSTEM:cat"]
`, freePort(t, "127.0.0.1"))
	l := startLB(t, config)
	held := dial(t, config.Listeners[0].Bind[0])
	defer held.Close()

	m := startTmux(t, l.socket, 150, 30)
	m.typed("echo before lb top; stty -a >" + dir + "/stty1; lb top\r")
	m.says("app/w1", "app/w2", "app/w3 down", "connection refused", "1 down", "4 of 4")

	// The tables.
	m.key("Tab")
	m.says("POOL", "2/3", "1 down, such as w3: connection refused")
	m.typed("3")
	m.says("CRASHES", "jobs/0 up")
	m.typed("4")
	m.says("CLIENT", "127.0.0.1:", "relaying")
	m.typed("5")
	m.says("OLDEST", "127.0.0.1")
	m.typed("6")
	m.says("SUBJECT", "app/w3", "up → down: connection refused")
	m.typed("7")
	m.says("LINE", `this is worker 0`, `\x1b[31m`)
	m.typed("?")
	m.says("Ctrl-L", "Any key leaves this help")
	m.typed("x1")

	// Filter and sort.
	m.typed("/W2")
	m.says("/W2", "app/w2", "1 of 4")
	m.lacks("app/w1")
	m.key("Enter")
	m.key("Escape")
	m.says("app/w1", "4 of 4")
	m.typed("ssss") // the weight
	m.shows("the heaviest first", func(s string) bool { return strings.Contains(s, "WEIGHT ↓") && inOrder(s, "app/w2", "app/w1") })
	m.typed("S")
	m.shows("the lightest first", func(s string) bool { return strings.Contains(s, "WEIGHT ↑") && inOrder(s, "app/w1", "app/w2") })

	// A drain, first without the yes.
	m.typed("/w1\rd")
	m.says("Drain app/w1? It gets no new connections", "1 of 3 backends of the pool can still take new ones. y: yes, any other key: no")
	m.typed("n")
	m.says("nothing was changed")
	if got := l.status(t).backend(t, "w1").Admin; got != "ready" {
		t.Errorf("after a question that was denied: w1 is in %s; want ready", got)
	}
	m.typed("dy")
	m.says("by root over the control socket")
	if got := l.status(t).backend(t, "w1").Admin; got != "drain" {
		t.Errorf("after a question that was affirmed: w1 is in %s; want drain", got)
	}
	m.typed("w50\r")
	m.says("Change the weight of app/w1 from 100 to 50?")
	m.typed("y")
	m.says("50 (config 100)")
	m.typed("4k")
	m.says("Close session", "ends at once")
	m.typed("y")
	m.says("closed 1 session")
	m.typed("3R")
	m.says("Restart jobs/0? A successor starts and must be ready")
	m.typed("y")
	m.says("the restart has begun")

	// Another size.
	m.typed("1")
	m.key("Escape") // ends the filter
	m.run("resize-window", "-x", "60", "-y", "15")
	m.shows("a narrow screen", func(s string) bool {
		return strings.Contains(s, "app/w3") && !strings.Contains(s, "1ST BYTE") && strings.Contains(s, "? keys")
	})
	m.run("resize-window", "-x", "150", "-y", "30")
	m.says("1ST BYTE", "app/w3")

	// The terminal is as it was.
	m.typed("q")
	m.says("before lb top", "$")
	if got := m.run("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{bracket_paste_flag}"); !strings.HasPrefix(got, "0 1 0") {
		t.Errorf("the terminal after lb top (alternate screen, cursor, mouse): got %q; want 0 1 0", got)
	}
	m.typed("stty -a >" + dir + "/stty2; lb top | cat; echo code $?\r")
	m.says("lb status --json", "code")
	before, after := readFile(t, dir+"/stty1"), readFile(t, dir+"/stty2")
	if before != after || before == "" {
		t.Errorf("the terminal's settings after lb top: got\n%s\nwant\n%s", after, before)
	}
}

// TestTop_1000BackendsDoNotFlicker holds that a screen is not drawn anew at each tick, nor for a move.
func TestTop_1000BackendsDoNotFlicker(t *testing.T) {
	var addresses []string
	for range 1000 {
		addresses = append(addresses, "127.0.0.1:1")
	}
	config := onePool(t, addresses...)
	config.Pools[0].Health = "interval = \"60s\"\n"
	l := startLB(t, config)
	m := startTmux(t, l.socket, 200, 50)
	m.typed("lb top\r")
	m.says("app/w1 ", "1000 of 1000")
	whole := m.written()

	m.key("End")
	m.says("app/w1000 ")
	m.key("Home")
	m.says("app/w1 ")
	ticks := 2
	start := m.written()
	for range ticks { // the first line has lb's age
		head, _, _ := strings.Cut(m.screen(), "\n")
		m.shows("a tick", func(s string) bool { now, _, _ := strings.Cut(s, "\n"); return now != head })
	}
	tick := (m.written() - start) / int64(ticks)
	m.key("Down")
	m.says("app/w2:")
	t.Logf("bytes to the terminal of 200 columns and 50 lines: %d for the whole screen, %d a tick", whole, tick)
	if tick > whole/2 {
		t.Errorf("bytes of a tick: got %d; want less than half of a whole screen, which is %d", tick, whole)
	}
	if text := readFile(t, m.out); strings.Count(text, "\x1b[2J")+strings.Count(text, "\x1b[H\x1b[J") > 2 {
		t.Errorf("erased the screen %d times; want once at the start", strings.Count(text, "\x1b[2J")+strings.Count(text, "\x1b[H\x1b[J"))
	}
}
