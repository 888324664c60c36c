package proxy

// The PROXY protocol, versions 1 and 2: https://www.haproxy.org/download/3.4/doc/proxy-protocol.txt, "the
// spec" here. Section numbers are its own. BenchmarkProxyHeader holds the cost, which only connections with a
// header pay.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

const (
	maxProxyV1   = 107 // a line of version 1 with its CRLF (2.1)
	proxyV2Fixed = 16  // signature, version and command, family, length (2.2)
	// what may follow that; the largest TLV in use, a client certificate, takes 1 to 2 KiB
	maxProxyV2    = 4096
	maxProxyBytes = proxyV2Fixed + maxProxyV2
)

// Faults of a PROXY header. Each closes the connection.
var (
	errProxyMissing = errors.New("the client sent no PROXY header")
	errProxyTooLong = errors.New("the PROXY header is too long")
	errProxyInvalid = errors.New("the PROXY header is invalid")

	// errProxyChecksum is an errProxyInvalid too.
	errProxyChecksum = fmt.Errorf("%w: wrong CRC32c checksum", errProxyInvalid)
)

const (
	proxyV1Signature = "PROXY "
	proxyV2Signature = "\r\n\r\n\x00\r\nQUIT\n"

	proxyV2Local  = 0x20 // version 2, command LOCAL
	proxyV2Proxy  = 0x21 // version 2, command PROXY
	proxyV2Unspec = 0x00 // family and transport that are not told
)

// proxyHeader is what a PROXY header says.
type proxyHeader struct {
	// Version is 1 or 2.
	Version uint8
	// Client and Server are the two ends of the connection that was passed on, neither IPv4-mapped. Both are
	// the zero value when the header names no TCP addresses (LOCAL, UNKNOWN, UNSPEC, a Unix socket, UDP):
	// then the addresses of the connection that it came on hold (2.2).
	Client, Server netip.AddrPort
	// TLVs are the further facts of version 2, as they came: a well-formed vector with a right checksum, or
	// none. They lie in the buffer that was parsed: copy them to keep them.
	TLVs []byte
}

// proxyHeaderReader reads PROXY headers. It keeps nothing from one call to the next but its buffers: one
// serves all sessions of a loop, and only that loop.
type proxyHeaderReader struct {
	src bytes.Reader
	buf *bufio.Reader
}

// read looks for a PROXY header at the start of b, which holds what the client has sent so far: a part of a
// header, or a whole one and more. n is the length of the header, 0 when more must come first. It never waits
// and remembers nothing: the next call gets all the bytes again, the new ones behind (or MSG_PEEK leaves them
// in the socket). maxProxyBytes are enough to see any header whole. What is no header is an error as soon as
// it shows, and stays one whatever follows.
//
// The library's parser reads from a bufio.Reader and would block at the end of a part, so it gets only whole
// headers: their length is known from the fixed part of version 2, or the LF of version 1.
func (r *proxyHeaderReader) read(b []byte) (h proxyHeader, n int, err error) {
	switch {
	case hasSignature(b, proxyV2Signature):
		return r.readV2(b)
	case hasSignature(b, proxyV1Signature):
		return r.readV1(b)
	}
	return h, 0, errProxyMissing
}

// hasSignature says whether b begins with the signature, or is the beginning of it.
func hasSignature(b []byte, signature string) bool {
	n := min(len(b), len(signature))
	return string(b[:n]) == signature[:n]
}

func (r *proxyHeaderReader) readV1(b []byte) (h proxyHeader, n int, err error) {
	line := b[:min(len(b), maxProxyV1)]
	n = bytes.IndexByte(line, '\n') + 1
	if n == 0 {
		if len(line) == maxProxyV1 {
			return h, 0, fmt.Errorf("%w: no line end in the first %d bytes", errProxyTooLong, maxProxyV1)
		}
		return h, 0, nil
	}
	parsed, err := r.parse(b[:n])
	if err != nil {
		return h, 0, err
	}
	h.Version = 1
	h.Client, h.Server = headerAddrs(parsed)
	return h, n, nil
}

func (r *proxyHeaderReader) readV2(b []byte) (h proxyHeader, n int, err error) {
	if len(b) < proxyV2Fixed {
		return h, 0, nil
	}
	command, family := b[12], b[13]
	length := int(binary.BigEndian.Uint16(b[14:]))
	if length > maxProxyV2 {
		return h, 0, fmt.Errorf("%w: %d bytes; the limit is %d", errProxyTooLong, proxyV2Fixed+length, maxProxyBytes)
	}
	n = proxyV2Fixed + length
	if len(b) < n {
		return h, 0, nil
	}
	h.Version = 2
	addrs := 0 // bytes of addresses, before the TLVs
	if command != proxyV2Proxy || family != proxyV2Unspec {
		// PROXY with UNSPEC the library refuses, while the spec leaves it to the receiver (2.2); there is no
		// more to it than to LOCAL.
		parsed, err := r.parse(b[:n])
		if err != nil {
			return h, 0, err
		}
		if command == proxyV2Proxy {
			h.Client, h.Server = headerAddrs(parsed)
		}
		addrs = addrBytes(parsed.TransportProtocol)
	}
	tlvs := b[proxyV2Fixed+addrs : n]
	err = checkTLVs(b[:n], tlvs)
	switch {
	case err == nil && len(tlvs) > 0:
		h.TLVs = tlvs
	case err != nil && (h.Client.IsValid() || errors.Is(err, errProxyChecksum)):
		return proxyHeader{}, 0, err
	}
	// Where no TCP address is told, a block that is no TLVs may hold anything, and is to be ignored (2.2).
	return h, n, nil
}

// parse gives the library one whole header.
func (r *proxyHeaderReader) parse(header []byte) (*proxyproto.Header, error) {
	r.src.Reset(header)
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(&r.src, maxProxyBytes)
	} else {
		r.buf.Reset(&r.src)
	}
	parsed, err := proxyproto.Read(r.buf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errProxyInvalid, err)
	}
	return parsed, nil
}

// headerAddrs are the ends that a header names, zero unless both are TCP addresses.
func headerAddrs(parsed *proxyproto.Header) (client, server netip.AddrPort) {
	from, to, ok := parsed.TCPAddrs()
	if !ok {
		return netip.AddrPort{}, netip.AddrPort{}
	}
	return unmapAddrPort(from.AddrPort()), unmapAddrPort(to.AddrPort())
}

func unmapAddrPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// addrBytes is how many bytes of addresses version 2 has for a family.
func addrBytes(family proxyproto.AddressFamilyAndProtocol) int {
	switch {
	case family.IsUnspec():
		return 0
	case family.IsIPv4():
		return 12
	case family.IsIPv6():
		return 36
	}
	return 216
}

// appendProxyHeader appends a PROXY header for a backend to dst: client is where the connection comes from,
// server where it went to, before lb. Version 1 leaves the TLVs out; version 2 passes them on, with NOOPs
// emptied, and with a new checksum where there was one. If one of the two has no TCP address, as on a Unix
// listener, the header tells none: UNKNOWN, or LOCAL as haproxy does, since its receivers do not take PROXY
// with UNSPEC.
func appendProxyHeader(dst []byte, version uint8, client, server netip.AddrPort, tlvs []byte) ([]byte, error) {
	var from, to net.Addr
	if client.IsValid() && server.IsValid() {
		from, to = net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(server)
	}
	header := proxyproto.HeaderProxyFromAddrs(version, from, to)
	if len(tlvs) > 0 && version == 2 {
		split, err := proxyproto.SplitTLVs(tlvs)
		if err == nil {
			err = header.SetTLVs(split)
		}
		if err != nil {
			return dst, fmt.Errorf("cannot pass on the TLVs of a PROXY header: %w", err)
		}
	}
	out, err := header.Format()
	if err != nil {
		return dst, fmt.Errorf("cannot make a PROXY header for %v to %v: %w", client, server, err)
	}
	if len(tlvs) > 0 && version == 2 {
		if sum := findChecksum(out[proxyV2Fixed+addrBytes(header.TransportProtocol):]); sum != nil {
			clear(sum)
			binary.BigEndian.PutUint32(sum, crc32.Checksum(out, castagnoli))
		}
	}
	return append(dst, out...), nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// nextTLV splits the first TLV off a vector (2.2); ok is false when it is cut short.
func nextTLV(tlvs []byte) (kind proxyproto.PP2Type, value, rest []byte, ok bool) {
	if len(tlvs) < 3 {
		return 0, nil, nil, false
	}
	end := 3 + int(binary.BigEndian.Uint16(tlvs[1:]))
	if len(tlvs) < end {
		return 0, nil, nil, false
	}
	return proxyproto.PP2Type(tlvs[0]), tlvs[3:end], tlvs[end:], true
}

// checkTLVs checks the form of the TLVs at the end of header, and its checksum if they have one (2.2.3).
func checkTLVs(header, tlvs []byte) error {
	for len(tlvs) > 0 {
		offset := len(header) - len(tlvs) + 3
		kind, value, rest, ok := nextTLV(tlvs)
		if !ok {
			return fmt.Errorf("%w: a TLV is cut short", errProxyInvalid)
		}
		tlvs = rest
		if kind != proxyproto.PP2_TYPE_CRC32C {
			continue
		}
		if len(value) != 4 {
			return fmt.Errorf("%w: its checksum has %d bytes", errProxyInvalid, len(value))
		}
		sum := crc32.Checksum(header[:offset], castagnoli)
		sum = crc32.Update(sum, castagnoli, []byte{0, 0, 0, 0}) // in its own place (2.2.3)
		sum = crc32.Update(sum, castagnoli, header[offset+4:])
		if sum != binary.BigEndian.Uint32(value) {
			return errProxyChecksum
		}
	}
	return nil
}

// findChecksum is the value of the checksum in a well-formed TLV vector, nil if there is none.
func findChecksum(tlvs []byte) []byte {
	for len(tlvs) > 0 {
		kind, value, rest, ok := nextTLV(tlvs)
		if ok && kind == proxyproto.PP2_TYPE_CRC32C && len(value) == 4 {
			return value
		}
		tlvs = rest
	}
	return nil
}
