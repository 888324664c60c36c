//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The README's first line: an unchanged Node program behind lb, without a file.
func TestRun_ServesACommandWithoutAFile(t *testing.T) {
	dir := tempDir(t)
	writeFile(t, dir, "app.js", `require("http").createServer((q, r) => r.end("from " + process.pid + " to " + q.socket.remoteAddress)).listen(3000)`, 0o644)
	// A port that is free now; lb says so where it is taken by then.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	cmd := exec.Command(lbBinary(t), "run", "--listen", address, "--workers", "2", "--", "node", dir+"/app.js")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	startProcess(t, "lb", cmd)
	pids := map[string]bool{}
	eventually(t, patience, func() error {
		r := run(t, patience, nil, "curl", "-s", "http://"+address)
		pid, from, found := strings.Cut(strings.TrimPrefix(r.stdout, "from "), " to ")
		if !found {
			return fmt.Errorf("answer: got %q, %s; want one of Node", r.stdout, r.stderr)
		}
		if !strings.HasSuffix(from, "127.0.0.1") {
			t.Errorf("the client's address that Node sees: got %q; want 127.0.0.1", from)
		}
		if pids[pid] = true; len(pids) < 2 {
			return fmt.Errorf("workers that answered: got %v; want two", pids)
		}
		return nil
	})
}
