package supervisor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/descriptor"
)

// Standing is how an address stood with the front when its pool was frozen, by what Hooks had been called for
// it.
type Standing int

const (
	// Pending: it takes no connections; a worker starts there, or will. Ready comes later.
	Pending Standing = iota
	// Serving: Ready was told, and Offline not since. Health may have it down all the same: the supervisor's
	// own idea of that goes on until SetHealth tells another.
	Serving
	// Leaving: Offline was told, for the last time. Removed comes next.
	Leaving
)

// frozen is the state and the files that TakeOver was given.
type frozen struct {
	state  *snapshot
	given  map[string]*os.File // the caller's
	copies map[string]int      // the pool's, with FD_CLOEXEC
}

// TakeOver has Start go on with the pool that Freeze wrote down, instead of one that it finds or makes: the
// same processes, at the same addresses, in the same states, with what was left of their time, and all
// counts. Call it before Prepare. The files stay the caller's, who may close them after Prepare; one that is
// missing is found elsewhere or done without.
//
// Start calls Hooks.Resumed, once for each address, and nothing else. A worker that has ended since Freeze is
// found right after, with its exit status. The config of NewPool wins over the state: timeouts and limits
// hold at once, a count that is another than Freeze's scales, and for another command the workers are Stale,
// as after Update, until a Restart.
//
// The error is ErrState, with the reason, and nothing has changed then: so a state can be tried without
// files.
func (p *Pool) TakeOver(state json.RawMessage, files map[string]*os.File) error {
	st, err := parseSnapshot(state, p.Name, oldestFrozen)
	if err != nil {
		return fmt.Errorf("cannot adopt the workers of pool %q: %w: %w", p.Name, ErrState, err)
	}
	p.frozen = &frozen{state: st, given: files}
	return nil
}

// openHome opens the pool's directory by the descriptor that was given, as its name does not lead there any
// more.
func (f *frozen) openHome(name string) (*os.Root, error) {
	given := f.given[name]
	if given == nil {
		return nil, errors.New("the pool's directory is gone")
	}
	return openRoot(given)
}

// openRoot opens a directory anew by its descriptor, which leads to it whatever has become of its name.
func openRoot(dir *os.File) (root *os.Root, err error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) { root, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	return root, cmp.Or(controlErr, err)
}

// copyFiles copies the files that were given, so that the caller may close them.
func (f *frozen) copyFiles() error {
	f.copies = map[string]int{}
	for name, given := range f.given {
		if !strings.HasPrefix(name, f.state.Pool+"/") {
			continue
		}
		fd, err := descriptor.CopyOf(given)
		if err != nil {
			f.drop()
			return fmt.Errorf("cannot take over descriptor %q: %w", name, err)
		}
		f.copies[name] = fd
	}
	return nil
}

// take returns the descriptor of that name, which is the caller's from then on; -1 if there is none.
func (f *frozen) take(name string) int {
	if f == nil {
		return -1
	}
	fd, ok := f.copies[name]
	if !ok {
		return -1
	}
	delete(f.copies, name)
	return fd
}

// drop closes the descriptors that take has not returned.
func (f *frozen) drop() {
	if f == nil {
		return
	}
	for _, fd := range f.copies {
		unix.Close(fd)
	}
	f.copies = nil
}

// restore makes the pool what a snapshot says. killed: it is a record, of an lb that was killed some time
// ago; else it is of this process, moments ago. It runs before the pool's goroutine.
func (p *Pool) restore(st *snapshot, killed bool) {
	p.serial, p.good, p.previous, p.failed = st.Serial, st.Good, st.Previous, st.Failed
	// After a kill the config may be another one; it wins. One that is the same leaves a pinned directory
	// pinned.
	keep := !killed || st.Release.pinned("").same(p.release)
	if keep {
		p.release = st.Release
	}
	p.restoreRollout(st.Rollout)
	p.lines.Store(st.Lines)
	p.dropped.Store(st.Dropped)
	if !killed {
		p.receiver.Restore(st.Notify)
	}
	if st.RecycleIn > 0 {
		p.recycleAt = time.Now().Add(st.RecycleIn)
	}
	for i, ss := range st.Slots {
		s := &slot{number: i, wanted: !ss.Stopped, stopped: ss.Stopped, release: p.release, deaths: max(0, ss.Deaths), starts: ss.Starts, exits: ss.Exits, cpu: ss.CPU}
		if keep {
			s.release = ss.Release
		}
		if ss.Last != nil {
			s.last = *ss.Last
		}
		p.slots = append(p.slots, s)
	}
	for i := range st.Workers {
		p.restoreWorker(&st.Workers[i], killed)
	}
	p.publishPIDs()
	for _, w := range slices.Clone(p.workers) {
		p.attend(w)
		if killed {
			p.afterKill(w)
		}
	}
	if st.Configured != p.cfg.Count {
		p.grow(p.cfg.EffectiveCount())
	}
}

// restoreRollout notes a restart that the end of an lb has interrupted, for ResumeRestart.
func (p *Pool) restoreRollout(r *savedRollout) {
	if r != nil && (!r.Wanted || r.Release.same(p.wanted)) {
		p.interrupted = r
	}
}

// restoreWorker makes one worker of a snapshot, and goes on with its process.
func (p *Pool) restoreWorker(ws *savedWorker, killed bool) {
	pidfd := -1
	if ws.Process != nil {
		pidfd = openProcess(ws.Process, killed)
	}
	if killed && pidfd < 0 { // it has ended since
		return
	}
	s := &slot{number: ws.Slot, removed: true, release: ws.Release}
	if !ws.Removed && ws.Slot < len(p.slots) {
		s = p.slots[ws.Slot]
	}
	w := &worker{
		slot: s, release: ws.Release, dir: ws.Dir, invocation: ws.Invocation, delay: ws.Delay, state: stateOf(ws.State),
		since: aged(ws.Since), reason: ws.Reason, cause: ws.Cause, fault: ws.Fault, started: aged(ws.Started), upSince: aged(ws.UpSince), conns: ws.Conns,
		spread: ws.Spread, status: ws.Status, orphan: ws.Orphan, trial: p.trial,
	}
	if killed {
		w.reason = "adopted"
		if w.state == silent { // health begins anew, and tells if it still is
			w.state = up
		}
	}
	p.workers = append(p.workers, w)
	switch ws.Role {
	case roleCurrent:
		s.current, s.release = w, ws.Release
	case roleNext:
		s.next = w
	}
	if ws.Recycling {
		p.recycling = &attempt{slot: s, worker: w}
		w.attempt = p.recycling
	}
	if ws.End != nil {
		p.restoreEndpoint(w, ws.End, pidfd, ws.Process, killed)
	}
	if ws.Output != nil {
		w.out = p.restoreOutput(w, ws)
	}
	switch {
	case pidfd >= 0:
		w.process = p.newProcess(w, ws.Process.PID, ws.Process.Start, pidfd)
	case w.state != waiting:
		if w.out != nil {
			w.out.finish()
		}
		p.post(func() { p.fire(w, exited, "ended (no exit status)") })
	}
	switch {
	case w.state == draining:
		p.lookSoon()
	case w == s.current && (w.state == up || w.state == silent):
		p.forgetSoon(w)
	}
	p.arm(w, ws.Left)
}

// afterKill does what the end of an lb asks of a worker that lives.
func (p *Pool) afterKill(w *worker) {
	p.report(w, waiting)
	if w.state == up {
		p.served(w)
	}
	switch {
	case (w.state == joining || w.state == proving) && w.attempt == nil:
		p.fire(w, retire, "the restart that started it is over")
	case w.slot.current == w && p.cfg.Orphans == orphansStop && w.state != stopping && w.state != aborting && w.state != killing:
		// Its slot has the next one when it has ended: never two.
		w.orphan = true
		p.act(w, doOffline, "orphans = \"stop\"")
		p.enter(w, stopping, "orphans = \"stop\"")
		p.act(w, doStop, "orphans = \"stop\"")
	case w.slot.current != w && w.slot.next != w:
		p.fire(w, retire, "not wanted any more")
	case w.end != nil && w.end.handoff != "" && w.end.front < 0:
		p.fire(w, offline, "its hand-off channel is gone with the lb before")
	}
}

// stateOf returns the state of that name, which there is.
func stateOf(name string) state { return state(slices.Index(stateNames[:], name)) }

// aged returns t with a reading of this program's monotonic clock, which an exec lost.
func aged(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.Now().Add(-max(0, time.Since(t)))
}

// openProcess returns the pidfd of a process, which may have ended and be a zombie; -1 if it is no more.
// killed: long enough ago for its pid to be another's.
func openProcess(ps *savedProcess, killed bool) int {
	pidfd, err := unix.PidfdOpen(ps.PID, 0)
	if err != nil {
		return -1
	}
	// Looked at once the pidfd is held: from here on the pid cannot become another's unnoticed. Where /proc
	// does not show it (hidesOthers), the milliseconds since the freeze are too few for that.
	if start, err := startTime(ps.PID); err == nil && start != ps.Start || err != nil && killed {
		unix.Close(pidfd)
		return -1
	}
	return pidfd
}

// restoreEndpoint returns w its address, and reports it.
func (p *Pool) restoreEndpoint(w *worker, es *savedEndpoint, pidfd int, ps *savedProcess, killed bool) {
	e := &endpoint{slot: w.slot.number, path: es.Path, port: es.Port, fd: -1}
	e.backend = Backend{Pool: p.Name, Slot: w.slot.number, Name: es.Name, Address: e.address()}
	if es.Handoff != "" {
		p.restoreChannel(e, es, pidfd)
	} else if es.Bound {
		e.fd = p.restoreListener(e, pidfd)
		if e.fd < 0 && w.state == waiting { // it would have nothing to start with
			p.closeEndpoint(e)
			return
		}
	}
	w.end, w.backend = e, e.backend
	standing := Leaving
	switch w.state {
	case waiting, starting, joining, proving:
		standing = Pending
	case up, silent:
		standing = Serving
	}
	p.reportRestored(e.backend, standing, killed, ps)
}

// restoreListener returns the socket that lb bound for e; -1 if there is none any more.
func (p *Pool) restoreListener(e *endpoint, pidfd int) int {
	if fd := p.frozen.take(p.listenFile(e.backend.Name)); fd >= 0 {
		if listensAt(fd, e.path) {
			return fd
		}
		unix.Close(fd)
	}
	if pidfd >= 0 {
		return reopenListener(pidfd, e.path)
	}
	return -1
}

func (p *Pool) reportRestored(b Backend, s Standing, killed bool, ps *savedProcess) {
	reason := "goes on"
	if killed {
		reason = "adopted"
	}
	if p.Hooks.Resumed != nil && !killed {
		p.Hooks.Resumed(b, s)
		return
	}
	if p.Hooks.Added != nil {
		p.Hooks.Added(b)
	}
	if killed && b.Handoff != "" && ps != nil && p.Hooks.TakenOver != nil {
		p.Hooks.TakenOver(b, openSockets(&session{pid: ps.PID, start: ps.Start, look: everybody}))
	}
	if killed && s != Pending && p.Hooks.Starting != nil {
		p.Hooks.Starting(b, reason)
	}
	hook := map[Standing]func(Backend, string){Pending: p.Hooks.Starting, Serving: p.Hooks.Ready, Leaving: p.Hooks.Offline}[s]
	if hook != nil {
		hook(b, reason)
	}
}

// restoreOutput goes on in the middle of a line.
func (p *Pool) restoreOutput(w *worker, ws *savedWorker) *output {
	st := ws.Output
	o := &output{
		pool: p, slot: ws.Slot, inode: st.Inode, done: make(chan struct{}), text: st.Text, cut: st.Cut,
		free: freeBurst, freed: time.Now(), tail: st.Tail,
	}
	if ws.Process != nil {
		o.pid = ws.Process.PID
	}
	if !st.Ended && ws.End != nil {
		if fd := p.frozen.take(p.outputFile(ws.End.Name)); fd >= 0 {
			unix.SetNonblock(fd, true) // whoever carried it may have left it otherwise
			o.file = os.NewFile(uintptr(fd), "output")
		} else {
			o.file = reopenOutput(o.pid, st.Inode)
		}
	}
	if o.file == nil {
		close(o.done)
	}
	return o
}

// sweep removes from the pool's directory what no worker uses: the sockets of those that have ended
// meanwhile.
func (p *Pool) sweep() {
	known := map[string]bool{notifyName: true}
	for _, w := range p.workers {
		if w.end != nil {
			known[p.entry(w.end.path)] = true
		}
	}
	f, err := p.home.Load().Open(".")
	if err != nil {
		return
	}
	defer f.Close()
	entries, _ := f.Readdirnames(-1)
	for _, name := range entries {
		if !known[name] {
			p.removeEntry(name)
		}
	}
}

// reopenListener is a copy of the socket that a worker was handed, so that its successor can go on with what
// waits in it; -1 if the kernel does not give it (pidfd_getfd(2) asks for the rights of a debugger): then the
// successor has a new one.
func reopenListener(pidfd int, path string) int {
	fd, err := unix.PidfdGetfd(pidfd, 3, 0) // CLOEXEC is set
	if err != nil {
		return -1
	}
	if !listensAt(fd, path) {
		unix.Close(fd)
		return -1
	}
	return fd
}

// listensAt reports whether fd is a Unix socket that listens at path.
func listensAt(fd int, path string) bool {
	sa, err := unix.Getsockname(fd)
	if un, ok := sa.(*unix.SockaddrUnix); err != nil || !ok || un.Name != path {
		return false
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listens != 0
}
