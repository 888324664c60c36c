//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// handoffPool is a config with the pool app, whose workers are given accepted sockets. options are lines of
// the pool, workers those of its workers.
func handoffPool(t testing.TB, mode, options, workers string) lbConfig {
	t.Helper()
	config := workersPool(t, "", workers)
	config.Pools[0].Options = fmt.Sprintf("handoff = %q\n%s\n", mode, options) + config.Pools[0].Options
	return config
}

// takers are workers of both protocols that answer each line with their slot, "w0", and the line, by mode. A
// worker that serves a connection writes its first line to log, if that is not "", and answers afterwards.
func takers(t testing.TB, mode, log string) (workers string) {
	t.Helper()
	if mode == "node" {
		script := writeFile(t, tempDir(t), "lines.js", nodeLines, 0o644)
		return fmt.Sprintf("command = [%q, %q, %q]\n", program(t, "node"), script, log)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("cannot find this test binary: %v", err)
	}
	return fmt.Sprintf("command = [%q, %q]\nenv = { %s = %q }\n", self, log, roleVariable, roleTaker)
}

// eachMode runs a test for both protocols.
func eachMode(t *testing.T, test func(t *testing.T, mode string)) {
	for _, mode := range []string{"lb", "node"} {
		t.Run(mode, func(t *testing.T) { test(t, mode) })
	}
}

// nodeLines is a Node program that knows nothing of lb, and answers lines.
const nodeLines = `
const net = require('net'), fs = require('fs')
const name = 'w' + process.env.LB_WORKER_ID, log = process.argv[2]
net.createServer((c) => {
	let rest = '', first = true
	c.setEncoding('utf8')
	c.on('error', () => {})
	c.on('data', (d) => {
		const lines = (rest + d).split('\n')
		rest = lines.pop()
		for (const line of lines) {
			if (first && log) fs.appendFileSync(log, line + '\n')
			first = false
			c.write(name + ' ' + line + '\n')
		}
	})
}).listen(3000)
`

// serveTaken is the main function of a worker that takes connections as docs/handoff.md says, without a
// library.
func serveTaken(log string) error {
	const channel = 3
	name := "w" + os.Getenv("LB_WORKER_ID")
	for message, rights := make([]byte, 256), make([]byte, unix.CmsgSpace(4)); ; {
		n, size, _, _, err := unix.Recvmsg(channel, message, rights, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		fds, err := descriptorsIn(rights[:size])
		if err != nil || len(fds) != 1 || n < 40 {
			return fmt.Errorf("a message of %d bytes with the descriptors %v, %v", n, fds, err)
		}
		if err := unix.Sendto(channel, []byte{1}, unix.MSG_NOSIGNAL, nil); err != nil {
			return err
		}
		if probe := message[4] == 2; probe {
			unix.Close(fds[0])
			continue
		}
		file := os.NewFile(uintptr(fds[0]), "connection")
		conn, err := net.FileConn(file)
		file.Close()
		if err == nil { // else it is reset already
			go answerTaken(name, log, conn)
		}
	}
}

func descriptorsIn(rights []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	return unix.ParseUnixRights(&messages[0])
}

// answerTaken answers lines, and writes the first one to a file.
func answerTaken(name, log string, conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if first && log != "" {
			if err := appendTo(log, line); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
		}
		if _, err := io.WriteString(conn, name+" "+line); err != nil {
			return
		}
	}
}

// appendTo appends text to a file, in one write.
func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// served returns how often each line was served first, by what takers wrote to log.
func served(t testing.TB, log string) map[string]int {
	t.Helper()
	times := map[string]int{}
	for line := range strings.Lines(readFile(t, log)) {
		times[strings.TrimSpace(line)]++
	}
	return times
}

// newLog is the name of a file that takers write to.
func newLog(t testing.TB) string { return filepath.Join(tempDir(t), "served") }
