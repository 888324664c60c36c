package sockdiag

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxDatagrams is how many datagrams one system call receives.
	maxDatagrams = 32
	// datagramSize is the most that is kept of one. The end of a socket takes some 450 bytes.
	datagramSize = 2048
)

// datagrams receives many datagrams in one system call (recvmmsg(2)), which package unix does not know.
type datagrams struct {
	bytes   [maxDatagrams][datagramSize]byte
	vectors [maxDatagrams]unix.Iovec
	headers [maxDatagrams]multiHeader
}

// multiHeader is struct mmsghdr.
type multiHeader struct {
	header unix.Msghdr
	size   uint32
}

func newDatagrams() *datagrams {
	d := &datagrams{}
	for i := range d.headers {
		d.vectors[i].Base = &d.bytes[i][0]
		d.vectors[i].SetLen(datagramSize)
		d.headers[i].header.Iov = &d.vectors[i]
		d.headers[i].header.SetIovlen(1)
	}
	return d
}

// receive takes up to most datagrams that wait in the socket fd, and returns how many. It does not wait.
func (d *datagrams) receive(fd, most int) (n int, errno unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.headers)), uintptr(most), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(r), 0
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// at returns what receive has taken i-th. It is valid until the next receive.
func (d *datagrams) at(i int) []byte { return d.bytes[i][:min(d.headers[i].size, datagramSize)] }
