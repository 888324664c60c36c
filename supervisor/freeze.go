package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/sdnotify"
)

// StateVersion is the form of what Freeze gives and Adopt reads. Fields may come and go within a version: one that is
// missing has its zero value, one that is unknown is passed over.
const StateVersion = 1

// poolState is all that a pool is, but for its config, its files, and a restart under way.
type poolState struct {
	Version    int           `json:"version"`
	Pool       string        `json:"pool"`
	Configured int           `json:"configured"` // the config's count
	Serial     uint64        `json:"serial"`
	Release    *Release      `json:"release"`
	Good       *Release      `json:"good,omitempty"`
	Previous   *Release      `json:"previous,omitempty"`
	Failed     bool          `json:"failed,omitempty"` // the last restart
	Slots      []slotState   `json:"slots"`
	Workers    []workerState `json:"workers,omitempty"` // in the order of their making
	RecycleIn  time.Duration `json:"recycle_in,omitempty"`

	Lines   uint64          `json:"lines"`
	Dropped uint64          `json:"dropped"`
	Notify  sdnotify.Counts `json:"notify"`
}

type slotState struct {
	Stopped bool     `json:"stopped,omitempty"`
	Release *Release `json:"release"`
	Deaths  int      `json:"deaths,omitempty"`
	Starts  uint64   `json:"starts,omitempty"`
	Last    *Exit    `json:"last,omitempty"`
}

type workerState struct {
	Slot       int            `json:"slot"`
	Removed    bool           `json:"removed,omitempty"`   // its slot is
	Role       string         `json:"role,omitempty"`      // in its slot: "current", "next" or none
	Recycling  bool           `json:"recycling,omitempty"` // it is made to replace one that is due
	Orphan     bool           `json:"orphan,omitempty"`
	State      string         `json:"state"`
	Since      time.Time      `json:"since"`
	Reason     string         `json:"reason,omitempty"`
	Cause      string         `json:"cause,omitempty"`
	Left       time.Duration  `json:"left,omitempty"`  // until what its state waits for by the clock; 0: the whole time
	Delay      time.Duration  `json:"delay,omitempty"` // in waiting
	Started    time.Time      `json:"started,omitzero"`
	UpSince    time.Time      `json:"up_since,omitzero"`
	Conns      uint64         `json:"conns,omitempty"`
	Spread     float64        `json:"spread,omitempty"`
	Status     string         `json:"status,omitempty"`
	Dir        string         `json:"dir,omitempty"`
	Invocation string         `json:"invocation,omitempty"`
	Release    *Release       `json:"release"`
	Process    *processState  `json:"process,omitempty"`
	End        *endpointState `json:"end,omitempty"`
	Output     *outputState   `json:"output,omitempty"`
}

type processState struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

type endpointState struct {
	Name  string `json:"name"` // of its backend
	Path  string `json:"path,omitempty"`
	Port  int    `json:"port,omitempty"`
	Bound bool   `json:"bound,omitempty"` // lb has bound it
}

type outputState struct {
	Inode uint64   `json:"inode"`
	Ended bool     `json:"ended,omitempty"`
	Text  []byte   `json:"text,omitempty"` // the beginning of a line
	Cut   bool     `json:"cut,omitempty"`
	Tail  []string `json:"tail,omitempty"`
}

// What a worker is in its slot.
const (
	roleCurrent = "current"
	roleNext    = "next"
)

// The names of the files that go along, unique over all pools.
func (p *Pool) notifyFileName() string        { return p.Name + "/notify" }
func (p *Pool) homeFileName() string          { return p.Name + "/home" }
func (p *Pool) listenFile(name string) string { return p.Name + "/" + name + "/listen" }
func (p *Pool) outputFile(name string) string { return p.Name + "/" + name + "/output" }

// Freeze stops the pool between two events and writes it down, for Adopt in the program that this process becomes by
// execve(2). The state is JSON of StateVersion. The files are copies, closed at an exec and the caller's to close: the
// notify socket, and each worker's listening socket and output. Whoever executes clears their FD_CLOEXEC, and has Adopt
// find each under its name.
//
// Until Thaw nothing is read, started, stopped or waited for, no hook is called, and every method but Status, Lines, Counters, Thaw and
// Detach waits. Nothing is lost meanwhile: messages wait in the notify socket, output in its pipes, and who ends is a
// zombie, so Reap must not run. What is told by SetHealth after Freeze is heard by Thaw alone: after an exec, tell it again.
// A command under way, of Scale for example, goes on after Thaw; after an exec its work does, and nobody waits for it.
//
// The error is ErrBusy while a restart is under way, which a freeze would cut off, and ErrStopped when the pool ends; all
// goes on then.
func (p *Pool) Freeze() (state json.RawMessage, files map[string]*os.File, err error) {
	f := &freezing{done: make(chan struct{})}
	ok := p.post(func() {
		if p.freezing != nil {
			f.err = fmt.Errorf("%w: another freeze", ErrBusy)
			close(f.done)
			return
		}
		p.freezing = f
	})
	if !ok {
		return nil, nil, fmt.Errorf("cannot freeze the workers of pool %q: %w", p.Name, ErrStopped)
	}
	select {
	case <-f.done:
		err = f.err
	case <-p.ended:
		err = ErrStopped
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot freeze the workers of pool %q: %w", p.Name, err)
	}
	return f.state, f.files, nil
}

// freezing is a freeze that is asked for, and what came of it once done is closed.
type freezing struct {
	done  chan struct{}
	state json.RawMessage
	files map[string]*os.File
	err   error
}

// Thaw has a frozen pool go on exactly as it was. Call it after a Freeze that succeeded, once.
func (p *Pool) Thaw() { p.thaw <- struct{}{} }

// park freezes the pool, and waits for what is next.
func (p *Pool) park() {
	f := p.freezing
	p.freezing = nil
	f.state, f.files, f.err = p.freeze()
	close(f.done)
	if f.err != nil {
		return
	}
	select {
	case <-p.thaw:
		p.goOn()
	case <-p.leave:
		p.detached = true
	}
}

// freeze stops all other goroutines of the pool and writes down what is. If it cannot, all goes on.
func (p *Pool) freeze() (json.RawMessage, map[string]*os.File, error) {
	if err := p.freezable(); err != nil {
		return nil, nil, err
	}
	p.endRound()
	if p.receiver != nil {
		p.receiver.Pause()
	}
	for { // what they told last; a process that is started by it is not attended to yet
		p.running.Wait()
		p.mu.Lock()
		batch := p.inbox
		p.inbox = nil
		p.mu.Unlock()
		if len(batch) == 0 {
			break
		}
		for _, f := range batch {
			f()
		}
	}
	p.settle()
	err := p.freezable()
	var files map[string]*os.File
	if err == nil {
		files, err = p.copyFiles()
	}
	if err != nil {
		p.goOn()
		return nil, nil, err
	}
	state, err := json.Marshal(p.writeDown())
	if err != nil {
		panic("BUG: supervisor: a state that is no JSON: " + err.Error())
	}
	return state, files, nil
}

// freezable says why the pool cannot be frozen now.
func (p *Pool) freezable() error {
	switch {
	case p.ending:
		return ErrStopped
	case p.roll != nil:
		return fmt.Errorf("%w: %d of %d workers are replaced", ErrBusy, p.roll.done, p.roll.total)
	}
	return nil
}

// goOn starts all that a freeze has ended.
func (p *Pool) goOn() {
	p.round, p.endRound = context.WithCancel(context.Background())
	if p.receiver != nil {
		p.receiver.Resume()
		p.running.Go(func() { p.receiver.Run() })
	}
	for _, w := range p.workers {
		p.attend(w)
	}
}

// copyFiles copies all that must outlive an exec.
func (p *Pool) copyFiles() (map[string]*os.File, error) {
	files := map[string]*os.File{}
	var err error
	add := func(name string, fd int) {
		if err != nil {
			return
		}
		if fd, err = copyFD(fd); err == nil {
			files[name] = os.NewFile(uintptr(fd), name)
		}
	}
	if p.receiver != nil {
		var f *os.File
		if f, err = p.receiver.File(); err == nil {
			files[p.notifyFileName()] = f
		}
	}
	if home := p.home.Load(); home != nil && err == nil {
		if f, e := home.Open("."); e == nil { // else it is found by name
			files[p.homeFileName()] = f
		}
	}
	for _, w := range p.workers {
		if w.end == nil {
			continue
		}
		name := w.end.backend.Name
		if w.end.fd >= 0 {
			add(p.listenFile(name), w.end.fd)
		}
		if w.out != nil && !w.out.ended() {
			if raw, e := w.out.file.SyscallConn(); e == nil {
				raw.Control(func(fd uintptr) { add(p.outputFile(name), int(fd)) })
			}
		}
	}
	if err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("cannot copy a descriptor: %w", err)
	}
	return files, nil
}

// copyFD copies a descriptor, with FD_CLOEXEC.
func copyFD(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func closeFiles(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// writeDown is what the pool is.
func (p *Pool) writeDown() *poolState {
	st := &poolState{
		Version: StateVersion, Pool: p.Name, Configured: p.cfg.Count, Serial: p.serial, Release: p.release, Good: p.good,
		Previous: p.previous, Failed: p.failed, RecycleIn: max(0, time.Until(p.recycleAt)), Lines: p.lines.Load(), Dropped: p.dropped.Load(),
	}
	if p.receiver != nil {
		st.Notify = p.receiver.Counts()
	}
	if a := p.recycling; a != nil && a.decided && a.err != nil { // tick has not seen it yet
		st.RecycleIn = recycleAgain
	}
	for _, s := range p.slots {
		ss := slotState{Stopped: s.stopped, Release: s.release, Deaths: s.deaths, Starts: s.starts}
		if !s.last.Time.IsZero() {
			ss.Last = &s.last
		}
		st.Slots = append(st.Slots, ss)
	}
	for _, w := range p.workers {
		st.Workers = append(st.Workers, p.writeWorker(w))
	}
	return st
}

func (p *Pool) writeWorker(w *worker) workerState {
	s := w.slot
	ws := workerState{
		Slot: s.number, Removed: s.removed, Orphan: w.orphan, State: w.state.String(), Since: w.since, Reason: w.reason, Cause: w.cause,
		Delay: w.delay, Started: w.started, UpSince: w.upSince, Conns: w.conns, Spread: w.spread, Status: w.status, Dir: w.dir, Invocation: w.invocation,
		Release: w.release, Recycling: p.recycling != nil && p.recycling.worker == w && !p.recycling.decided,
	}
	switch w {
	case s.current:
		ws.Role = roleCurrent
	case s.next:
		ws.Role = roleNext
	}
	if w.timer != nil {
		ws.Left = max(1, time.Until(w.deadline))
	}
	if w.process != nil {
		ws.Process = &processState{PID: w.process.pid, Start: w.process.start}
	}
	if e := w.end; e != nil {
		ws.End = &endpointState{Name: e.backend.Name, Path: e.path, Port: e.port, Bound: e.fd >= 0}
	}
	if o := w.out; o != nil {
		ws.Output = &outputState{
			Inode: o.inode, Ended: o.ended(), Text: o.text, Cut: o.cut, Tail: o.lines(),
		}
	}
	return ws
}
