package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Port is a TCP port of 127.0.0.1 that is kept for a server to come, until Close: neither an outgoing
// connection gets it nor another Port, in this process or another. A server that sets SO_REUSEADDR or
// SO_REUSEPORT, as nearly all do, can listen on it meanwhile; for another one, close it first.
type Port struct {
	// Addr is "127.0.0.1:PORT".
	Addr string
	file *os.File
}

// ReservePort finds a port that nobody uses. It is below those that the kernel gives to outgoing connections:
// a load generator that opens tens of thousands of these would otherwise take it before it is used.
func ReservePort() (*Port, error) {
	const lowest = 10000
	end := firstEphemeral()
	if end <= lowest {
		end = 65536 // no room below: any port must do
	}
	var last error
	for range 100 {
		p, err := reserve(lowest + rand.IntN(end-lowest))
		if err == nil {
			return p, nil
		}
		last = err
	}
	return nil, fmt.Errorf("cannot find a free port: %w", last)
}

// Close lets others have the port. It does not end who listens on it.
func (p *Port) Close() error { return p.file.Close() }

// reserve binds a socket that never listens. Bound without SO_REUSEADDR it is refused a port that anybody
// has; with it from then on, it does not stand in the way of a socket that listens (inet_csk_bind_conflict in
// Linux).
func reserve(port int) (*Port, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	p := &Port{Addr: addr, file: os.NewFile(uintptr(fd), addr)}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", addr, err), p.Close())
	}
	return p, nil
}

// firstEphemeral is the lowest port that the kernel gives to outgoing connections (ip(7),
// ip_local_port_range).
func firstEphemeral() int {
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 0 {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				return n
			}
		}
	}
	return 32768 // the kernel's default
}

// unixPath returns the path in an address "unix:/path".
func unixPath(addr string) (string, bool) { return strings.CutPrefix(addr, "unix:") }
