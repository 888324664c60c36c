package load

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// startTaker starts a worker on a channel, and returns it and lb's end.
func startTaker(t *testing.T) (*exec.Cmd, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[0]) })
	limit := unix.NsecToTimeval(int64(testLimit))
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(pair[1]), "channel")
	defer file.Close()
	return startOn(t, file, "sleep", handoff.EnvFD+"=3"), pair[0]
}

// handOver connects a client, and gives the worker its connection.
func handOver(t *testing.T, channel int, c handoff.Connection) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	raw, err := accepted.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.Sendmsg(channel, handoff.AppendConnection(nil, &c), unix.UnixRights(int(fd)), nil, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// wantTaken waits for the worker's word that it has taken a connection.
func wantTaken(t *testing.T, channel int) {
	t.Helper()
	b := make([]byte, 8)
	if n, err := unix.Read(channel, b); err != nil || n != 1 || handoff.Reply(b[0]) != handoff.Taken {
		t.Fatalf("the worker answered %v, %v; want that it has taken the connection", b[:max(n, 0)], err)
	}
}

func TestServe_TakesHandedOffConnections(t *testing.T) {
	cmd, channel := startTaker(t)
	probe := handOver(t, channel, handoff.Connection{Probe: true})
	client := handOver(t, channel, handoff.Connection{ID: 1})
	wantTaken(t, channel)
	wantTaken(t, channel)
	if _, err := probe.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("probe: got %v; want its end", err)
	}
	io.WriteString(client, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
	if reply, err := io.ReadAll(client); err != nil || !strings.Contains(string(reply), "Worker: 7 ") {
		t.Errorf("got %q, %v; want an answer of worker 7", reply, err)
	}
	// lb goes, and the worker ends.
	unix.Shutdown(channel, unix.SHUT_RDWR)
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v; want a clean end", err)
	}
}
