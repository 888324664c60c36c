package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
)

// A snapshot is what one code of lb hands to the next over an exec: all that runs, as records of package
// state. What there is one of, or a few, is JSON, which a reader of another version reads as far as it knows
// it; sessions, of which there are many, are values in a fixed order, to which a later version adds at the
// end.

// snapshotFormat is the form of the snapshot that this lb writes, and snapshotFormats are those that it
// reads.
const snapshotFormat = 1

func snapshotFormats() []int {
	if fault("format") != nil {
		return []int{0}
	}
	return []int{1}
}

const (
	headKind state.Kind = state.KindSnapshot + iota
	poolKind
	listenerKind
	workersKind
	adminKind
	sessionKind
)

// maxSnapshot is the largest snapshot that is read, in bytes: of ten thousand sessions with all their buffers
// full.
const maxSnapshot = 2 << 30

// snapshot is what one code of lb hands to the next, decoded.
type snapshot struct {
	head    snapshotHead
	pools   []poolSnapshot // of the config, and then those that are only left with sessions
	workers []workersSnapshot
	admin   adminSnapshot
	frozen  proxy.Frozen // without Pools and Backends: see head
}

// snapshotHead is what there is one of.
type snapshotHead struct {
	Format  int       `json:"format"`
	Version string    `json:"version"` // of the lb that wrote it
	Started time.Time `json:"started"`
	Path    string    `json:"path"`    // of the config file
	Program string    `json:"program"` // what lb was started as, absolute

	StartConfig string `json:"start_config"` // the text: what needs a restart is of it
	Config      string `json:"config"`       // and all else of this
	Changes     []byte `json:"changes,omitempty"`
	// Found is what pools have discovered.
	Found      findings          `json:"found,omitempty"`
	LogLevel   string            `json:"log_level"`
	LastReload *api.ReloadStatus `json:"last_reload,omitempty"`
	// what the service manager had put into the environment
	Service map[string]string `json:"service,omitempty"`

	Epoch    time.Duration        `json:"epoch"` // see proxy.Frozen
	Counts   proxy.SavedCounts    `json:"counts"`
	Channels []proxy.SavedChannel `json:"channels,omitempty"`
	// the numbers of proxy.Frozen.Pools among the pools
	SessionPools []int `json:"session_pools,omitempty"`
	// and those of its Backends: pool, and place in it
	SessionBackends [][2]int `json:"session_backends,omitempty"`
	// those backends whose sessions are to be closed (on_down)
	Closing [][2]int `json:"closing,omitempty"`

	Lock int `json:"lock"` // the descriptor of the run-time directory's; -1: there is none
	// Files are descriptors of what has a name that may lead elsewhere by now, by their keys: "log",
	// "access", "run_dir". A version before wrote none.
	Files    map[string]int `json:"files,omitempty"`
	Caller   int            `json:"caller"` // of the connection that waits for the outcome; -1: there is none
	By       string         `json:"by"`
	Reload   bool           `json:"reload,omitempty"` // afterwards
	Warnings []string       `json:"warnings,omitempty"`
	FrozenAt time.Duration  `json:"frozen_at"` // CLOCK_MONOTONIC
	Upgrades uint64         `json:"upgrades"`
	Carried  uint64         `json:"carried"` // sessions, over all upgrades

	Log    logs.Queued `json:"log"` // what was not written
	Access logs.Queued `json:"access"`
}

// poolSnapshot is a pool and what health knows of its backends.
type poolSnapshot struct {
	backends.SavedPool
	Gone   bool           `json:"gone,omitempty"` // it is not in the config any more
	Health []health.Saved `json:"health,omitempty"`
}

// workersSnapshot is the workers of a pool.
type workersSnapshot struct {
	Pool  string          `json:"pool"`
	State json.RawMessage `json:"state"`
	Files map[string]int  `json:"files"`
}

// adminSnapshot is the control API.
type adminSnapshot struct {
	admin.Frozen
	FDs []int `json:"fds"` // of Sockets
}

// marshal writes the snapshot down.
func (snap *snapshot) marshal() []byte {
	w := state.NewWriter(state.PurposeSnapshot)
	w.Grow(256 * len(snap.frozen.Sessions))
	put := func(kind state.Kind, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			panic("BUG: lb: a snapshot that is no JSON: " + err.Error())
		}
		w.Record(kind, text)
	}
	put(headKind, &snap.head)
	for i := range snap.pools {
		put(poolKind, &snap.pools[i])
	}
	for i := range snap.workers {
		put(workersKind, &snap.workers[i])
	}
	put(adminKind, &snap.admin)
	for i := range snap.frozen.Listeners {
		put(listenerKind, &snap.frozen.Listeners[i])
	}
	var e state.Encoder
	for i := range snap.frozen.Sessions {
		e.Reset()
		snap.frozen.Sessions[i].Encode(&e)
		w.Record(sessionKind, e.Bytes())
	}
	return w.Bytes()
}

// readSnapshot takes a snapshot apart. The errors are those of package state, and one for a format that is
// not read.
func readSnapshot(data []byte) (*snapshot, error) {
	records, err := state.ReadLimited(data, state.PurposeSnapshot, maxSnapshot)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 || records[0].Kind != headKind {
		return nil, fmt.Errorf("%w: no head", state.ErrDamaged)
	}
	snap := &snapshot{}
	get := func(r state.Record, v any) error {
		if err := json.Unmarshal(r.Payload, v); err != nil {
			return fmt.Errorf("%w: a record of kind %#x: %w", state.ErrDamaged, uint16(r.Kind), err)
		}
		return nil
	}
	if err := get(records[0], &snap.head); err != nil {
		return nil, err
	}
	if !slices.Contains(snapshotFormats(), snap.head.Format) {
		return nil, fmt.Errorf("%w: %d; this lb reads %v", errFormat, snap.head.Format, snapshotFormats())
	}
	var sessions []state.Record
	for _, r := range records[1:] {
		var err error
		switch r.Kind {
		case poolKind:
			err = get(r, grow(&snap.pools))
		case workersKind:
			err = get(r, grow(&snap.workers))
		case adminKind:
			err = get(r, &snap.admin)
		case listenerKind:
			err = get(r, grow(&snap.frozen.Listeners))
		case sessionKind:
			sessions = append(sessions, r)
		default:
			err = r.Unknown()
		}
		if err != nil {
			return nil, err
		}
	}
	if snap.frozen.Sessions, err = proxy.DecodeSessions(sessions); err != nil {
		return nil, err
	}
	snap.frozen.Epoch, snap.frozen.Counts, snap.frozen.Channels = snap.head.Epoch, snap.head.Counts, snap.head.Channels
	if len(snap.admin.FDs) != len(snap.admin.Sockets) {
		return nil, fmt.Errorf("%w: control sockets", state.ErrDamaged)
	}
	return snap, snap.check()
}

// check finds numbers that lead nowhere.
func (snap *snapshot) check() error {
	for _, n := range snap.head.SessionPools {
		if n < 0 || n >= len(snap.pools) {
			return fmt.Errorf("%w: pool %d of sessions", state.ErrDamaged, n)
		}
	}
	for _, b := range slices.Concat(snap.head.SessionBackends, snap.head.Closing) {
		if b[0] < 0 || b[0] >= len(snap.pools) || b[1] < 0 || b[1] >= len(snap.pools[b[0]].Backends) {
			return fmt.Errorf("%w: backend %v of sessions", state.ErrDamaged, b)
		}
	}
	return nil
}

// errFormat: the snapshot is of a format that this lb does not read.
var errFormat = errors.New("snapshot of an unknown format")

// grow adds an element.
func grow[T any](s *[]T) *T {
	var zero T
	*s = append(*s, zero)
	return &(*s)[len(*s)-1]
}

// fds are all descriptors that the state names.
func (snap *snapshot) fds() []int {
	fds := snap.frozen.FDs()
	for _, f := range snap.workers {
		for _, fd := range f.Files {
			fds = append(fds, fd)
		}
	}
	fds = append(fds, snap.admin.FDs...)
	for _, fd := range snap.head.Files {
		fds = append(fds, fd)
	}
	for _, fd := range []int{snap.head.Lock, snap.head.Caller} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}
