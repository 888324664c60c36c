package supervisor

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// reapAfter is how long a zombie must have been one: whoever waits for it has done so by then.
const reapAfter = time.Second

// Reap makes this process the parent of its descendants whose own parent has ended (PR_SET_CHILD_SUBREAPER of
// prctl(2)), as pid 1 of a container is anyway, and takes their exit statuses until ctx is done. It leaves
// alone the processes that watched names, the workers of pools (see Pool.Has). Other children, as those of
// os/exec, are left to those who started them: a zombie counts as nobody's when it has been there for a
// second. It must not run while a Pool is frozen.
func Reap(ctx context.Context, watched func(pid int) bool) {
	BecomeReaper()
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	seen := map[int]uint64{} // start times of the zombies of the last look
	for {
		zombies := map[int]uint64{}
		if hasZombies() {
			zombies = ownZombies()
		}
		for pid, start := range zombies {
			if seen[pid] == start && !watched(pid) {
				var status unix.WaitStatus
				unix.Wait4(pid, &status, unix.WNOHANG, nil)
				delete(zombies, pid)
			}
		}
		if seen = zombies; len(seen) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-children:
			}
		}
		select { // until whoever waits for it has taken its status; no signal makes the look come sooner
		case <-ctx.Done():
			return
		case <-time.After(reapAfter):
		}
	}
}

// BecomeReaper makes this process the parent of its descendants whose own parent has ended, before there are
// any. Where the kernel refuses it, the host's first process is, as before.
func BecomeReaper() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// hasZombies reports whether a child of this process has ended and was not waited for. It costs one system
// call, however many there are.
func hasZombies() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

// ownZombies returns the children of this process that have ended and were not waited for, with their start
// times. A worker that has ended keeps its pid as long as what it has started may still end in peace.
func ownZombies() map[int]uint64 {
	look := everybody
	if knowsDescendants() {
		look = func() (relatives, error) { return descendants(func(int) bool { return false }) }
	}
	all, err := look()
	peopled := map[int]bool{} // numbers of sessions and groups that have processes
	for _, r := range all {
		if !r.ended {
			peopled[r.session], peopled[r.group] = true, true
		}
	}
	zombies := map[int]uint64{}
	self := os.Getpid()
	for pid, r := range all {
		if r.ended && r.parent == self && !peopled[pid] && err == nil {
			zombies[pid] = r.start
		}
	}
	return zombies
}
