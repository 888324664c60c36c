package bench

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// asked counts the calls of FreeAddr, so that no two of them get one port before it is used.
var asked atomic.Uint32

// FreeAddr returns an address "127.0.0.1:PORT" on which nobody listens. The port is below those that the kernel gives to
// outgoing connections: a load generator that opens tens of thousands of these would otherwise take it before it is used.
func FreeAddr() (string, error) {
	first := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 0 {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				first = n
			}
		}
	}
	const lowest = 10000
	if first <= lowest {
		first = 65536 // no room below: any port must do
	}
	var last error
	for range 100 {
		// Another process begins elsewhere.
		n := (uint32(os.Getpid())*2654435761>>8 + asked.Add(1)) % uint32(first-lowest)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+int(n)))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		if err := ln.Close(); err != nil {
			return "", fmt.Errorf("cannot find a free port: %w", err)
		}
		return addr, nil
	}
	return "", fmt.Errorf("cannot find a free port: %w", last)
}

// unixPath returns the path in an address "unix:/path".
func unixPath(addr string) (string, bool) { return strings.CutPrefix(addr, "unix:") }
