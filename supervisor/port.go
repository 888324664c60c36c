package supervisor

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A worker that is told a {port} binds it itself, some time after lb has found it free. Whoever listens there
// first would get its clients; so the worker counts as ready only when the socket that listens is its own.

// freePort returns a TCP port on the loopback address that nobody listens on now, and that no worker of the
// pool has.
func (p *Pool) freePort() (int, error) {
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := ln.Addr().(*net.TCPAddr).Port
		ln.Close()
		if !slices.ContainsFunc(p.workers, func(w *worker) bool { return w.end != nil && w.end.port == port }) {
			return port, nil
		}
	}
	return 0, errors.New("all are taken")
}

// listener is a socket that listens, as /proc/net/tcp has it.
type listener struct {
	inode string
	uid   int
}

// foreignListener returns an error when a socket that takes connections to 127.0.0.1:port is not the
// worker's. Nil: all are its own, and there is one at least, or what it asked cannot be known.
func foreignListener(port int, w *worker) error {
	all, err := listeners(port)
	if err != nil { // no /proc/net: then nobody else's can be told apart
		return nil
	}
	if len(all) == 0 {
		return fmt.Errorf("nobody listens on port %d of this network namespace", port)
	}
	own, blind := ownSockets(w.process.session)
	uid := os.Geteuid()
	if blind {
		if id, err := w.release.config().identity(); err == nil && id.set {
			uid = id.uid
		}
	}
	for _, l := range all {
		switch {
		case own["socket:["+l.inode+"]"]:
		case blind && l.uid == uid: // not its process's, or one that lb may not look into
		default:
			return fmt.Errorf("its port %d is taken by another process, of user %d", port, l.uid)
		}
	}
	return nil
}

// ownSockets returns what the descriptors of a worker's processes lead to. blind: some may not be looked at.
func ownSockets(s *session) (own map[string]bool, blind bool) {
	own = map[string]bool{}
	members, _ := s.members()
	for _, r := range members {
		dir := "/proc/" + strconv.Itoa(r.pid) + "/fd"
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrPermission) {
			blind = true
		}
		for _, e := range entries {
			target, err := os.Readlink(dir + "/" + e.Name())
			if errors.Is(err, os.ErrPermission) {
				blind = true
			}
			if err == nil {
				own[target] = true
			}
		}
	}
	return own, blind
}

// The addresses at which a listener takes connections to 127.0.0.1, as /proc/net/tcp and tcp6 write them on
// this machine.
var loopback = map[string][]string{
	"/proc/net/tcp":  {hexAddress(net.IPv4(127, 0, 0, 1).To4()), "00000000"},
	"/proc/net/tcp6": {hexAddress(net.IPv4(127, 0, 0, 1)), strings.Repeat("0", 32)},
}

// hexAddress writes an address as the kernel does: 32-bit words in the machine's byte order.
func hexAddress(ip net.IP) string {
	var b strings.Builder
	for i := 0; i < len(ip); i += 4 {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(ip[i:i+4]))
	}
	return b.String()
}

// listeners returns the sockets that take connections to 127.0.0.1:port.
func listeners(port int) (all []listener, err error) {
	for path, addresses := range loopback {
		err := eachListeningTCP(path, func(fields []string) {
			address, number, _ := strings.Cut(fields[1], ":")
			if n, err := strconv.ParseUint(number, 16, 16); err != nil || int(n) != port || !slices.Contains(addresses, address) {
				return
			}
			uid, _ := strconv.Atoi(fields[7])
			all = append(all, listener{inode: fields[9], uid: uid})
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// eachListeningTCP calls f with the fields of every socket that listens, of a table such as /proc/net/tcp.
// A table for IPv6 that is not there is an empty one.
func eachListeningTCP(path string, f func(fields []string)) error {
	table, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && strings.HasSuffix(path, "6") {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return err
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	lines.Scan() // the heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		const listens = "0A"
		if len(fields) < 10 || fields[3] != listens {
			break // those that listen come first
		}
		f(fields)
	}
	return lines.Err()
}
