package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// Ways in which a worker is given its connections instead of a listening socket; see Config.Handoff.
const (
	HandoffLB   = "lb"
	HandoffNode = "node"
)

// A worker that takes accepted sockets has, as descriptor 3, its end of a pair of sockets. Descriptor 4 is
// lb's end: with that nobody uses it, the channel outlives an lb that is killed, and the next one takes it
// up.
const (
	backFD  = 3
	frontFD = 4
)

// openChannel makes the two ends of e's channel.
func (p *Pool) openChannel(e *endpoint, mode string) error {
	kind := unix.SOCK_SEQPACKET
	if mode == HandoffNode {
		kind = unix.SOCK_STREAM
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// There is no such file: the name is for people.
	e.path = filepath.Join(p.folder(), e.backend.Name+".handoff")
	p.setChannel(e, mode, pair[0], pair[1])
	return nil
}

// setChannel returns e the two ends of its channel.
func (p *Pool) setChannel(e *endpoint, mode string, front, back int) {
	e.handoff, e.front, e.fd = mode, front, back
	e.backend.Address = e.address()
	e.backend.Handoff, e.backend.Front, e.backend.Back = mode, front, back
}

// handoffEnvironment tells a worker how it gets its connections.
func (p *Pool) handoffEnvironment(w *worker, env map[string]string) {
	switch w.end.handoff {
	case HandoffLB:
		env[handoff.EnvFD] = strconv.Itoa(backFD)
		// Programs that know socket activation look there, and a preloaded library answers for the
		// descriptor.
		env["LISTEN_FDS"], env["LISTEN_FDNAMES"] = "1", p.Name
		address := p.cfg.HandoffAddress
		if p.Hooks.HandoffAddress != nil && strings.HasSuffix(address, ":0") {
			address = p.Hooks.HandoffAddress()
		}
		if address != "" {
			env[handoff.EnvAddress] = address
		}
		if p.cfg.HandoffReport {
			env[handoff.EnvReport] = "1"
		}
	case HandoffNode:
		env[handoff.EnvNodeFD] = strconv.Itoa(backFD)
		env[handoff.EnvNodeSerialization] = "json"
		env[handoff.EnvNodeID] = strconv.Itoa(w.slot.number + 1)
	}
}

// restoreChannel returns e the channel that it had.
func (p *Pool) restoreChannel(e *endpoint, es *savedEndpoint, pidfd int) {
	front, back := p.frozen.take(p.frontFile(es.Name)), p.frozen.take(p.listenFile(es.Name))
	if (front < 0 || back < 0) && pidfd >= 0 {
		for _, fd := range []int{front, back} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		front, back = reopenChannel(pidfd, es.Channel)
	}
	p.setChannel(e, es.Handoff, front, back)
}

// reopenChannel is a copy of both ends of the channel of a worker that an lb before has started; -1 and -1 if
// the kernel does not give them (pidfd_getfd(2) asks for the rights of a debugger), or the worker has put
// something else there.
func reopenChannel(pidfd int, inodes [2]uint64) (front, back int) {
	var fds [2]int
	for i, n := range []int{frontFD, backFD} {
		fd, err := unix.PidfdGetfd(pidfd, n, 0) // CLOEXEC is set
		if err == nil && inode(fd) != inodes[i] {
			unix.Close(fd)
			err = unix.EBADF
		}
		if err != nil {
			if i == 1 {
				unix.Close(fds[0])
			}
			return -1, -1
		}
		fds[i] = fd
	}
	return fds[0], fds[1]
}

// inode returns the number by which the kernel knows an open file.
func inode(fd int) uint64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

// channelInodes are the inodes of both ends of e's channel, for the record.
func (e *endpoint) channelInodes() [2]uint64 { return [2]uint64{inode(e.front), inode(e.fd)} }

// openSockets returns the inodes of the sockets that a worker's processes hold.
func openSockets(s *session) map[uint32]bool {
	sockets := map[uint32]bool{}
	members, _ := s.members()
	for _, r := range members {
		dir := fmt.Sprintf("/proc/%d/fd", r.pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, or is another user's
		}
		for _, e := range entries {
			var n uint32
			if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
				if _, err := fmt.Sscanf(link, "socket:[%d]", &n); err == nil {
					sockets[n] = true
				}
			}
		}
	}
	return sockets
}

// Notice is what a worker said over its hand-off channel.
type Notice int

const (
	// NoticeReady is as READY=1.
	NoticeReady Notice = iota
	// NoticeLeaves is as STOPPING=1.
	NoticeLeaves
)

// Notify tells that the worker at the backend of that name said something over its hand-off channel. It never
// blocks.
func (p *Pool) Notify(name string, n Notice, reason string) {
	p.post(func() {
		for _, w := range p.workers {
			if w.end == nil || w.end.backend.Name != name {
				continue
			}
			if n == NoticeReady {
				p.claimReady(w, reason)
			} else if w.state != draining { // where it was told to leave
				p.fire(w, offline, reason)
			}
			return
		}
	})
}
