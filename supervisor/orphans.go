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

// users are those that workers ran as and lb does not. The zero value is ready. Safe for concurrent use.
type users struct {
	mu  sync.Mutex
	ids map[int]bool
}

// note adds the user that a release runs as.
func (u *users) note(r *Release) {
	id, err := r.config().identity()
	if err != nil || !id.set || id.uid == 0 || id.uid == os.Getuid() {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ids == nil {
		u.ids = map[int]bool{}
	}
	u.ids[id.uid] = true
}

// has reports whether workers ran as that user.
func (u *users) has(uid int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ids[uid]
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
			if uid, gone := realUser(r.pid); gone != nil || !d.users.has(uid) {
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
