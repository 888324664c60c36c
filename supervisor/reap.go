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

// Reap takes the exit statuses of processes that nobody else waits for, until ctx is done: as pid 1, of a container for
// example, lb becomes the parent of every process whose own has ended. The workers of a Pool and the children of os/exec
// are left to those who started them: a zombie counts as nobody's when it has been there for a second. It must not run while a Pool is frozen.
func Reap(ctx context.Context) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	seen := map[int]uint64{} // start times of the zombies of the last look
	for {
		zombies := ownZombies()
		for pid, start := range zombies {
			if seen[pid] == start {
				var status unix.WaitStatus
				unix.Wait4(pid, &status, unix.WNOHANG, nil)
				delete(zombies, pid)
			}
		}
		seen = zombies
		var again <-chan time.Time
		if len(seen) > 0 {
			again = time.After(reapAfter)
			select { // no signal makes the next look come sooner
			case <-ctx.Done():
				return
			case <-again:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-children:
		}
	}
}

// ownZombies returns the children of this process that have ended and were not waited for, with their start times.
func ownZombies() map[int]uint64 {
	zombies := map[int]uint64{}
	self := os.Getpid()
	for pid, r := range relatives() {
		if r.zombie && r.parent == self {
			zombies[pid] = r.start
		}
	}
	return zombies
}
