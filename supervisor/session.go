package supervisor

import (
	"bytes"
	"errors"
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
	cpu                         uint64 // clock ticks, with those of children that were waited for
	resident                    uint64 // pages
}

// relatives returns all processes of the host that lb sees.
func relatives() map[int]relative {
	all, _ := readRelatives()
	return all
}

// readRelatives is relatives with an error where lb lacks a descriptor or memory to see them all.
func readRelatives() (map[int]relative, error) {
	all := map[int]relative{}
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		pid, notOne := strconv.Atoi(e.Name())
		if notOne != nil {
			continue
		}
		r, gone := readRelative(pid)
		switch {
		case gone == nil:
			all[pid] = r
		case short(gone):
			err = gone
		}
	}
	return all, err
}

// short reports whether an error says that lb, or the host, lacks descriptors or memory.
func short(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

func readRelative(pid int) (relative, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return relative{}, err
	}
	// the name may have blanks and parentheses
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 22 {
		return relative{}, unix.ESRCH
	}
	r := relative{pid: pid, zombie: fields[0] == "Z" || fields[0] == "X"}
	r.parent, _ = strconv.Atoi(fields[1])
	r.group, _ = strconv.Atoi(fields[2])
	r.session, _ = strconv.Atoi(fields[3])
	for _, ticks := range fields[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseUint(ticks, 10, 64)
		r.cpu += n
	}
	r.resident, _ = strconv.ParseUint(fields[21], 10, 64)
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
	return membersOf(relatives(), pid, start)
}

// membersOf returns those of all processes that are a worker's and have not ended.
func membersOf(all map[int]relative, pid int, start uint64) (list []relative) {
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

const (
	// killRounds is how often lb looks for what is left of a worker: it may start others meanwhile.
	killRounds = 20
	// shortagePause is when lb looks again where it lacked a descriptor to see or to kill, and
	// shortagePatience how long it goes on so before it leaves alive what it cannot see.
	shortagePause    = 20 * time.Millisecond
	shortagePatience = 5 * time.Second
)

// killMembers kills what a worker has started, once it has ended and before its pid is given back. One that
// starts others faster than they are killed is met by killing whole groups; a few rounds see the end of it.
func killMembers(pid int, start uint64) {
	unix.Kill(-pid, unix.SIGKILL)
	givesUp := time.Now().Add(shortagePatience)
	for round := 0; round < killRounds; {
		all, err := readRelatives()
		left := membersOf(all, pid, start)
		if len(left) == 0 && err == nil {
			return
		}
		for _, r := range left {
			if r.group > 1 && r.session == pid {
				unix.Kill(-r.group, unix.SIGKILL)
			}
			if killed := killOne(r); killed != nil && err == nil {
				err = killed
			}
		}
		if short(err) && time.Now().Before(givesUp) {
			time.Sleep(shortagePause)
			continue
		}
		round++
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
	givesUp := time.Now().Add(shortagePatience)
	for round := 0; round < killRounds; round++ { // a round may make orphans of others
		found := false
		all, unseen := readRelatives()
		for _, r := range all {
			if r.zombie || r.pid == 1 || r.parent != self && r.parent != 1 {
				continue
			}
			environ, err := os.ReadFile("/proc/" + strconv.Itoa(r.pid) + "/environ")
			if short(err) {
				unseen = err
			}
			if err != nil || !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(kv []byte) bool { return bytes.Equal(kv, mark) }) {
				continue
			}
			found = true
			if n++; n == 1 {
				first = r.pid
			}
			killMembers(r.pid, r.start)
		}
		switch {
		case found:
		case short(unseen) && time.Now().Before(givesUp):
			round--
			time.Sleep(shortagePause)
		default:
			return n, first
		}
	}
	return n, first
}

// killOne kills a process, unless its pid is another process's by now. The error is that of a process that
// may live.
func killOne(r relative) error {
	pidfd, err := unix.PidfdOpen(r.pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err == nil {
		defer unix.Close(pidfd)
	}
	start, gone := startTime(r.pid)
	switch {
	case short(gone):
		return gone
	case gone != nil || start != r.start:
		return nil
	case err != nil: // the pid could become another process's just now, which is most unlikely
		return unix.Kill(r.pid, unix.SIGKILL)
	}
	return unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
}
