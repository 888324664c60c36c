package supervisor

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Each worker leads a session of its own (setsid(2)), so that it neither has lb's terminal nor can join lb's
// process group. What it starts is found by the session, by the process group for workers that an older lb
// started, or by descent.

// relative is a process, as /proc/PID/stat has it.
type relative struct {
	pid, parent, group, session int
	ended                       bool // all of its threads have, and nobody has taken its exit status
	start                       uint64
	cpu                         uint64 // clock ticks, with those of children that were waited for
	resident                    uint64 // pages
	invocation                  string // of an orphan that a lookout has seen: its INVOCATION_ID
}

// identified tells a process from others that have its pid before or after it.
type identified struct {
	pid   int
	start uint64
}

func (r relative) id() identified { return identified{r.pid, r.start} }

// readRelative reads /proc/PID/stat.
func readRelative(pid int) (relative, error) {
	text, err := readProcFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return relative{}, err
	}
	// the name may have blanks and parentheses
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 22 {
		return relative{}, unix.ESRCH
	}
	r := relative{pid: pid}
	// A process whose first thread has ended is shown as a zombie, and runs on.
	threads, _ := strconv.Atoi(fields[17])
	r.ended = (fields[0] == "Z" || fields[0] == "X") && threads <= 1
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

// readProcFile reads a file of /proc. os.ReadFile makes twice as many system calls (BenchmarkLook).
func readProcFile(path string) (text []byte, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	for {
		n, err := unix.Read(fd, buf[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return text, nil
		default:
			text = append(text, buf[:n]...)
		}
	}
}

// relatives are processes by their pids.
type relatives map[int]relative

// errMissed: a process ended while lb looked for others, which may have been missed.
var errMissed = errors.New("a process ended meanwhile")

// short reports whether an error says that lb, or the host, lacks descriptors or memory.
func short(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// everybody returns all processes of the host that lb sees. The error says why some may be missing.
func everybody() (relatives, error) {
	all := relatives{}
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

// descendants returns the processes that lb or one of its descendants has started: lb becomes their parent
// when their own ends (see Reap). It leaves out those that skip names, and what they have started. The error
// says why some may be missing: errMissed, or that lb is short of something.
func descendants(skip func(pid int) bool) (relatives, error) {
	all := relatives{}
	var missed error
	miss := func(err error) {
		if err != nil && !short(missed) {
			if missed = errMissed; short(err) {
				missed = err
			}
		}
	}
	for queue := []int{os.Getpid()}; len(queue) > 0; queue = queue[1:] {
		tasks := "/proc/" + strconv.Itoa(queue[0]) + "/task/"
		entries, err := os.ReadDir(tasks)
		miss(err)
		for _, e := range entries {
			text, err := readProcFile(tasks + e.Name() + "/children")
			miss(err)
			for field := range strings.FieldsSeq(string(text)) {
				pid, err := strconv.Atoi(field)
				if _, known := all[pid]; err != nil || known || skip(pid) {
					continue
				}
				r, err := readRelative(pid)
				if miss(err); err != nil {
					continue
				}
				all[pid] = r
				if !r.ended {
					queue = append(queue, pid)
				}
			}
		}
	}
	return all, missed
}

// knowsDescendants reports whether descendants finds whatever lb's children have started: lb is the reaper of
// all that descends from it, and the kernel lists children (CONFIG_PROC_CHILDREN).
func knowsDescendants() bool {
	var reaps int
	if err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&reaps)), 0, 0, 0); err != nil || reaps == 0 && os.Getpid() != 1 {
		return false
	}
	self := strconv.Itoa(os.Getpid())
	_, err := os.Stat("/proc/" + self + "/task/" + self + "/children")
	return err == nil
}

// session is what a worker has started, and the worker itself.
type session struct {
	pid        int    // of the worker, and so of the session
	start      uint64 // of the worker
	invocation string // INVOCATION_ID of its processes; empty: unknown
	// look returns the processes that a process of the session can be among, and those between it and the
	// worker. The error says why some may be missing.
	look func() (relatives, error)
	// lookAfter is look for when the worker has ended: it serves many at once, and tells the INVOCATION_ID of
	// orphans.
	lookAfter func() (relatives, error)
	user      int // of the worker
	// orphans returns its orphans that nothing but their user tells of; nil: there are none to be told so.
	orphans func(all relatives) []relative
}

func (s *session) id() identified { return identified{s.pid, s.start} }

// sessionOf returns the session of a worker. A child of lb is found among lb's descendants; for one that an
// lb before has started, all processes of the host are looked at.
func (p *Pool) sessionOf(w *worker, pid int, start uint64) *session {
	r, err := readRelative(pid)
	own := err == nil && r.parent == os.Getpid()
	otherWorker := func(pid int) bool {
		other := (*p.pids.Load())[pid]
		return other != nil && other != w
	}
	s := &session{pid: pid, start: start, invocation: w.invocation, look: everybody, lookAfter: p.dir.lookWide}
	if own {
		s.look = func() (relatives, error) {
			if knowsDescendants() {
				return descendants(otherWorker)
			}
			return everybody()
		}
		s.lookAfter = p.dir.lookNear
	}
	uid, other := p.dir.roster.note(s.id(), w.release)
	s.user = uid
	if own && other {
		s.orphans = func(all relatives) []relative {
			if !knowsDescendants() {
				return nil
			}
			return p.dir.roster.orphansOf(s.id(), uid, all)
		}
	}
	return s
}

// has reports whether a process is the worker or was started by it, and has not ended.
func (s *session) has(r relative, all relatives) bool {
	if r.ended {
		return false
	}
	for range len(all) { // parents: no chain is longer
		if r.pid == s.pid || r.group == s.pid || r.session == s.pid {
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

// members returns the processes of the session that have not ended. The error says why some may be missing.
func (s *session) members() ([]relative, error) {
	all, err := s.look()
	return s.among(all), err
}

// among returns the processes of the session that have not ended.
func (s *session) among(all relatives) (list []relative) {
	if r, ok := all[s.pid]; ok && r.start != s.start { // the pid is another's
		return nil
	}
	for _, r := range all {
		if s.has(r, all) {
			list = append(list, r)
		}
	}
	return list
}

// lives reports whether a process of the session may not have ended, though the worker has.
func (s *session) lives() bool {
	all, err := s.lookAfter()
	return len(s.among(all)) > 0 || err != nil
}

// strays returns the processes that a worker has put in the background out of its session, and whose parent
// has ended: lb is the parent of such orphans (see Reap), or the host's first process is. They are told by
// the worker's INVOCATION_ID in their environment.
func (s *session) strays(all relatives) (list []relative) {
	for _, r := range all {
		if r.invocation != "" && r.invocation == s.invocation && !r.ended && !s.has(r, all) {
			list = append(list, r)
		}
	}
	return list
}

const (
	// killRounds is how often lb looks at what is left of a worker and was sent SIGKILL already, and
	// killPatience how long it looks for what was started meanwhile. A process that starts another one and
	// ends, again and again in sessions of their own, is met when lb is the faster one: there is no pause
	// between such looks.
	killRounds   = 20
	killPatience = 2 * time.Second
	// shortagePause is when lb looks again where it lacked a descriptor to see or to kill, and
	// shortagePatience how long it goes on so before it leaves alive what it cannot see.
	shortagePause    = 20 * time.Millisecond
	shortagePatience = 5 * time.Second
	// refusalPause is when lb tries again to kill what the kernel did not let it kill.
	refusalPause = time.Millisecond
)

// kill kills what a worker has started, once it has ended and before its pid is given back. It returns how
// many strays there were, and the pid of the first.
func (s *session) kill() (strays, first int) {
	unix.Kill(-s.pid, unix.SIGKILL)
	return s.killUntilNone(func(all relatives) (own, strays []relative) { return s.among(all), s.strays(all) })
}

// killOrphans kills the orphans that nothing but their user tells of, once the worker is forgotten. It
// returns how many there were, and the pid of the first.
func (s *session) killOrphans() (orphans, first int) {
	if s.orphans == nil {
		return 0, 0
	}
	return s.killUntilNone(func(all relatives) (_, orphans []relative) { return nil, s.orphans(all) })
}

// killUntilNone kills what find returns of the processes that a look has found, and what strays have started,
// until a look finds nothing or it has taken too long. It returns how many strays there were, and the pid of
// the first.
func (s *session) killUntilNone(find func(all relatives) (own, strays []relative)) (strays, first int) {
	counted, killed := map[identified]bool{}, map[identified]bool{}
	begun := time.Now()
	for round := 0; round < killRounds; {
		all, err := s.lookAfter()
		left, found := find(all)
		for _, r := range found {
			of := &session{pid: r.pid, start: r.start}
			left = append(left, of.among(all)...)
			if !counted[r.id()] {
				counted[r.id()] = true
				if strays++; strays == 1 {
					first = r.pid
				}
			}
		}
		if len(left) == 0 && err == nil {
			break
		}
		fresh, refused := false, error(nil)
		for _, r := range left {
			fresh = fresh || !killed[r.id()]
			killed[r.id()] = true
			if r.group > 1 && r.session == s.pid {
				unix.Kill(-r.group, unix.SIGKILL)
			}
			refused = cmp.Or(refused, killOne(r))
		}
		switch {
		case (short(err) || short(refused)) && time.Since(begun) < shortagePatience:
			time.Sleep(shortagePause)
		case (fresh || err != nil) && time.Since(begun) < killPatience:
		case refused != nil && time.Since(begun) < killPatience:
			time.Sleep(refusalPause)
		default:
			round++
			time.Sleep(time.Millisecond)
		}
	}
	return strays, first
}

// strike kills what a worker that was sent SIGKILL has started, before the worker has ended: it cannot end as
// long as one of its own processes traces it (ptrace(2)).
func (s *session) strike() {
	list, _ := s.members()
	for _, r := range list {
		if r.pid != s.pid {
			killOne(r)
		}
	}
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
