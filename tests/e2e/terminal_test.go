//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// socatWorker is a worker that says who it is, waits, and then echoes.
const socatWorker = `command = ["sh", "-c", "printf 'I am worker %%s \\033[31m\\n' $LB_WORKER_ID; sleep %s; exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr SYSTEM:cat"]
`

// TestTerminal_CommandsThatWaitShowHowFarTheyAre runs each of them on a terminal and in a pipe.
func TestTerminal_CommandsThatWaitShowHowFarTheyAre(t *testing.T) {
	dir := tempDir(t)
	serveUnix(t, dir+"/w1.sock")
	config := onePool(t, "unix:"+dir+"/w1.sock")
	config.Options = fmt.Sprintf("[listeners.jobs]\nbind = [%q]\npool = \"jobs\"\n[pools.jobs.workers]\ncount = 1\n", freePort(t, "127.0.0.1")) +
		fmt.Sprintf(socatWorker, "2")
	l := startLB(t, config)
	m := startTmux(t, l.socket, 120, 20)

	held := []net.Conn{dial(t, l.addr()), dial(t, l.addr())}
	l.waitActive(t, 2)
	m.typed("lb drain app/w1 --wait\r")
	m.says("app/w1: 2 sessions left, oldest")
	held[0].Close()
	m.says("app/w1: 1 session left, oldest")
	held[1].Close()
	m.says("app/w1: drain, weight 100, share -, 0 active $")
	m.lacks("left")
	m.typed("clear; lb ready app/w1 | cat\r")
	m.says("app/w1: up")

	held = []net.Conn{dial(t, l.addr()), dial(t, l.addr())}
	l.waitActive(t, 2)
	m.typed("clear; lb kill app/w1 --over 3s\r")
	m.says("left, oldest", "; the last closes in")
	m.says("closed 2 sessions")
	m.lacks("left")
	for _, conn := range held {
		conn.Close()
	}

	m.typed("clear; lb scale jobs +1\r")
	m.says("jobs: 1 of 2 workers up; slot 1 starting for")
	m.says("jobs has 2 workers")
	m.lacks("starting")
	m.typed("clear; lb restart jobs/0\r")
	m.says("[....", "jobs/0: successor started")
	m.says("[######", "1 worker replaced")

	// In a pipe there is the outcome alone.
	held = []net.Conn{dial(t, l.addr())}
	l.waitActive(t, 1)
	m.typed("clear; (lb drain app/w1 --wait --timeout 1s; lb scale jobs -1; lb kill app/w1 --over 1s) >" + dir + "/out 2>&1; echo code $?\r")
	m.says("code 0")
	held[0].Close()
	out := readFile(t, dir+"/out")
	if strings.ContainsAny(out, "\x1b\r") || strings.Contains(out, "oldest") || strings.Count(out, "\n") != 3 {
		t.Errorf("in a pipe: got %q; want three lines, one for each command", out)
	}
}

// TestTerminal_LogIsForPeople runs lb on a terminal, on one with NO_COLOR, and in a pipe.
func TestTerminal_LogIsForPeople(t *testing.T) {
	dir := tempDir(t)
	socket := dir + "/lb.sock"
	file := writeFile(t, dir, "lb.toml", fmt.Sprintf("[admin]\nsocket = %q\nhttp = \"\"\n[listeners.jobs]\nbind = [%q]\npool = \"jobs\"\n[pools.jobs.workers]\ncount = 2\n",
		socket, freePort(t, "127.0.0.1"))+fmt.Sprintf(socatWorker, "0"), 0o644)
	m := startTmux(t, socket, 150, 40)
	m.typed("lb run -f " + file + "\r")
	m.says("jobs/0 | I am worker 0 \\x1b[31m", "jobs/1 | I am worker 1", "lb is up", "worker up: starting → up: accepts connections")
	coloured := m.run("capture-pane", "-p", "-e")
	if !strings.Contains(coloured, "\x1b[") || strings.Contains(coloured, "level=INFO") {
		t.Errorf("on a terminal: got\n%q\nwant colours", coloured)
	}
	m.key("C-c")
	m.says("stopped")
	for i, command := range []string{"NO_COLOR=1 lb run -f " + file, "lb run -f " + file + " 2>&1 | (trap '' INT; cat)"} {
		m.typed(fmt.Sprintf("clear; echo run $((%d+0)); %s\r", 70+i, command))
		m.says(fmt.Sprintf("run %d ", 70+i), `msg="worker says" worker=jobs/0`, `msg="lb is up"`)
		if text := m.run("capture-pane", "-p", "-e"); strings.Contains(text, "\x1b[3") {
			t.Errorf("%s: got\n%q\nwant no colours", command, text)
		}
		m.key("C-c")
		m.says(fmt.Sprintf("run %d ", 70+i), "msg=stopped", "$")
	}
}
