package supervisor

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Each worker leads a session of its own (setsid(2)), so that it neither has lb's terminal nor can join lb's
// process group. What it starts is found by the session, by the process group for workers that an older lb
// started, or by descent.

// relative is a process, as /proc/PID/stat has it.
type relative struct {
	pid, parent, group, session int
	zombie                      bool
	start                       uint64
}

// relatives returns all processes of the host that lb sees.
func relatives() map[int]relative {
	all := map[int]relative{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return all
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if r, err := readRelative(pid); err == nil {
				all[pid] = r
			}
		}
	}
	return all
}

func readRelative(pid int) (relative, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return relative{}, err
	}
	// the name may have blanks and parentheses
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return relative{}, unix.ESRCH
	}
	r := relative{pid: pid, zombie: fields[0] == "Z" || fields[0] == "X"}
	r.parent, _ = strconv.Atoi(fields[1])
	r.group, _ = strconv.Atoi(fields[2])
	r.session, _ = strconv.Atoi(fields[3])
	r.start, err = strconv.ParseUint(fields[19], 10, 64)
	return r, err
}

// of reports whether a process is the worker pid or was started by it, and has not ended.
func (r relative) of(pid int, all map[int]relative) bool {
	if r.zombie {
		return false
	}
	for range len(all) { // parents: no chain is longer
		if r.pid == pid || r.group == pid || r.session == pid {
			return true
		}
		parent, ok := all[r.parent]
		if !ok {
			return false
		}
		r = parent
	}
	return false
}

// members returns the processes of a worker that have not ended.
func members(pid int, start uint64) (list []relative) {
	all := relatives()
	if r, ok := all[pid]; ok && r.start != start { // the pid is another's
		return nil
	}
	for _, r := range all {
		if r.of(pid, all) {
			list = append(list, r)
		}
	}
	return list
}

// killMembers kills what a worker has started, once it has ended and before its pid is given back. One that
// starts others faster than they are killed is met by killing whole groups; a few rounds see the end of it.
func killMembers(pid int, start uint64) {
	unix.Kill(-pid, unix.SIGKILL)
	for range 20 {
		left := members(pid, start)
		if len(left) == 0 {
			return
		}
		for _, r := range left {
			if r.group > 1 && r.session == pid {
				unix.Kill(-r.group, unix.SIGKILL)
			}
			killOne(r)
		}
		time.Sleep(time.Millisecond)
	}
}

// killStrays kills the processes that a worker has put in the background out of its session, and whose parent
// has ended: lb is the parent of such orphans (see Reap), or the host's first process is. They are told by
// the worker's INVOCATION_ID in their environment. It returns how many there were, and the pid of the first.
func killStrays(invocation string) (n, first int) {
	if invocation == "" {
		return 0, 0
	}
	self := os.Getpid()
	mark := []byte("INVOCATION_ID=" + invocation)
	for range 20 { // a round may make orphans of others
		found := false
		for _, r := range relatives() {
			if r.zombie || r.pid == 1 || r.parent != self && r.parent != 1 {
				continue
			}
			environ, err := os.ReadFile("/proc/" + strconv.Itoa(r.pid) + "/environ")
			if err != nil || !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(kv []byte) bool { return bytes.Equal(kv, mark) }) {
				continue
			}
			found = true
			if n++; n == 1 {
				first = r.pid
			}
			killMembers(r.pid, r.start)
		}
		if !found {
			return n, first
		}
	}
	return n, first
}

// killOne kills a process, unless its pid is another process's by now.
func killOne(r relative) {
	pidfd, err := unix.PidfdOpen(r.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	if start, err := startTime(r.pid); err == nil && start == r.start {
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
}
