package load

import (
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// takeHandedOff takes the next connection that lb hands over on the channel (docs/handoff.md), and answers
// that it is taken. fd is -1 if there is none for this program; open reports whether the channel is.
func takeHandedOff(channel int) (fd int, open bool) {
	var message [handoff.MaxConnection]byte
	control := make([]byte, unix.CmsgSpace(4))
	n, controlled, _, _, err := unix.Recvmsg(channel, message[:], control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return -1, true // lb has taken it back
	case err != nil || n == 0:
		return -1, false
	}
	fd = descriptor(control[:controlled])
	reply := handoff.Taken
	if fd < 0 {
		reply = handoff.Refused // the kernel had no room for the descriptor
	}
	// else lb takes it for stuck
	unix.Sendto(channel, []byte{byte(reply)}, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	if c, err := handoff.ParseConnection(message[:n]); fd >= 0 && (err != nil || c.Probe) {
		unix.Close(fd)
		return -1, true
	}
	return fd, true
}

// descriptor returns the descriptor of an SCM_RIGHTS message, or -1.
func descriptor(control []byte) int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	return fds[0]
}
