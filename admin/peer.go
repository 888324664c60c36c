package admin

import (
	"context"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Peer is who sent a request.
type Peer struct {
	// Local says that he came over the control socket, and that the kernel told who he was when he connected
	// (SO_PEERCRED, unix(7)): PID, UID and GID. The PID is 0 if it is one of another PID namespace.
	Local    bool
	PID      int32
	UID, GID uint32
	// Addr is his address, where he came over TCP; Token says that he sent the right one.
	Addr  string
	Token bool
}

// Access is what the peer may do. Who may open the control socket (its mode says who) may operate; root and the user
// that runs lb may do everything. Over TCP there is only reading, and with the token everything.
func (p Peer) Access() Access {
	switch {
	case p.Token:
		return AccessAdmin
	case !p.Local:
		return AccessRead
	case p.UID == 0 || p.UID == uint32(os.Geteuid()):
		return AccessAdmin
	default:
		return AccessOperate
	}
}

// String names the peer for the event log: "uid 0", "token" or an address.
func (p Peer) String() string {
	switch {
	case p.Local:
		return "uid " + strconv.FormatUint(uint64(p.UID), 10)
	case p.Token:
		return "token"
	default:
		return p.Addr
	}
}

type peerKey struct{}

// PeerFrom gives the peer of a request by its context; the zero Peer, who may only read, where there is none.
func PeerFrom(ctx context.Context) Peer {
	p, _ := ctx.Value(peerKey{}).(Peer)
	return p
}

// withPeer is the http.Server.ConnContext that PeerFrom needs.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := Peer{Addr: c.RemoteAddr().String()}
	if lc, ok := c.(*limitedConn); ok {
		c = lc.Conn
	}
	if uc, ok := c.(*net.UnixConn); ok {
		if cred, err := peerCred(uc); err == nil {
			p = Peer{Local: true, PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
		}
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerCred(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}
