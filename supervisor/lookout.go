package supervisor

import (
	"bytes"
	"os"
	"strconv"
	"sync"
)

// lookout looks for processes on behalf of many at once. Who asks while a look is under way gets the result
// of the next one, with all others who have asked meanwhile: a hundred workers that end at once cost about as
// much as one. The zero value is ready. Safe for concurrent use.
type lookout struct {
	mu   sync.Mutex
	now  *look // guarded by mu: is under way; nil: none is
	next *look // guarded by mu: has not begun; nil: nobody has asked
}

// look is what a look has found, which nobody changes, and why some may be missing.
type look struct {
	done chan struct{}
	all  relatives
	err  error
}

// see returns what find finds, which is called after see was.
func (l *lookout) see(find func() (relatives, error)) (relatives, error) {
	l.mu.Lock()
	if next := l.next; next != nil {
		l.mu.Unlock()
		<-next.done
		return next.all, next.err
	}
	own, before := &look{done: make(chan struct{})}, l.now
	l.next = own
	l.mu.Unlock()
	if before != nil {
		<-before.done
	}
	l.mu.Lock()
	l.now, l.next = own, nil
	l.mu.Unlock()
	own.all, own.err = find()
	l.mu.Lock()
	if l.now == own {
		l.now = nil
	}
	l.mu.Unlock()
	close(own.done)
	return own.all, own.err
}

// lookNear returns the descendants of lb but for its workers that live, and what these have started. Where it
// cannot know them, lookNear is lookWide. The error says why some may be missing.
func (d *Dir) lookNear() (relatives, error) {
	if !knowsDescendants() {
		return d.lookWide()
	}
	return d.near.see(func() (relatives, error) { return withInvocations(descendants(d.roster.lives)) })
}

// lookWide returns all processes of the host that lb sees. The error says why some may be missing.
func (d *Dir) lookWide() (relatives, error) {
	return d.wide.see(func() (relatives, error) { return withInvocations(everybody()) })
}

// withInvocations adds the INVOCATION_ID of those whose parent is lb or the host's first process.
func withInvocations(all relatives, err error) (relatives, error) {
	self := os.Getpid()
	for pid, r := range all {
		if r.ended || pid == 1 || r.parent != self && r.parent != 1 {
			continue
		}
		its, unseen := invocationOf(pid)
		if short(unseen) {
			err = unseen
		}
		r.invocation = its
		all[pid] = r
	}
	return all, err
}

// invocationOf returns the INVOCATION_ID that a process has in its environment; "" for none.
func invocationOf(pid int) (string, error) {
	environ, err := readProcFile("/proc/" + strconv.Itoa(pid) + "/environ")
	for field := range bytes.SplitSeq(environ, []byte{0}) {
		if its, found := bytes.CutPrefix(field, []byte("INVOCATION_ID=")); found {
			return string(its), err
		}
	}
	return "", err
}
