package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Somebody may remove what the pool has in the file system: a cleaner of old files takes the sockets or the
// whole run-time directory, a worker unlinks its socket or shuts it down for all who share it. The pool looks
// once a second, and makes again what it can.

// lookEvery is how often the pool looks at its files, retries its record, and looks for a worker that is due
// to be recycled.
const lookEvery = time.Second

// fileAt is a socket's file, as it was last seen.
type fileAt struct {
	info    os.FileInfo // nil: not seen yet
	missing int         // looks in a row that did not find it
}

// heal makes the pool's directory and notify socket again if they are gone, and gives every slot whose worker
// cannot be reached any more another one, at another address.
func (p *Pool) heal() {
	p.setFault("directory", p.host.mend())
	for _, w := range append([]*worker(nil), p.workers...) {
		switch w.state {
		case starting, joining, proving, up, silent:
		default:
			continue
		}
		if w.end == nil {
			continue
		}
		if reason := p.host.lost(w.end, w.state == up || w.state == silent); reason != "" {
			p.fire(w, offline, reason)
		}
	}
}

// mend makes the pool's directory and notify socket again if they are gone.
func (p *Pool) mend() error {
	if _, err := p.dir.heal(); err != nil {
		return err
	}
	there, err := p.dir.entries().Lstat(p.Name)
	if err == nil {
		var here os.FileInfo
		if here, err = p.home.Load().Lstat("."); err == nil && !os.SameFile(here, there) {
			err = os.ErrNotExist
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		id, err := p.cfg.identity()
		if err != nil {
			return err
		}
		home, err := p.dir.makeFolder(p.Name, id)
		if err != nil {
			return err
		}
		p.home.Swap(home).Close()
		p.recorded = "" // it was beside it
		p.changes++
	case err != nil:
		return err
	}
	st, err := p.home.Load().Lstat(notifyName)
	switch {
	case err == nil && p.notifyFile.info == nil: // came through an exec
		p.notifyFile.info = st
	case err == nil && os.SameFile(st, p.notifyFile.info):
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	default:
		id, err := p.cfg.identity()
		if err != nil {
			return err
		}
		p.removeEntry(notifyName)
		return p.receiver.Rebind(func() error { return p.ownNotify(id) })
	}
	return nil
}

// ownNotify returns the notify socket to the workers' user.
func (p *Pool) ownNotify(id identity) (err error) {
	if err = own(p.home.Load(), notifyName, id); err == nil {
		p.notifyFile.info, err = p.home.Load().Lstat(notifyName)
	}
	return err
}

// lost returns why nobody can connect to e any more; empty: they can, as far as the file and the socket tell.
// serves: a worker that binds its socket itself has done so.
func (p *Pool) lost(e *endpoint, serves bool) string {
	if e.path == "" || e.fd < 0 && !serves || e.handoff != "" {
		// whoever gives the connections sees that it takes none
		return ""
	}
	if e.fd >= 0 && shutDown(e.fd) {
		return fmt.Sprintf("somebody shut down the socket %q that lb handed over", e.path)
	}
	name, ok := strings.CutPrefix(e.path, p.folder()+"/")
	if !ok { // of another run-time directory
		return ""
	}
	st, err := p.home.Load().Lstat(name)
	switch {
	case err == nil && (e.file.info == nil || e.fd < 0): // who binds it may do so again
		e.file = fileAt{info: st}
	case err == nil && os.SameFile(st, e.file.info):
		e.file.missing = 0
	case err == nil || errors.Is(err, os.ErrNotExist):
		if e.file.missing++; e.file.missing > 1 || e.fd >= 0 { // who binds it may be doing so
			return fmt.Sprintf("somebody removed its socket %q", e.path)
		}
	}
	return ""
}

// shutDown reports whether a listening socket takes no connections, since somebody who shares it called
// shutdown(2).
func shutDown(fd int) bool {
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(polled, 0)
	return err == nil && n > 0 && polled[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// setFault notes what lb cannot do for the pool now, and tries again; nil: it works. Hooks.Fault hears of
// each change.
func (p *Pool) setFault(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if p.faults[what] == text {
		return
	}
	p.changes++
	if text == "" {
		delete(p.faults, what)
	} else {
		p.faults[what] = text
	}
	if p.Hooks.Fault != nil {
		p.Hooks.Fault(what, err)
	}
}
