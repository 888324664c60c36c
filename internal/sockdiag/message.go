package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The messages of linux/sock_diag.h, linux/inet_diag.h and linux/unix_diag.h. Numbers are in the byte order
// of the machine, but ports, which are in network order.
const (
	sockDestroy = 21 // SOCK_DESTROY

	sizeofInetRequest = 56 // struct inet_diag_req_v2
	sizeofInetMessage = 72 // struct inet_diag_msg
	sizeofUnixRequest = 24 // struct unix_diag_req
	sizeofUnixMessage = 16 // struct unix_diag_msg
	sizeofAttribute   = 4  // struct nlattr

	inetInfo = 2 // INET_DIAG_INFO: struct tcp_info

	unixShowName    = 1 << 0 // UDIAG_SHOW_NAME
	unixShowVFS     = 1 << 1 // UDIAG_SHOW_VFS
	unixShowPeer    = 1 << 2 // UDIAG_SHOW_PEER
	unixShowClients = 1 << 3 // UDIAG_SHOW_ICONS
	unixShowQueues  = 1 << 4 // UDIAG_SHOW_RQLEN

	unixName    = 0 // UNIX_DIAG_NAME
	unixVFS     = 1 // UNIX_DIAG_VFS
	unixPeer    = 2 // UNIX_DIAG_PEER
	unixClients = 3 // UNIX_DIAG_ICONS
	unixQueues  = 4 // UNIX_DIAG_RQLEN

	lastSentAt     = int(unsafe.Offsetof(unix.TCPInfo{}.Last_data_sent))
	lastReceivedAt = int(unsafe.Offsetof(unix.TCPInfo{}.Last_data_recv))

	ackedAt    = int(unsafe.Offsetof(unix.TCPInfo{}.Bytes_acked))
	receivedAt = int(unsafe.Offsetof(unix.TCPInfo{}.Bytes_received))
	sentAt     = int(unsafe.Offsetof(unix.TCPInfo{}.Bytes_sent))
	sentAgain  = int(unsafe.Offsetof(unix.TCPInfo{}.Bytes_retrans))
)

const (
	// stateListen is TCP_LISTEN of linux/tcp_states.h; Unix sockets use the same number.
	stateListen = 1 << 10
	// statesOfData are those in which a socket can carry data: not SYN_RECV (3), TIME_WAIT (6) and LISTEN
	// (10).
	statesOfData = 0xfff &^ (1<<3 | 1<<6 | 1<<10)
)

// inetRequest returns a request for TCP sockets of the family in one of the states (a bit each), with port as
// their local port; 0 is any.
func inetRequest(family uint8, states uint32, port uint16) []byte {
	b := make([]byte, sizeofInetRequest)
	b[0], b[1] = family, unix.IPPROTO_TCP
	b[2] = 1 << (inetInfo - 1)
	native.PutUint32(b[4:], states)
	binary.BigEndian.PutUint16(b[8:], port)
	putCookie(b[48:], anyCookie)
	return b
}

// inetExact returns a request for the one socket with these addresses. cookie is anyCookie or must match.
func inetExact(local, remote netip.AddrPort, cookie uint64) []byte {
	b := inetRequest(family(local.Addr()), 0xfff, local.Port())
	binary.BigEndian.PutUint16(b[10:], remote.Port())
	copy(b[12:28], local.Addr().AsSlice())
	copy(b[28:44], remote.Addr().AsSlice())
	putCookie(b[48:], cookie)
	return b
}

// anyCookie matches each socket: INET_DIAG_NOCOOKIE.
const anyCookie = ^uint64(0)

func putCookie(b []byte, cookie uint64) {
	native.PutUint32(b, uint32(cookie))
	native.PutUint32(b[4:], uint32(cookie>>32))
}

func getCookie(b []byte) uint64 {
	return uint64(native.Uint32(b)) | uint64(native.Uint32(b[4:]))<<32
}

// unixRequest returns a request for Unix sockets in one of the states, or for the one with the inode if it is
// not 0.
func unixRequest(states, inode, show uint32) []byte {
	b := make([]byte, sizeofUnixRequest)
	b[0] = unix.AF_UNIX
	native.PutUint32(b[4:], states)
	native.PutUint32(b[8:], inode)
	native.PutUint32(b[12:], show)
	putCookie(b[16:], anyCookie)
	return b
}

// parseInet reads a struct inet_diag_msg and the tcp_info behind it into s. It reports whether the message is
// whole. It allocates nothing.
func parseInet(b []byte, s *Socket) bool {
	if len(b) < sizeofInetMessage {
		return false
	}
	*s = Socket{State: State(b[1])}
	var local, remote netip.Addr
	switch b[0] {
	case unix.AF_INET:
		local, remote = netip.AddrFrom4([4]byte(b[8:12])), netip.AddrFrom4([4]byte(b[24:28]))
	case unix.AF_INET6:
		local, remote = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return false
	}
	s.Local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[4:]))
	s.Remote = netip.AddrPortFrom(remote, binary.BigEndian.Uint16(b[6:]))
	s.Cookie = getCookie(b[44:])
	s.queue = Queue{Waiting: int(native.Uint32(b[56:])), Limit: int(native.Uint32(b[60:]))}
	s.UID = native.Uint32(b[64:])
	s.Inode = native.Uint32(b[68:])
	if info := attribute(b[sizeofInetMessage:], inetInfo); len(info) >= receivedAt+8 {
		s.Acked, s.Received = native.Uint64(info[ackedAt:]), native.Uint64(info[receivedAt:])
		s.Sent = max(s.Acked, 1) - 1 // before Linux 4.19: all but a FIN
		if len(info) >= sentAgain+8 {
			s.Sent = native.Uint64(info[sentAt:]) - native.Uint64(info[sentAgain:])
		}
		idle := min(native.Uint32(info[lastSentAt:]), native.Uint32(info[lastReceivedAt:]))
		s.Idle = time.Duration(idle) * time.Millisecond
	}
	return true
}

// attribute returns the payload of the first attribute of that kind, or nil.
func attribute(b []byte, kind uint16) []byte {
	for len(b) >= sizeofAttribute {
		size := int(native.Uint16(b))
		if size < sizeofAttribute || size > len(b) {
			return nil
		}
		if native.Uint16(b[2:]) == kind {
			return b[sizeofAttribute:size]
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}
