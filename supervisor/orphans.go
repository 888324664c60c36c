package supervisor

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An orphan is a process whose own parent has ended, so that lb is its parent (see Reap). A worker can leave
// some that neither its session nor its environment tells of: they have left the one and cleared the other.
// The user that they run as still does, where it is not lb's own.

// roster is the workers of all pools: who lives, and as which users they run or ran. The zero value is ready.
// Safe for concurrent use.
type roster struct {
	// starting is held for reading from the fork of a process until note has been told that it is a worker.
	starting sync.RWMutex

	mu     sync.Mutex
	living map[int]bool // guarded by mu: by pid, those that have not ended
	// guarded by mu: by user, who is not lb's, those that were not forgotten
	users map[int]map[identified]bool
	// guarded by mu: lb has children that may be workers, and are not here
	partial bool
}

// note adds a worker of a release, and returns its user. It reports false where that is root, or lb's own.
func (o *roster) note(w identified, r *Release) (uid int, other bool) {
	id, err := r.config().identity()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.living == nil {
		o.living, o.users = map[int]bool{}, map[int]map[identified]bool{}
	}
	o.living[w.pid] = true
	if err != nil || !id.set || id.uid == 0 || id.uid == os.Getuid() {
		return 0, false
	}
	if o.users[id.uid] == nil {
		o.users[id.uid] = map[identified]bool{}
	}
	o.users[id.uid][w] = true
	return id.uid, true
}

// ended notes that a worker lives no more. What it has started may.
func (o *roster) ended(w identified) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.living, w.pid)
}

// forget takes a worker out that has ended, with what is known to be its own. Its user stays.
func (o *roster) forget(w identified, uid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.users[uid], w)
}

// lives reports whether a process is a worker that has not ended.
func (o *roster) lives(pid int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.living[pid]
}

// has reports whether workers ran as that user.
func (o *roster) has(uid int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.users[uid] != nil
}

// orphansOf returns those of all that are orphans of a worker of the user that was forgotten, and of no
// worker that lives: no process is older than the one that has started it. lb as the first process of a
// container is the parent of whatever has lost its own there, and orphansOf returns none.
func (o *roster) orphansOf(w identified, uid int, all relatives) (list []relative) {
	self := os.Getpid()
	if self == 1 {
		return nil
	}
	o.starting.Lock() // from here on each of all that is a worker has been noted
	defer o.starting.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.partial {
		return nil
	}
	first := ^uint64(0) // when the first worker of the user that lives was started
	for other := range o.users[uid] {
		first = min(first, other.start)
	}
	for _, r := range all {
		if r.ended || r.parent != self || r.id() == w || r.start < w.start || r.start >= first {
			continue
		}
		if its, gone := realUser(r.pid); gone == nil && its == uid {
			list = append(list, r)
		}
	}
	return list
}

// Settled tells a Dir of TakeOverDir that all pools have gone on with their workers. Until then lb takes no
// child of its own for what a worker has left.
func (d *Dir) Settled() {
	d.roster.mu.Lock()
	defer d.roster.mu.Unlock()
	d.roster.partial = false
}

// KillOrphans kills what descends from lb and runs as the user of one of its workers, unless that is lb's own
// user or root, and returns how many it killed. It also reaps children of lb that have ended: call it when lb
// ends and waits for none of them any more.
func (d *Dir) KillOrphans() (n int) {
	if !knowsDescendants() {
		return 0
	}
	seen := map[identified]bool{}
	for begun := time.Now(); time.Since(begun) < killPatience; {
		all, err := descendants(func(int) bool { return false })
		again := err != nil
		for _, r := range all {
			if seen[r.id()] {
				continue
			}
			if uid, gone := realUser(r.pid); gone != nil || !d.roster.has(uid) {
				continue
			}
			// One that has ended since the last look may have started another one, which this look does not
			// have.
			seen[r.id()], again = true, true
			if !r.ended {
				killOne(r)
				n++
			}
		}
		if !again {
			break
		}
		// Each that has ended costs the next look time, in which others are started.
		for pid := 1; pid > 0; {
			pid, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
	}
	return n
}

// realUser returns the real user of a process, which set-user-ID programs keep.
func realUser(pid int) (uid int, err error) {
	text, err := readProcFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	_, line, _ := bytes.Cut(text, []byte("\nUid:"))
	fields := strings.Fields(string(line))
	if len(fields) == 0 {
		return 0, unix.ESRCH
	}
	return strconv.Atoi(fields[0])
}
