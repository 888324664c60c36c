package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// recordVersion is the form of the record. Another one is not read.
const recordVersion = 1

// maxRecord is the longest record that is read, in bytes.
const maxRecord = 16 << 20

// record is what the next lb must know if this one is killed: which workers run, and what they were made from. It is a
// file beside the pool's directory, where the workers' user cannot write.
type record struct {
	Version    int           `json:"version"`
	Boot       string        `json:"boot"` // of the host: pids of another boot are others'
	Configured int           `json:"configured"`
	Count      int           `json:"count"`
	Stopped    []int         `json:"stopped,omitempty"` // slots, by hand
	Serial     uint64        `json:"serial"`
	Release    *Release      `json:"release,omitempty"`
	Good       *Release      `json:"good,omitempty"`
	Previous   *Release      `json:"previous,omitempty"`
	Failed     bool          `json:"failed,omitempty"` // the last restart
	Roll       *savedRoll    `json:"roll,omitempty"`   // the restart under way
	Workers    []savedWorker `json:"workers,omitempty"`
}

// savedRoll is a restart that is under way.
type savedRoll struct {
	Release *Release `json:"release"`
	Wanted  bool     `json:"wanted,omitempty"` // Release is the configuration's; else this is a rollback
	Slot    int      `json:"slot"`             // as in RestartOptions
	Surge   int      `json:"surge"`
	Left    []int    `json:"left"` // slots that are not replaced
}

// saveRoll returns what to record of the restart under way; nil without one.
func (p *Pool) saveRoll() *savedRoll {
	r := p.roll
	if r == nil {
		return p.interrupted
	}
	saved := &savedRoll{Release: r.release, Wanted: r.release == p.wanted, Slot: r.options.Slot, Surge: r.options.Surge}
	for _, a := range r.flying {
		saved.Left = append(saved.Left, a.slot.number)
	}
	for _, s := range r.left {
		saved.Left = append(saved.Left, s.number)
	}
	return saved
}

type savedWorker struct {
	Slot       int       `json:"slot"`
	PID        int       `json:"pid"`
	Start      uint64    `json:"start"`
	Started    time.Time `json:"started"`
	UpSince    time.Time `json:"up_since,omitzero"`
	State      string    `json:"state"`
	Current    bool      `json:"current"` // the slot's own
	Name       string    `json:"name"`    // of its backend
	Path       string    `json:"path,omitempty"`
	Port       int       `json:"port,omitempty"`
	Bound      bool      `json:"bound,omitempty"` // lb has bound it
	Output     uint64    `json:"output,omitempty"`
	Dir        string    `json:"dir,omitempty"`
	Invocation string    `json:"invocation,omitempty"`
	Release    *Release  `json:"release"`
}

func (p *Pool) recordName() string { return p.Name + ".json" }

// saveRecord writes the record, if it has changed.
func (p *Pool) saveRecord() {
	rec := record{
		Version: recordVersion, Boot: p.boot, Configured: p.cfg.Count, Count: len(p.slots), Serial: p.serial,
		Release: p.release, Good: p.good, Previous: p.previous, Failed: p.failed, Roll: p.saveRoll(),
	}
	for _, s := range p.slots {
		if s.stopped {
			rec.Stopped = append(rec.Stopped, s.number)
		}
	}
	for _, w := range p.workers {
		if w.process == nil || w.end == nil {
			continue
		}
		sw := savedWorker{
			Slot: w.slot.number, PID: w.process.pid, Start: w.process.start, Started: w.started, UpSince: w.upSince,
			State: w.state.String(), Current: w.slot.current == w, Name: w.end.backend.Name, Path: w.end.path, Port: w.end.port,
			Bound: w.end.fd >= 0, Dir: w.dir, Invocation: w.invocation, Release: w.release,
		}
		if w.out != nil {
			sw.Output = w.out.inode
		}
		rec.Workers = append(rec.Workers, sw)
	}
	text, err := json.Marshal(rec)
	if err != nil {
		panic("BUG: supervisor: a record that is no JSON: " + err.Error())
	}
	if string(text) == p.recorded {
		return
	}
	err = p.host.record(string(text))
	if p.recorded = string(text); err != nil {
		p.recorded = "" // tried again with the next event, or look
	}
	p.setFault(faultRecord, err)
}

// faultRecord: the record cannot be written.
const faultRecord = "record"

// writeRecord puts the record in the place of the one before. It need not survive the host, only lb.
func (p *Pool) writeRecord(text string) error {
	dir, name := p.dir.entries(), p.recordName()
	err := dir.WriteFile(name+".new", []byte(text), 0o600)
	if err == nil {
		err = dir.Rename(name+".new", name)
	}
	if err != nil {
		return fmt.Errorf("cannot record the workers: %w", err)
	}
	return nil
}

// readRecord reads what an lb before has left; nil if there is nothing of use.
func (p *Pool) readRecord() *record {
	f, err := p.dir.entries().Open(p.recordName())
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil
	}
	rec, err := parseRecord(text)
	if err != nil || rec.Boot != "" && p.boot != "" && rec.Boot != p.boot { // unknown: the start times tell
		return nil
	}
	return rec
}

// parseRecord reads a record, and checks whatever is believed later.
func parseRecord(text []byte) (*record, error) {
	var rec record
	if err := json.Unmarshal(text, &rec); err != nil {
		return nil, fmt.Errorf("cannot read record: %w", err)
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("cannot read record of version %d", rec.Version)
	}
	if rec.Count < 0 || rec.Count > maxCount {
		return nil, errors.New("cannot read record: bad count")
	}
	for _, w := range rec.Workers {
		if w.PID <= 1 || w.Slot < 0 || w.Slot >= maxCount || w.Release == nil || len(w.Release.Command) == 0 ||
			w.Port < 0 || w.Port > 65535 || w.Path == "" && w.Port == 0 || strings.ContainsAny(w.Name, "/ \x00") {
			return nil, errors.New("cannot read record: bad worker")
		}
	}
	if r := rec.Roll; r != nil && (r.Release == nil || len(r.Release.Command) == 0 || slices.ContainsFunc(r.Left, func(n int) bool { return n < 0 })) {
		return nil, errors.New("cannot read record: bad restart")
	}
	return &rec, nil
}

// bootID tells one boot of the host from another; "" where /proc has no more than processes (subset=pid of proc(5)).
func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

// stop has slots be as if they had been stopped by hand, before they have workers.
func (p *Pool) stop(slots []int) {
	for _, n := range slots {
		if n >= 0 && n < len(p.slots) {
			p.slots[n].wanted, p.slots[n].stopped = false, true
		}
	}
}

// adopt goes on with the workers of an lb before, or ends them. It runs before the pool's goroutine.
func (p *Pool) adopt(rec *record) {
	p.serial = rec.Serial
	p.stop(rec.Stopped)
	p.good, p.previous, p.failed = rec.Good, rec.Previous, rec.Failed
	if rec.Release != nil && rec.Release.pinned("").same(p.release) { // the config has not changed: a pin stays
		p.release = rec.Release
		for _, s := range p.slots {
			s.release = rec.Release
		}
	}
	if r := rec.Roll; r != nil && (!r.Wanted || r.Release.same(p.wanted)) {
		p.interrupted = r
	}
	for _, sw := range rec.Workers {
		p.adoptWorker(sw)
	}
	p.publishPIDs()
}

// sweep removes from the pool's directory what no worker uses: the sockets of those that have ended meanwhile.
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

// adoptWorker goes on with one worker, if it is still there.
func (p *Pool) adoptWorker(sw savedWorker) {
	pidfd, err := unix.PidfdOpen(sw.PID, 0)
	if err != nil {
		return
	}
	// Looked at once the pidfd is held: from here on the pid cannot become another's unnoticed.
	if start, err := startTime(sw.PID); err != nil || start != sw.Start {
		unix.Close(pidfd)
		return
	}
	s := &slot{number: sw.Slot, release: sw.Release} // of those scaled away
	if sw.Slot < len(p.slots) {
		s = p.slots[sw.Slot]
	}
	w := &worker{
		slot: s, release: sw.Release, dir: sw.Dir, invocation: sw.Invocation, started: sw.Started, upSince: sw.UpSince, spread: 2*p.random() - 1,
		end: &endpoint{slot: sw.Slot, path: sw.Path, port: sw.Port, fd: -1},
	}
	w.end.backend = Backend{Pool: p.Name, Slot: sw.Slot, Name: sw.Name, Address: w.end.address()}
	w.backend = w.end.backend
	if sw.Bound {
		w.end.fd = adoptSocket(pidfd, sw.Path)
	}
	if f := adoptOutput(sw.PID, sw.Output); f != nil {
		w.out = p.newOutput(sw.Slot, sw.PID, f)
	}
	w.process = p.newProcess(w, sw.PID, sw.Start, pidfd)
	p.workers = append(p.workers, w)
	if p.Hooks.Added != nil {
		p.Hooks.Added(w.backend)
	}
	if p.Hooks.Starting != nil {
		p.Hooks.Starting(w.backend, "adopted")
	}
	keep := sw.Current && s.wanted && s.current == nil
	at := slices.Index(stateNames[:], sw.State)
	if keep {
		s.current, s.release = w, sw.Release
	}
	switch state(at) {
	case starting:
		p.enter(w, starting, "adopted")
	case up, silent:
		p.enter(w, up, "adopted")
		p.act(w, doServe, "adopted")
	case draining:
		p.enter(w, draining, "adopted")
	default: // it was to replace another, which its lb does not do any more, or was ending
		p.enter(w, stopping, "adopted")
		p.act(w, doStop, "adopted")
	}
	p.tell(w, waiting)
	p.attend(w)
	switch {
	case keep && p.cfg.Orphans == orphansStop && w.state != stopping:
		// Its slot has the next one when it has ended: never two.
		w.orphan = true
		p.act(w, doOffline, "orphans = \"stop\"")
		p.enter(w, stopping, "orphans = \"stop\"")
		p.act(w, doStop, "orphans = \"stop\"")
	case !keep:
		p.fire(w, retire, "not wanted any more")
	}
}

// adoptSocket is a copy of the socket that a worker was handed, so that its successor can go on with what waits in it; -1
// if the kernel does not give it (pidfd_getfd(2) asks for the rights of a debugger): then the successor has a new one.
func adoptSocket(pidfd int, path string) int {
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

// listensAt says whether fd is a Unix socket that listens at path.
func listensAt(fd int, path string) bool {
	sa, err := unix.Getsockname(fd)
	if un, ok := sa.(*unix.SockaddrUnix); err != nil || !ok || un.Name != path {
		return false
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listens != 0
}
