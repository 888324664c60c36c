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
)

// Standing is how an address stood with the front when its pool was frozen, by what Hooks had been called for it.
type Standing int

const (
	// Held: it takes no connections; a worker starts there, or will. Ready comes later.
	Held Standing = iota
	// Serving: Ready was told, and Offline not since. Health may have it down all the same: the supervisor's own idea of that goes on
	// until SetHealth tells another.
	Serving
	// Leaving: Offline was told, for the last time. Removed comes next.
	Leaving
)

// frozen is what Adopt took.
type frozen struct {
	state  *poolState
	given  map[string]*os.File // the caller's
	copies map[string]int      // the pool's, with FD_CLOEXEC
}

// Adopt has Start go on with the pool that Freeze wrote down, instead of one that it finds or makes: the same processes,
// at the same addresses, in the same states, with what was left of their time, and all counts. Call it before Prepare. The
// files stay the caller's, who may close them after Prepare; one that is missing is found elsewhere or done without.
//
// Start calls Hooks.Resumed, once for each address, and nothing else. A worker that has ended since Freeze is found right
// after, with its exit status. The config of NewPool wins over the state: timeouts and limits hold at once, a count that is another
// than Freeze's scales, and for another command the workers are Stale, as after Update, until a Restart.
//
// The error is ErrState, with the reason, and nothing has changed then: so a state can be tried without files.
func (p *Pool) Adopt(state json.RawMessage, files map[string]*os.File) error {
	st, err := p.parseState(state)
	if err != nil {
		return fmt.Errorf("cannot adopt the workers of pool %q: %w: %w", p.Name, ErrState, err)
	}
	p.frozen = &frozen{state: st, given: files}
	return nil
}

// parseState reads a state, and checks whatever is believed later.
func (p *Pool) parseState(text []byte) (*poolState, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, err
	}
	if head.Version != StateVersion {
		return nil, fmt.Errorf("version %d; want %d", head.Version, StateVersion)
	}
	var st poolState
	if err := json.Unmarshal(text, &st); err != nil {
		return nil, err
	}
	switch {
	case st.Pool != p.Name:
		return nil, fmt.Errorf("it is of pool %q", st.Pool)
	case len(st.Slots) > maxCount:
		return nil, fmt.Errorf("%d slots", len(st.Slots))
	case !st.Release.runs():
		return nil, fmt.Errorf("no command")
	}
	for i := range st.Slots {
		if !st.Slots[i].Release.runs() {
			return nil, fmt.Errorf("slot %d has no command", i)
		}
	}
	names, roles := map[string]bool{}, map[string]bool{}
	for i := range st.Workers {
		w := &st.Workers[i]
		if err := w.check(len(st.Slots)); err != nil {
			return nil, fmt.Errorf("worker %d: %w", i, err)
		}
		if w.End != nil {
			if names[w.End.Name] {
				return nil, fmt.Errorf("worker %d: %q is another's", i, w.End.Name)
			}
			names[w.End.Name] = true
		}
		if w.Role != "" {
			role := fmt.Sprint(w.Slot, w.Role)
			if roles[role] {
				return nil, fmt.Errorf("worker %d: slot %d has its %s one", i, w.Slot, w.Role)
			}
			roles[role] = true
		}
	}
	return &st, nil
}

// runs says whether there is something to run.
func (r *Release) runs() bool { return r != nil && len(r.Command) > 0 && r.Command[0] != "" }

// check looks for what cannot be.
func (w *workerState) check(slots int) error {
	at := state(slices.Index(stateNames[:], w.State))
	switch {
	case slices.Index(stateNames[:], w.State) < 0 || at == gone:
		return fmt.Errorf("unknown state %q", w.State)
	case w.Slot < 0 || w.Slot >= maxCount:
		return fmt.Errorf("bad slot %d", w.Slot)
	case w.Role != "" && w.Role != roleCurrent && w.Role != roleNext:
		return fmt.Errorf("unknown role %q", w.Role)
	case w.Role != "" && (w.Removed || w.Slot >= slots):
		return fmt.Errorf("slot %d is no more", w.Slot)
	case !w.Release.runs():
		return fmt.Errorf("no command")
	case w.Process != nil && w.Process.PID <= 1:
		return fmt.Errorf("bad pid %d", w.Process.PID)
	case w.Process != nil && (w.End == nil || at == waiting):
		return fmt.Errorf("a process in state %q, with no address or too early", w.State)
	case w.End != nil && (w.End.Name == "" || strings.ContainsAny(w.End.Name, "/ \x00") || w.End.Port < 0 || w.End.Port > 65535 ||
		w.End.Path == "" && w.End.Port == 0 || len(w.End.Path) > maxUnixPath):
		return fmt.Errorf("bad address %q", w.End.Name)
	case w.Output != nil && len(w.Output.Text) > maxLine:
		return fmt.Errorf("%d bytes of a line", len(w.Output.Text))
	}
	return nil
}

// openHome opens the pool's directory by the descriptor that was given, as its name does not lead there any more.
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

// copyFiles makes the files the pool's.
func (f *frozen) copyFiles() error {
	f.copies = map[string]int{}
	for name, given := range f.given {
		if !strings.HasPrefix(name, f.state.Pool+"/") {
			continue
		}
		fd := -1
		raw, err := given.SyscallConn()
		if err == nil {
			if e := raw.Control(func(n uintptr) { fd, err = copyFD(int(n)) }); e != nil {
				err = e
			}
		}
		if err != nil {
			f.drop()
			return fmt.Errorf("cannot take over descriptor %q: %w", name, err)
		}
		f.copies[name] = fd
	}
	return nil
}

// take takes one out; -1 if there is none.
func (f *frozen) take(name string) int {
	fd, ok := f.copies[name]
	if !ok {
		return -1
	}
	delete(f.copies, name)
	return fd
}

// drop closes those that nobody took.
func (f *frozen) drop() {
	if f == nil {
		return
	}
	for _, fd := range f.copies {
		unix.Close(fd)
	}
	f.copies = nil
}

// resume makes the pool what it was, and runs its goroutine.
func (p *Pool) resume() {
	st := p.frozen.state
	p.serial, p.release, p.good, p.previous, p.failed = st.Serial, st.Release, st.Good, st.Previous, st.Failed
	p.lines.Store(st.Lines)
	p.dropped.Store(st.Dropped)
	p.receiver.Restore(st.Notify)
	if st.RecycleIn > 0 {
		p.recycleAt = time.Now().Add(st.RecycleIn)
	}
	for i, ss := range st.Slots {
		s := &slot{number: i, wanted: !ss.Stopped, stopped: ss.Stopped, release: ss.Release, deaths: max(0, ss.Deaths), starts: ss.Starts}
		if ss.Last != nil {
			s.last = *ss.Last
		}
		p.slots = append(p.slots, s)
	}
	for i := range st.Workers {
		p.resumeWorker(&st.Workers[i])
	}
	p.publishPIDs()
	for _, w := range p.workers {
		p.attend(w)
	}
	if st.Configured != p.cfg.Count {
		p.grow(p.cfg.EffectiveCount())
	}
	for _, s := range p.slots {
		if s.wanted && s.current == nil {
			p.plan(s, 0, nil, "the count has changed")
		}
	}
	p.schedule()
	p.publish()
	p.frozen.drop()
	p.frozen = nil
	go p.run()
}

// resumeWorker has one worker go on.
func (p *Pool) resumeWorker(ws *workerState) {
	s := &slot{number: ws.Slot, removed: true, release: ws.Release}
	if !ws.Removed && ws.Slot < len(p.slots) {
		s = p.slots[ws.Slot]
	}
	w := &worker{
		slot: s, release: ws.Release, dir: ws.Dir, invocation: ws.Invocation, delay: ws.Delay, state: state(slices.Index(stateNames[:], ws.State)),
		since: aged(ws.Since), reason: ws.Reason, cause: ws.Cause, started: aged(ws.Started), upSince: aged(ws.UpSince), conns: ws.Conns,
		spread: ws.Spread, status: ws.Status, orphan: ws.Orphan,
	}
	p.workers = append(p.workers, w)
	switch ws.Role {
	case roleCurrent:
		s.current = w
	case roleNext:
		s.next = w
	}
	if ws.Recycling {
		p.recycling = &attempt{slot: s, worker: w}
		w.attempt = p.recycling
	}
	pidfd := -1
	if ws.Process != nil {
		pidfd = openProcess(ws.Process)
	}
	if ws.End != nil {
		p.resumeEndpoint(w, ws.End, pidfd)
	}
	if ws.Output != nil {
		w.out = p.resumeOutput(w, ws)
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

// aged is a time of before an exec, on this program's monotonic clock.
func aged(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.Now().Add(-max(0, time.Since(t)))
}

// openProcess is the pidfd of a process, which may have ended and be a zombie; -1 if it is no more.
func openProcess(ps *processState) int {
	pidfd, err := unix.PidfdOpen(ps.PID, 0)
	if err != nil {
		return -1
	}
	// Looked at once the pidfd is held: from here on the pid cannot become another's unnoticed. Where /proc does not show it
	// (hidesOthers), the milliseconds since the freeze are too few for that.
	if start, err := startTime(ps.PID); err == nil && start != ps.Start {
		unix.Close(pidfd)
		return -1
	}
	return pidfd
}

// resumeEndpoint gives w its address, and tells of it.
func (p *Pool) resumeEndpoint(w *worker, es *endpointState, pidfd int) {
	e := &endpoint{slot: w.slot.number, path: es.Path, port: es.Port, fd: -1}
	e.backend = Backend{Pool: p.Name, Slot: w.slot.number, Name: es.Name, Address: e.address()}
	if es.Bound {
		e.fd = p.resumeListener(e, pidfd)
		if e.fd < 0 && w.state == waiting { // it would have nothing to start with
			p.closeEndpoint(e)
			return
		}
	}
	w.end, w.backend = e, e.backend
	standing := Leaving
	switch w.state {
	case waiting, starting, joining, proving:
		standing = Held
	case up, silent:
		standing = Serving
	}
	p.tellResumed(e.backend, standing)
}

// resumeListener is the socket that lb bound for e; -1 if there is none any more.
func (p *Pool) resumeListener(e *endpoint, pidfd int) int {
	if fd := p.frozen.take(p.listenFile(e.backend.Name)); fd >= 0 {
		if listensAt(fd, e.path) {
			return fd
		}
		unix.Close(fd)
	}
	if pidfd >= 0 {
		return adoptSocket(pidfd, e.path)
	}
	return -1
}

func (p *Pool) tellResumed(b Backend, s Standing) {
	const reason = "goes on"
	if p.Hooks.Resumed != nil {
		p.Hooks.Resumed(b, s)
		return
	}
	if p.Hooks.Added != nil {
		p.Hooks.Added(b)
	}
	hook := map[Standing]func(Backend, string){Held: p.Hooks.Starting, Serving: p.Hooks.Ready, Leaving: p.Hooks.Offline}[s]
	if hook != nil {
		hook(b, reason)
	}
}

// resumeOutput goes on in the middle of a line.
func (p *Pool) resumeOutput(w *worker, ws *workerState) *output {
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
			o.file = adoptOutput(o.pid, st.Inode)
		}
	}
	if o.file == nil {
		close(o.done)
	}
	return o
}
