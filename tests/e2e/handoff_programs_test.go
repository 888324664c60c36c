//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// npmCache is where npm.sh puts what it installs.
func npmCache(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("LB_E2E_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("cannot find the cache of npm.sh: %v", err)
	}
	return filepath.Join(dir, "lb-e2e")
}

// fromNPM returns a path in a folder of npm.sh's cache. It skips the test if npm.sh could not install it.
func fromNPM(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(npmCache(t), pattern))
	if err != nil || len(found) == 0 {
		t.Skipf("there is no %s in %s: run tests/e2e/npm.sh where npm can be reached", pattern, npmCache(t))
	}
	return found[len(found)-1]
}

// eachNode runs a test with the system's Node and with those from npm.
func eachNode(t *testing.T, test func(t *testing.T, node string)) {
	t.Run("node of the system", func(t *testing.T) {
		node := program(t, "node")
		t.Log(mustRun(t, patience, node, "--version").stdout)
		test(t, node)
	})
	for _, major := range []string{"18", "24", "26"} {
		t.Run("node "+major, func(t *testing.T) {
			test(t, fromNPM(t, "node-"+major+".*/node_modules/node-linux-*/bin/node"))
		})
	}
}

// clientIP is an address that no server and no proxy has.
const clientIP = "127.0.0.77"

// clientTransport makes connections from clientIP.
func clientTransport(keepAlive bool) *http.Transport {
	from := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}}
	return &http.Transport{DisableKeepAlives: !keepAlive, DialContext: from.DialContext}
}

// whoAmI asks an app which client it sees.
func whoAmI(c *http.Client, address string) error {
	resp, err := c.Get("http://" + address + "/client")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if host, _, err := net.SplitHostPort(string(text)); err == nil {
		text = []byte(host)
	}
	if got := strings.TrimPrefix(string(text), "::ffff:"); got != clientIP {
		return fmt.Errorf("the client that the app sees: got %q; want %s", got, clientIP)
	}
	return nil
}

// rollsOver starts two workers, and restarts them under a load of new connections, none of which may fail,
// and each of which the app must see to be of clientIP.
func rollsOver(t *testing.T, mode, workers string) {
	l := startLB(t, handoffPool(t, mode, "", workers+"count = 2\n"))
	before := l.waitUp(t, 2).pids()
	var loads []*again
	for range 3 {
		c := http.Client{Timeout: patience, Transport: clientTransport(false)}
		loads = append(loads, startAgain(t, "new connection", func() error { return whoAmI(&c, l.addr()) }))
	}
	if r := l.command(t, "restart", "app"); r.code != 0 {
		t.Errorf("lb restart: got exit code %d, %s; want 0", r.code, r.stderr)
	}
	for _, pid := range l.waitUp(t, 2).pids() {
		if pid == before[0] || pid == before[1] {
			t.Errorf("pids of the workers: got %d, as before; want others", pid)
		}
	}
	for _, load := range loads {
		load.wantAllGood(t)
	}
}

const (
	nodeHTTP = `
require('http').createServer((req, res) => res.end(req.socket.remoteAddress)).listen(process.env.PORT || 3000)
`
	nodeExpress = `
const app = require('express')()
app.get('/client', (req, res) => res.send(req.ip))
app.listen(3000)
`
	nodeCluster = `
const cluster = require('cluster'), http = require('http')
if (cluster.isPrimary || cluster.isMaster) {
	for (let i = 0; i < 2; i++) cluster.fork()
	cluster.on('exit', () => cluster.fork())
} else {
	http.createServer((req, res) => res.end(cluster.worker.id > 0 ? req.socket.remoteAddress : 'no id')).listen(3000, '0.0.0.0')
	process.on('SIGTERM', () => cluster.worker.disconnect())
}
`
)

func TestHandOff_NodeProgramsWorkUnchanged(t *testing.T) {
	eachNode(t, func(t *testing.T, node string) {
		for name, script := range map[string]string{"http": nodeHTTP, "express": nodeExpress, "cluster": nodeCluster} {
			t.Run(name, func(t *testing.T) {
				dir := tempDir(t)
				if name == "express" {
					modules := fromNPM(t, "express-*/node_modules")
					if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
						t.Fatal(err)
					}
				}
				rollsOver(t, "node", fmt.Sprintf("command = [%q, %q]\n", node, writeFile(t, dir, "app.js", script, 0o644)))
			})
		}
	})
}

const (
	wsgiApp = `
def app(environ, start_response):
    text = environ["REMOTE_ADDR"].encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
`
	asgiApp = `
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    text = scope["client"][0].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(text)).encode())]})
    await send({"type": "http.response.body", "body": text})
`
	rackApp = `
run lambda { |env| [200, { "Content-Type" => "text/plain" }, [env["REMOTE_ADDR"]]] }
`
)

func TestHandOff_ProgramsWorkUnchangedWithThePreloadedLibrary(t *testing.T) {
	for name, app := range map[string]struct {
		file, text string
		command    []string
	}{
		"gunicorn": {"app.py", wsgiApp, []string{"gunicorn", "--workers", "1", "--threads", "4", "--worker-tmp-dir", "/dev/shm", "app:app"}},
		"uvicorn":  {"app.py", asgiApp, []string{"uvicorn", "--fd", "3", "--log-level", "warning", "app:app"}},
		"puma":     {"config.ru", rackApp, []string{"puma", "--bind-to-activated-sockets", "only", "--environment", "production", "--threads", "1:4", "config.ru"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			writeFile(t, dir, app.file, app.text, 0o644)
			command := []string{program(t, app.command[0])}
			command = append(command, app.command[1:]...)
			rollsOver(t, "lb", fmt.Sprintf("command = [%s]\ndir = %q\nenv = { LD_PRELOAD = %q }\n",
				`"`+strings.Join(command, `", "`)+`"`, dir, preloadLibrary(t)))
		})
	}
}

func TestHandOff_GoProgramsWorkUnchanged(t *testing.T) {
	rollsOver(t, "lb", fmt.Sprintf("command = [%q]\nready = \"notify\"\n", sampleWorker(t)))
}

// Clients that keep their connections, as browsers do, see no error when Node closes them: it answers what is
// on its way first.
func TestHandOff_KeptConnectionsSeeNoErrorThroughARestart(t *testing.T) {
	eachNode(t, func(t *testing.T, node string) {
		script := writeFile(t, tempDir(t), "app.js", nodeHTTP, 0o644)
		l := startLB(t, handoffPool(t, "node", "", fmt.Sprintf("command = [%q, %q]\ncount = 2\n", node, script)))
		l.waitUp(t, 2)
		load := startRequests(t, l.addr(), 100, true)
		eventually(t, patience, func() error {
			if n := load.done.Load(); n < 1000 {
				return fmt.Errorf("requests answered: got %d; want 1000", n)
			}
			return nil
		})
		l.mustCommand(t, "restart", "app")
		load.wantNoFailure(t)
	})
}

// A worker that is drained closes its idle connections, so that it does not wait for clients that say
// nothing, and ends by itself.
func TestHandOff_ADrainedNodeWorkerClosesIdleConnections(t *testing.T) {
	eachNode(t, func(t *testing.T, node string) {
		script := writeFile(t, tempDir(t), "app.js", nodeHTTP, 0o644)
		l := startLB(t, handoffPool(t, "node", "", fmt.Sprintf("command = [%q, %q]\ncount = 1\nstop_timeout = \"1m\"\n", node, script)))
		before := l.waitUp(t, 1)
		conn := dial(t, l.addr())
		say(t, conn, "GET / HTTP/1.1\r\nHost: lb\r\n\r\n")
		if n, err := conn.Read(make([]byte, 4096)); n == 0 || err != nil {
			t.Fatalf("answer: got %d bytes, %v; want one", n, err)
		}
		began := time.Now()
		l.mustCommand(t, "restart", "app")
		conn.SetReadDeadline(time.Now().Add(patience))
		rest, err := io.ReadAll(conn)
		if err != nil {
			t.Errorf("the idle connection: got %q, %v; want its end", rest, err)
		}
		eventually(t, patience, func() error {
			if syscall.Kill(before.Slots[0].PID, 0) == nil {
				return fmt.Errorf("the drained worker: got it running; want its end")
			}
			return nil
		})
		t.Logf("closed and ended within %v", time.Since(began).Round(time.Millisecond))
	})
}
