package health

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
	"golang.org/x/sys/unix"
)

// ErrBusy is for Checker.DialChannel: a worker takes connections, and has not come to the probe's yet.
var ErrBusy = errors.New("the worker takes connections, and has not come to this one yet")

// result is the outcome of one probe.
type result struct {
	outcome  Outcome
	reason   string
	agent    *agentLine // the line of an agent; nil if it was not understood, or the type is another
	hung     bool       // a failure: the backend is there and does nothing
	blind    bool       // "accept" saw no more than "connect" sees
	shortage bool       // inconclusive: lb itself was out of something
	timeout  bool       // a failure: the time was over
}

func success(format string, args ...any) result {
	return result{outcome: Success, reason: fmt.Sprintf(format, args...)}
}

func failure(format string, args ...any) result {
	return result{outcome: Failure, reason: fmt.Sprintf(format, args...)}
}

// timedOut returns a failure because the time was over.
func timedOut(format string, args ...any) result {
	found := failure(format, args...)
	found.timeout = true
	return found
}

// prober probes one backend. It belongs to the watch's goroutine.
type prober struct {
	// nil: the kernel does not say who accepts
	sockets *sockdiag.Conn
	channel func(context.Context, *backends.Backend) (net.Conn, error) // Checker.DialChannel
	accept  acceptProbe
}

// close closes what one probe has left for the next.
func (x *prober) close() { x.accept.reset() }

// probe probes b once, within p.Timeout. It and acceptProbe are the only places of the package that do I/O.
func (x *prober) probe(ctx context.Context, p *plan, b *backends.Backend) result {
	probing, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	handedOff := b.Channel != nil && x.channel != nil && p.address == (backends.Address{}) && p.Port == 0
	if p.Type == typeAccept && !handedOff {
		found := x.accept.probe(probing, p, b, x.sockets)
		if ctx.Err() != nil {
			x.accept.reset()
		}
		return found
	}
	ctx = probing
	conn, err := x.dial(ctx, p, b, handedOff)
	if err != nil {
		if handedOff && errors.Is(err, ErrBusy) && (p.Type == typeAccept || p.Type == typeConnect) {
			return success("takes others")
		}
		if handedOff && errors.Is(err, ErrBusy) {
			return timedOut("timeout after %v: %v", p.Timeout, err)
		}
		if handedOff && isTimeout(err) {
			found := timedOut("timeout after %v: it takes no connection", p.Timeout)
			found.hung = true
			return found
		}
		return p.connectFault(err)
	}
	defer closeProbe(conn)
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails only on a closed connection
	}
	// A deadline does not hear of a cancelled context.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if err := p.introduce(conn, b); err != nil {
		return p.exchangeFault(err, "a connection", nil)
	}
	switch p.Type {
	case typeSendExpect:
		return p.sendExpect(conn)
	case typeHTTP:
		return p.httpStatus(conn, p.httpHost(b))
	case typeAgent:
		return p.askAgent(conn)
	}
	if handedOff {
		return success("taken")
	}
	return success("connected")
}

// dial connects to b, or has its worker take a connection.
func (x *prober) dial(ctx context.Context, p *plan, b *backends.Backend, handedOff bool) (net.Conn, error) {
	if handedOff {
		return x.channel(ctx, b)
	}
	return dial(ctx, p, b)
}

// closeProbe closes a TCP connection with RST: a probe a second would leave sixty sockets a backend in
// TIME_WAIT (tcp(7), SO_LINGER).
func closeProbe(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // no more than those sockets is lost
	}
	conn.Close()
}

// Headers of the PROXY protocol, sections 2.1 and 2.2, for a connection that lb makes for itself.
const (
	proxyV1Unknown = "PROXY UNKNOWN\r\n"
	proxyV2Local   = "\r\n\r\n\x00\r\nQUIT\n" + "\x20" + "\x00" + "\x00\x00"
)

// introduce sends the PROXY header that a backend expects at its own address where the pool has send_proxy.
func (p *plan) introduce(conn net.Conn, b *backends.Backend) error {
	if p.address != (backends.Address{}) || p.Port != 0 {
		return nil // another listener, which clients' connections do not go to
	}
	var header string
	switch b.Pool().Config().SendProxy {
	case "v1":
		header = proxyV1Unknown
	case "v2":
		header = proxyV2Local
	default:
		return nil
	}
	_, err := io.WriteString(conn, header)
	return err
}

// retrySaturated is how long a probe that wants an answer waits before it tries a full backlog again.
const retrySaturated = 20 * time.Millisecond

// dial connects to what the plan probes of b. A full backlog ends a "connect" at once. The other types want
// an answer, so they try again until their time is over.
func dial(ctx context.Context, p *plan, b *backends.Backend) (net.Conn, error) {
	address := p.destination(b)
	var full error
	for {
		conn, err := dialOnce(ctx, b, address)
		switch {
		case err == nil || p.Type == typeConnect:
			return conn, err
		case errors.Is(err, unix.EAGAIN):
			full = err
		case full != nil && isTimeout(err):
			return nil, full
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, full
		case <-time.After(retrySaturated):
		}
	}
}

// dialOnce connects to an address of b as lb connects clients: only where it may. The error is then an
// untrusted.
func dialOnce(ctx context.Context, b *backends.Backend, address backends.Address) (net.Conn, error) {
	if !address.IsUnix() {
		if reason := b.RefusesTCP(address); reason != "" {
			return nil, untrusted(reason)
		}
		dialer := net.Dialer{KeepAlive: -1, FallbackDelay: -1}
		return dialer.DialContext(ctx, address.Network(), address.Dial())
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	target := &b.Target
	if address != b.Address {
		var err error
		if target, err = b.TargetAt(ctx, address); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), address.String())
	defer f.Close() // net.FileConn copies it
	switch errno := target.ConnectVerified(int32(fd)); errno {
	case 0:
		return net.FileConn(f)
	case backends.ErrUntrusted:
		return nil, untrusted(target.Refusal())
	default:
		return nil, os.NewSyscallError("connect", errno)
	}
}

// untrusted is why lb did not connect to an address.
type untrusted string

func (e untrusted) Error() string { return "untrusted: " + string(e) }

// destination returns the address to probe for b. A host name that was resolved for the clients' connections
// is probed at the address that those go to.
func (p *plan) destination(b *backends.Backend) backends.Address {
	a := p.address
	if a == (backends.Address{}) {
		a = b.Address
		if ip, ok := resolvedIP(b); ok {
			a.Host = ip
		}
		if p.Port != 0 && !a.IsUnix() {
			a.Port = uint16(p.Port)
		}
	}
	return a
}

// resolvedIP returns the IP address that connections to b go to, if b is a TCP backend and the address is
// known.
func resolvedIP(b *backends.Backend) (string, bool) {
	sa := b.Sockaddr()
	if sa == nil {
		return "", false
	}
	// After the family: the port, then the address of ip(7), or the flow, the address and the scope of
	// ipv6(7).
	var raw [26]byte
	for i, c := range sa.Any.Addr.Data {
		raw[i] = byte(c)
	}
	for i := range raw[14:] {
		raw[14+i] = byte(sa.Any.Pad[i])
	}
	switch sa.Family {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(raw[2:6])).String(), true
	case unix.AF_INET6:
		ip := netip.AddrFrom16([16]byte(raw[6:22]))
		if scope := binary.NativeEndian.Uint32(raw[22:26]); scope != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
		return ip.String(), true
	}
	return "", false
}

// connectFault judges a connect that failed.
func (p *plan) connectFault(err error) result {
	var errno unix.Errno
	switch {
	case errors.Is(err, unix.EAGAIN) && (p.Type == typeConnect || p.Type == typeAccept):
		return result{outcome: Inconclusive, reason: "saturated: its backlog is full"}
	case errors.Is(err, unix.EAGAIN):
		return timedOut("timeout after %v: its backlog was full", p.Timeout)
	case isTimeout(err):
		return timedOut("timeout after %v: not connected", p.Timeout)
	case !errors.As(err, &errno):
		return failure("%v", err) // a host name that is not found, for one
	}
	if isShortage(errno) {
		return shortage(errno)
	}
	return failure("%s", errno.Error())
}

// isShortage reports whether a system call failed because lb, or its host, is out of something: descriptors,
// memory, ports of its own, places in epoll sets (ENOSPC, epoll_ctl(2)). That says nothing of the backend.
func isShortage(errno unix.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL, unix.ENOSPC:
		return true
	}
	return false
}

func shortage(errno unix.Errno) result {
	reason := "lb cannot probe it: " + errno.Error()
	switch errno {
	case unix.EMFILE:
		reason += " (RLIMIT_NOFILE)"
	case unix.ENOSPC:
		reason += " (fs.epoll.max_user_watches)"
	case unix.EADDRNOTAVAIL:
		reason += " (net.ipv4.ip_local_port_range)"
	}
	return result{outcome: Inconclusive, reason: reason, shortage: true}
}

// exchangeFault judges a connection that broke or stayed silent. got is what came until then.
func (p *plan) exchangeFault(err error, want string, got []byte) result {
	said := "no reply"
	if len(got) > 0 {
		said = quote(got)
	}
	var errno unix.Errno
	switch {
	case isTimeout(err):
		return timedOut("timeout after %v: expected %s, got %s", p.Timeout, want, said)
	case errors.As(err, &errno) && isShortage(errno):
		return shortage(errno)
	case errors.As(err, &errno):
		return failure("%s: expected %s, got %s", errno.Error(), want, said)
	case len(got) == 0:
		return failure("expected %s, but it closed the connection", want)
	}
	return failure("expected %s, got %s", want, said)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// ask sends p.send, if any. On a Unix socket even an empty write fails with EPIPE once the other side has
// closed.
func (p *plan) ask(conn net.Conn) error {
	if len(p.send) == 0 {
		return nil
	}
	_, err := conn.Write(p.send)
	return err
}

// sendExpect sends p.send, if any, and reads until the reply matches p.expect or cannot match it any more.
func (p *plan) sendExpect(conn net.Conn) result {
	if err := p.ask(conn); err != nil {
		return p.exchangeFault(err, p.expect.String(), nil)
	}
	reply := make([]byte, 0, maxReply)
	for {
		n, err := conn.Read(reply[len(reply):cap(reply)])
		reply = reply[:len(reply)+n]
		ok, more := p.expect.match(reply)
		switch {
		case ok:
			return success("got %s", quote(p.expect.want))
		case err != nil:
			return p.exchangeFault(err, p.expect.String(), reply)
		case !more:
			return failure("expected %s, got %s", p.expect, quote(reply))
		}
	}
}

const (
	// maxHeader bounds an HTTP response's header, in bytes.
	maxHeader = 64 << 10
	// maxInterim bounds the 1xx responses before the one that counts (RFC 9110, section 15.2).
	maxInterim = 5
)

// httpHost returns the Host header for a request to b.
func (p *plan) httpHost(b *backends.Backend) string {
	if p.HTTPHost != "" {
		return p.HTTPHost
	}
	a := b.Address
	if p.address != (backends.Address{}) {
		a = p.address
	} else if p.Port != 0 {
		a.Port = uint16(p.Port)
	}
	if a.IsUnix() {
		return "localhost"
	}
	return a.Dial()
}

// httpStatus sends the request and judges the status. It does not read the body.
func (p *plan) httpStatus(conn net.Conn, host string) result {
	const want = "an HTTP response"
	_, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: lb\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		p.HTTPMethod, p.HTTPPath, host)
	if err != nil {
		return p.exchangeFault(err, want, nil)
	}
	reader := bufio.NewReaderSize(io.LimitReader(conn, maxHeader), maxReply)
	// Keep the start for the reason: net/http takes it out of the reader.
	start, err := reader.Peek(len("HTTP/1."))
	if err != nil {
		return p.exchangeFault(err, want, start)
	}
	start, _ = reader.Peek(min(reader.Buffered(), maxQuote+1))
	start = append([]byte(nil), start...)
	for range maxInterim {
		response, err := http.ReadResponse(reader, &http.Request{Method: p.HTTPMethod})
		var broken *net.OpError // a timeout or a reset
		switch {
		case errors.As(err, &broken):
			return p.exchangeFault(err, want, start)
		case errors.Is(err, io.ErrUnexpectedEOF):
			return failure("expected %s, got only the start of its header: %s", want, quote(start))
		case err != nil:
			return failure("expected %s, got %s", want, quote(start))
		}
		// Not response.Body.Close: that reads the body to its end.
		code := response.StatusCode
		if code >= 100 && code <= 199 && code != http.StatusSwitchingProtocols {
			continue
		}
		if !p.status.has(code) {
			return failure("http status %d, want %s", code, p.status)
		}
		return success("http status %d", code)
	}
	return failure("expected %s, got more than %d interim ones", want, maxInterim)
}

// askAgent sends p.send, if any, and reads one line with its end. Half a line could say another number.
func (p *plan) askAgent(conn net.Conn) result {
	const want = "a whole line from the agent"
	if err := p.ask(conn); err != nil {
		return p.exchangeFault(err, want, nil)
	}
	line := make([]byte, 0, maxLine)
	for {
		n, err := conn.Read(line[len(line):cap(line)])
		line = line[:len(line)+n]
		if end := indexLineEnd(line); end >= 0 {
			return judgeAgent(string(line[:end]))
		}
		if err != nil {
			return p.exchangeFault(err, want, line)
		}
		if len(line) == maxLine {
			return failure("expected %s, got %d bytes without an end: %s", want, maxLine, quote(line))
		}
	}
}

func indexLineEnd(b []byte) int {
	for i, c := range b {
		if c == '\n' || c == '\r' {
			return i
		}
	}
	return -1
}

// judgeAgent judges an agent's line by itself: an agent that answers is alive. evidence.weighAgent judges
// what it says of the backend's health, as that depends on what it said before.
func judgeAgent(line string) result {
	a := parseAgentLine(line)
	if a.unknown != "" && !a.understood() {
		return failure("expected a line of the agent protocol, got %s", quote([]byte(line)))
	}
	return result{outcome: Success, reason: a.String(), agent: &a}
}
