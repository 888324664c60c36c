//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The probes of these tests: 3 failures take a backend down, 2 successes bring it back.
const (
	probeInterval = 400 * time.Millisecond
	probeRise     = 2
	probeFall     = 3
)

// probe returns a health section with this type.
func probe(lines string) string {
	return fmt.Sprintf("%s\ninterval = %q\ntimeout = \"300ms\"\njitter = 0\nrise = %d\nfall = %d\n", lines, probeInterval, probeRise, probeFall)
}

// change waits until lb sees the only backend in another state, and wants that to have taken as many probes,
// as count tells them. A probe more may come until the status is read.
func (l *lb) change(t testing.TB, to string, probes int, count func() int) {
	t.Helper()
	before := count()
	l.waitHealth(t, to)
	if got := count() - before; got < probes || got > probes+1 {
		t.Errorf("probes until the backend was %s: got %d; want %d", to, got, probes)
	}
}

// changeWithin is change where nobody counts the probes: it wants the time that they take.
func (l *lb) changeWithin(t testing.TB, to string, probes int) {
	t.Helper()
	start := time.Now()
	l.waitHealth(t, to)
	least, most := time.Duration(probes-1)*probeInterval, time.Duration(probes+1)*probeInterval+2*time.Second
	if got := time.Since(start); got < least-50*time.Millisecond || got > most {
		t.Errorf("time until the backend was %s: got %v; want that of %d probes, %v to %v", to, got, probes, least, most)
	}
}

func TestHealth_ConnectProbe(t *testing.T) {
	for kind, address := range map[string]string{"unix": socketPath(tempDir(t), "w1"), "tcp": freePort(t, "127.0.0.1")} {
		t.Run(kind, func(t *testing.T) {
			server := startLines(t, "w1", address)
			config := onePool(t, address)
			config.Pools[0].Health = probe(`type = "connect"`)
			l := startLB(t, config)
			l.waitHealth(t, "up")
			server.kill()
			l.changeWithin(t, "down", probeFall)
			startLines(t, "w1", address)
			l.changeWithin(t, "up", probeRise)
		})
	}
}

func TestHealth_HTTPProbeOfNginx(t *testing.T) {
	dir := tempDir(t)
	address, healthy, log := freePort(t, "127.0.0.1"), filepath.Join(dir, "healthy"), filepath.Join(dir, "probes")
	startNginxWith(t, dir, fmt.Sprintf(`
	log_format probe '$request_method $request_uri $host $status';
	server {
		listen %s;
		location = /health { access_log %s probe; if (-f %s) { return 204; } return 503; }
	}`, address, log, healthy))
	writeFile(t, dir, "healthy", "", 0o644)
	config := onePool(t, address)
	config.Pools[0].Health = probe("type = \"http\"\nhttp_method = \"HEAD\"\nhttp_path = \"/health?deep=1\"\nhttp_host = \"app.example\"\nhttp_status = \"204\"")
	l := startLB(t, config)
	l.waitHealth(t, "up")
	count := func(status int) func() int {
		line := fmt.Sprintf("HEAD /health?deep=1 app.example %d\n", status)
		return func() int { return strings.Count(readFile(t, log), line) }
	}
	os.Remove(healthy)
	l.change(t, "down", probeFall, count(503))
	writeFile(t, dir, "healthy", "", 0o644)
	l.change(t, "up", probeRise, count(204))
}

// startNginxWith starts an nginx that serves what servers, a part of its http block, says.
func startNginxWith(t testing.TB, dir, servers string) *process {
	t.Helper()
	userLine := ""
	if os.Geteuid() == 0 {
		userLine = "user root;"
	}
	config := writeFile(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off; master_process off; %s
pid %[2]s/nginx.pid; error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/tmp; fastcgi_temp_path %[2]s/tmp;
	uwsgi_temp_path %[2]s/tmp; scgi_temp_path %[2]s/tmp;
	%[3]s
}
`, userLine, dir, servers), 0o644)
	p := startProcess(t, "nginx", exec.Command(program(t, "nginx"), "-e", "stderr", "-p", dir, "-c", config))
	found := regexp.MustCompile(`listen ([^ ;]+)`).FindAllStringSubmatch(servers, -1)
	for _, listen := range found {
		waitAccepts(t, p, listen[1])
	}
	return p
}

var rejectedPings = regexp.MustCompile(`cmdstat_ping:calls=(\d+).*rejected_calls=(\d+)`)

func TestHealth_SendExpectProbeOfRedis(t *testing.T) {
	server := startRedis(t)
	_, socket := splitAddress(server.unix)
	cli := func(args ...string) string {
		return mustRun(t, patience, program(t, "redis-cli"), append([]string{"-s", socket, "--no-auth-warning"}, args...)...).stdout
	}
	for kind, address := range map[string]string{"unix": server.unix, "tcp": server.tcp} {
		t.Run(kind, func(t *testing.T) {
			config := onePool(t, address)
			config.Pools[0].Health = probe("type = \"send-expect\"\nsend = \"PING\\r\\n\"\nexpect = \"+PONG\"")
			l := startLB(t, config)
			l.waitHealth(t, "up")
			answered := func(password ...string) (pongs, refusals int) {
				found := rejectedPings.FindStringSubmatch(cli(append(password, "info", "commandstats")...))
				if found == nil {
					t.Fatal("redis: got no count of PING; want one")
				}
				pongs, _ = strconv.Atoi(found[1])
				refusals, _ = strconv.Atoi(found[2])
				return pongs, refusals
			}
			cli("config", "set", "requirepass", "secret") // it accepts, and answers -NOAUTH
			l.change(t, "down", probeFall, func() int { _, n := answered("-a", "secret"); return n })
			cli("-a", "secret", "config", "set", "requirepass", "")
			l.change(t, "up", probeRise, func() int { n, _ := answered(); return n })
		})
	}
	t.Run("stopped", func(t *testing.T) { // it accepts and says nothing
		config := onePool(t, server.tcp)
		config.Pools[0].Health = probe("type = \"send-expect\"\nsend = \"hex:50 49 4e 47 0d 0a\"\nexpect = \"contains:PONG\"")
		l := startLB(t, config)
		l.waitHealth(t, "up")
		server.signal(t, syscall.SIGSTOP)
		t.Cleanup(func() { server.cmd.Process.Signal(syscall.SIGCONT) })
		l.changeWithin(t, "down", probeFall)
		server.signal(t, syscall.SIGCONT)
		l.changeWithin(t, "up", probeRise)
	})
}

func TestHealth_AgentScript(t *testing.T) {
	dir := tempDir(t)
	state := func(text string) { writeFile(t, dir, "state", text+"\n", 0o644) }
	state("up ready 100%")
	script := writeFile(t, dir, "agent.sh", fmt.Sprintf("#!/bin/sh\necho x >> %[1]s/asked\ncat %[1]s/state\n", dir), 0o755)
	count := func() int { return strings.Count(readFile(t, filepath.Join(dir, "asked")), "x") }
	_, agentPort, _ := strings.Cut(freePort(t, "127.0.0.1"), ":")
	startAgent := func() *process {
		p := startProcess(t, "agent", exec.Command(program(t, "socat"), "TCP4-LISTEN:"+agentPort+",bind=127.0.0.1,reuseaddr,fork", "EXEC:"+script))
		waitAccepts(t, p, "127.0.0.1:"+agentPort)
		return p
	}
	agent := startAgent()
	address := freePort(t, "127.0.0.1")
	startLines(t, "w1", address)
	config := onePool(t, address)
	config.Pools[0].Health = probe("type = \"agent\"\nport = " + agentPort)
	l := startLB(t, config)
	l.waitHealth(t, "up")

	state("down # maintenance of the disk")
	l.change(t, "down", 1, count) // an agent's word counts at once
	state("up")
	l.change(t, "up", 1, count)
	for _, step := range []struct {
		line, admin string
		weight      int
	}{{"50%", "ready", 50}, {"drain", "drain", 50}, {"ready 75%", "ready", 75}, {"up 100%", "ready", 100}} {
		state(step.line)
		eventually(t, patience, func() error {
			if got := l.status(t).backend(t, "w1"); got.Admin != step.admin || got.Weight != step.weight || got.Health != "up" {
				return fmt.Errorf("backend after %q: got %+v; want %s, weight %d, up", step.line, got, step.admin, step.weight)
			}
			return nil
		})
	}
	agent.kill() // its silence is a failure
	l.changeWithin(t, "down", probeFall)
	state("up")
	startAgent()
	l.waitHealth(t, "up")
	if who, err := askLine(l.addr(), patience); err != nil || who != "w1" {
		t.Errorf("answer: got %q, %v; want w1", who, err)
	}
}

// TestHealth_StoppedWorkerIsOfflineWithin4Seconds stops one of four under load: it still accepts connections,
// and only its silence tells.
func TestHealth_StoppedWorkerIsOfflineWithin4Seconds(t *testing.T) {
	dir := tempDir(t)
	var addresses []string
	workers := map[string]*process{}
	for i := range 4 {
		name := fmt.Sprintf("w%d", i+1)
		addresses = append(addresses, socketPath(dir, name))
		workers[name] = startLines(t, name, addresses[i])
	}
	config := onePool(t, addresses...)
	config.Pools[0].Health = "type = \"send-expect\"\nsend = \"are you there\\n\"\nexpect = \"contains:are you there\"\ninterval = \"1s\"\ntimeout = \"500ms\"\nfall = 3\n"
	l := startLB(t, config)
	l.waitHealth(t, "up")
	d := startLoad(t, l.addr(), 16)
	for name := range workers {
		d.waitMore(t, name, 20)
	}

	stopped := time.Now()
	workers["w3"].signal(t, syscall.SIGSTOP)
	t.Cleanup(func() { workers["w3"].cmd.Process.Signal(syscall.SIGCONT) })
	var offline backendStatus
	eventually(t, patience, func() error {
		if offline = l.status(t).backend(t, "w3"); offline.Health != "down" {
			return fmt.Errorf("health of the stopped worker: got %s; want down", offline.Health)
		}
		return nil
	})
	if took := time.Since(stopped); took > 4*time.Second {
		t.Errorf("time until the stopped worker was offline: got %v; want 4s at most", took)
	} else {
		t.Logf("offline after %v, with %d sessions", took, offline.Active)
	}
	for _, name := range []string{"w1", "w2", "w4"} {
		d.waitMore(t, name, 1000)
	}
	if got := l.status(t).backend(t, "w3"); got.Connections != offline.Connections || got.Health != "down" {
		t.Errorf("stopped worker after 3000 connections more: got %d new ones, %s; want 0, down", got.Connections-offline.Connections, got.Health)
	}
	workers["w3"].signal(t, syscall.SIGCONT)
	l.waitHealth(t, "up")
	d.waitMore(t, "w3", 20)
	d.end()
	d.wantNoError(t) // those that had landed on it were answered late
}
