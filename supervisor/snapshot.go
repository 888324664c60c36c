package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/273ebdf9/lb/internal/sdnotify"
)

const (
	// snapshotVersion is the form that is written. Fields may come and go within a version: one that is
	// missing has its zero value, one that is unknown is passed over.
	snapshotVersion = 2
	// oldestFrozen and oldestRecord are the oldest forms that are read. Version 1 of a record was of another
	// kind.
	oldestFrozen = 1
	oldestRecord = 2
)

// snapshot is a pool written down: its slots and workers, and what they were made from, but for its config
// and its files. It is written twice: as a record, for the next lb if this one is killed, and frozen, for the
// code that this process becomes by an upgrade. A record leaves out what changes without an event, and
// workers without a process. See docs/state.md.
type snapshot struct {
	Version int `json:"version"`
	// of the host, in a record: pids of another boot are others'
	Boot       string        `json:"boot,omitempty"`
	Pool       string        `json:"pool"`
	Configured int           `json:"configured"` // the config's count
	Serial     uint64        `json:"serial"`
	Release    *Release      `json:"release"`
	Good       *Release      `json:"good,omitempty"`
	Previous   *Release      `json:"previous,omitempty"`
	Failed     bool          `json:"failed,omitempty"` // the last restart
	Rollout    *savedRollout `json:"roll,omitempty"`   // the restart under way
	Slots      []savedSlot   `json:"slots"`
	Workers    []savedWorker `json:"workers,omitempty"` // in the order of their making
	RecycleIn  time.Duration `json:"recycle_in,omitempty"`

	Lines   uint64          `json:"lines"`
	Dropped uint64          `json:"dropped"`
	Notify  sdnotify.Counts `json:"notify"`
}

type savedSlot struct {
	Stopped bool              `json:"stopped,omitempty"`
	Release *Release          `json:"release"`
	Deaths  int               `json:"deaths,omitempty"`
	Starts  uint64            `json:"starts,omitempty"`
	Exits   map[string]uint64 `json:"exits,omitempty"`
	CPU     time.Duration     `json:"cpu,omitempty"`
	Last    *Exit             `json:"last,omitempty"`
}

type savedWorker struct {
	Slot      int       `json:"slot"`
	Removed   bool      `json:"removed,omitempty"`   // its slot is
	Role      string    `json:"role,omitempty"`      // in its slot: "current", "next" or none
	Recycling bool      `json:"recycling,omitempty"` // it is made to replace one that is due
	Orphan    bool      `json:"orphan,omitempty"`
	State     string    `json:"state"`
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason,omitempty"`
	Cause     string    `json:"cause,omitempty"`
	Fault     string    `json:"fault,omitempty"`
	// until what its state waits for by the clock; 0: the whole time
	Left       time.Duration  `json:"left,omitempty"`
	Delay      time.Duration  `json:"delay,omitempty"` // in waiting
	Started    time.Time      `json:"started,omitzero"`
	UpSince    time.Time      `json:"up_since,omitzero"`
	Conns      uint64         `json:"conns,omitempty"`
	Spread     float64        `json:"spread,omitempty"`
	Status     string         `json:"status,omitempty"`
	Dir        string         `json:"dir,omitempty"`
	Invocation string         `json:"invocation,omitempty"`
	Release    *Release       `json:"release"`
	Process    *savedProcess  `json:"process,omitempty"`
	End        *savedEndpoint `json:"end,omitempty"`
	Output     *savedOutput   `json:"output,omitempty"`
}

type savedProcess struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

type savedEndpoint struct {
	Name    string    `json:"name"` // of its backend
	Path    string    `json:"path,omitempty"`
	Port    int       `json:"port,omitempty"`
	Bound   bool      `json:"bound,omitempty"` // lb has bound it
	Handoff string    `json:"handoff,omitempty"`
	Channel [2]uint64 `json:"channel,omitzero"` // the inodes of lb's and the worker's end
}

type savedOutput struct {
	Inode uint64   `json:"inode"`
	Ended bool     `json:"ended,omitempty"`
	Text  []byte   `json:"text,omitempty"` // the beginning of a line
	Cut   bool     `json:"cut,omitempty"`
	Tail  []string `json:"tail,omitempty"`
}

// savedRollout is a restart that is under way.
type savedRollout struct {
	Release *Release `json:"release"`
	Wanted  bool     `json:"wanted,omitempty"` // Release is the configuration's; else this is a rollback
	Slot    int      `json:"slot"`             // as in RestartOptions
	Surge   int      `json:"surge"`
	Left    []int    `json:"left"` // slots that are not replaced
}

// saveRollout returns what to record of the restart under way; nil without one.
func (p *Pool) saveRollout() *savedRollout {
	r := p.rollout
	if r == nil {
		return p.interrupted
	}
	saved := &savedRollout{Release: r.release, Wanted: r.release == p.wanted, Slot: r.options.Slot, Surge: r.options.Surge}
	for _, a := range r.flying {
		saved.Left = append(saved.Left, a.slot.number)
	}
	for _, s := range r.left {
		saved.Left = append(saved.Left, s.number)
	}
	return saved
}

// What a worker is in its slot.
const (
	roleCurrent = "current"
	roleNext    = "next"
)

// record returns what the next lb must know if this one is killed.
func (p *Pool) record() *snapshot {
	st := &snapshot{
		Version: snapshotVersion, Pool: p.Name, Configured: p.cfg.Count, Serial: p.serial, Release: p.release, Good: p.good,
		Previous: p.previous, Failed: p.failed, Rollout: p.saveRollout(), Boot: p.boot,
	}
	for _, s := range p.slots {
		st.Slots = append(st.Slots, savedSlot{Stopped: s.stopped, Release: s.release})
	}
	for _, w := range p.workers {
		if w.process != nil && w.end != nil {
			st.Workers = append(st.Workers, p.saveWorker(w))
		}
	}
	return st
}

// freezeState returns all that a pool is which nothing happens to.
func (p *Pool) freezeState() *snapshot {
	st := p.record()
	st.Boot, st.Workers, st.Lines, st.Dropped = "", nil, p.lines.Load(), p.dropped.Load()
	st.RecycleIn = max(0, time.Until(p.recycleAt))
	if p.receiver != nil {
		st.Notify = p.receiver.Counts()
	}
	if a := p.recycling; a != nil && a.decided && a.err != nil { // recycle has not seen it yet
		st.RecycleIn = recycleAgain
	}
	for i, s := range p.slots {
		ss := &st.Slots[i]
		ss.Deaths, ss.Starts, ss.Exits, ss.CPU = s.deaths, s.starts, s.exits, s.cpu
		if !s.last.Time.IsZero() {
			ss.Last = &s.last
		}
	}
	for _, w := range p.workers {
		ws := p.saveWorker(w)
		ws.Status = w.status
		if w.timer != nil {
			ws.Left = max(1, time.Until(w.deadline))
		}
		if o := w.out; o != nil {
			ws.Output = &savedOutput{
				Inode: o.inode, Ended: o.ended(), Text: o.text, Cut: o.cut, Tail: o.lines(),
			}
		}
		st.Workers = append(st.Workers, ws)
	}
	return st
}

// saveWorker returns what of a worker changes with its events alone.
func (p *Pool) saveWorker(w *worker) savedWorker {
	s := w.slot
	ws := savedWorker{
		Slot: s.number, Removed: s.removed, Orphan: w.orphan, State: w.state.String(), Since: w.since, Reason: w.reason, Cause: w.cause, Fault: w.fault,
		Delay: w.delay, Started: w.started, UpSince: w.upSince, Conns: w.conns, Spread: w.spread, Dir: w.dir, Invocation: w.invocation,
		Release: w.release, Recycling: p.recycling != nil && p.recycling.worker == w && !p.recycling.decided,
	}
	switch {
	case s.removed: // then the slot is not in the snapshot
	case w == s.current:
		ws.Role = roleCurrent
	case w == s.next:
		ws.Role = roleNext
	}
	if w.process != nil {
		ws.Process = &savedProcess{PID: w.process.pid, Start: w.process.start}
	}
	if e := w.end; e != nil {
		ws.End = &savedEndpoint{Name: e.backend.Name, Path: e.path, Port: e.port, Bound: e.fd >= 0}
		if e.handoff != "" {
			ws.End.Handoff, ws.End.Channel = e.handoff, e.channelInodes()
		}
	}
	if o := w.out; o != nil {
		ws.Output = &savedOutput{Inode: o.inode}
	}
	return ws
}

// parseSnapshot reads a snapshot of the pool of that name, of any version from oldest on, and checks whatever
// is believed later.
func parseSnapshot(text []byte, pool string, oldest int) (*snapshot, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, err
	}
	if head.Version < oldest || head.Version > snapshotVersion {
		return nil, fmt.Errorf("it is of version %d; this lb reads %d to %d", head.Version, oldest, snapshotVersion)
	}
	var st snapshot
	if err := json.Unmarshal(text, &st); err != nil {
		return nil, err
	}
	switch {
	case st.Pool != pool:
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
	if r := st.Rollout; r != nil && (!r.Release.runs() || slices.ContainsFunc(r.Left, func(n int) bool { return n < 0 })) {
		return nil, errors.New("a restart of nothing")
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

// runs reports whether there is something to run.
func (r *Release) runs() bool { return r != nil && len(r.Command) > 0 && r.Command[0] != "" }

// check looks for what cannot be.
func (w *savedWorker) check(slots int) error {
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
