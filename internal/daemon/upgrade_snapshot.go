package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
)

// The live state is what one code of lb hands to the next over an exec: all that runs, as records of package
// state. What there is one of, or a few, is JSON, which a reader of another version reads as far as it knows
// it; sessions, of which there are many, are values in a fixed order, to which a later version adds at the
// end.

// liveFormat is the form of the live state that this lb writes, and liveFormats are those that it reads.
const liveFormat = 1

func liveFormats() []int {
	if fault("format") != nil {
		return []int{0}
	}
	return []int{1}
}

const (
	liveHeadKind state.Kind = state.KindLive + iota
	livePoolKind
	liveListenerKind
	liveFleetKind
	liveAdminKind
	liveSessionKind
)

// maxLive is the largest live state that is read, in bytes: of ten thousand sessions with all their buffers
// full.
const maxLive = 2 << 30

// live is a live state, apart.
type live struct {
	head   liveHead
	pools  []livePool // of the config, and then those that are only left with sessions
	fleets []liveFleet
	admin  liveAdmin
	frozen proxy.Frozen // without Pools and Backends: see head
}

// liveHead is what there is one of.
type liveHead struct {
	Format  int       `json:"format"`
	Version string    `json:"version"` // of the lb that wrote it
	Started time.Time `json:"started"`
	Path    string    `json:"path"`    // of the config file
	Program string    `json:"program"` // what lb was started as, absolute

	StartConfig string `json:"start_config"` // the text: what needs a restart is of it
	Config      string `json:"config"`       // and all else of this
	Changes     []byte `json:"changes,omitempty"`
	LogLevel    string `json:"log_level"`
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

// livePool is a pool and what health knows of its backends.
type livePool struct {
	backends.SavedPool
	Gone   bool           `json:"gone,omitempty"` // it is not in the config any more
	Health []health.Saved `json:"health,omitempty"`
}

// liveFleet is the workers of a pool.
type liveFleet struct {
	Pool  string          `json:"pool"`
	State json.RawMessage `json:"state"`
	Files map[string]int  `json:"files"`
}

// liveAdmin is the control API.
type liveAdmin struct {
	admin.Frozen
	FDs []int `json:"fds"` // of Sockets
}

// marshal writes the live state down.
func (l *live) marshal() []byte {
	w := state.NewWriter(state.PurposeLive)
	w.Grow(256 * len(l.frozen.Sessions))
	put := func(kind state.Kind, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			panic("BUG: lb: a live state that is no JSON: " + err.Error())
		}
		w.Record(kind, text)
	}
	put(liveHeadKind, &l.head)
	for i := range l.pools {
		put(livePoolKind, &l.pools[i])
	}
	for i := range l.fleets {
		put(liveFleetKind, &l.fleets[i])
	}
	put(liveAdminKind, &l.admin)
	for i := range l.frozen.Listeners {
		put(liveListenerKind, &l.frozen.Listeners[i])
	}
	var e state.Encoder
	for i := range l.frozen.Sessions {
		e.Reset()
		l.frozen.Sessions[i].Encode(&e)
		w.Record(liveSessionKind, e.Bytes())
	}
	return w.Bytes()
}

// readLive takes a live state apart. The errors are those of package state, and one for a format that is not
// read.
func readLive(data []byte) (*live, error) {
	records, err := state.ReadLimited(data, state.PurposeLive, maxLive)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 || records[0].Kind != liveHeadKind {
		return nil, fmt.Errorf("%w: no head", state.ErrDamaged)
	}
	l := &live{}
	get := func(r state.Record, v any) error {
		if err := json.Unmarshal(r.Payload, v); err != nil {
			return fmt.Errorf("%w: a record of kind %#x: %w", state.ErrDamaged, uint16(r.Kind), err)
		}
		return nil
	}
	if err := get(records[0], &l.head); err != nil {
		return nil, err
	}
	if !slices.Contains(liveFormats(), l.head.Format) {
		return nil, fmt.Errorf("%w: %d; this lb reads %v", errFormat, l.head.Format, liveFormats())
	}
	var sessions []state.Record
	for _, r := range records[1:] {
		var err error
		switch r.Kind {
		case livePoolKind:
			err = get(r, grow(&l.pools))
		case liveFleetKind:
			err = get(r, grow(&l.fleets))
		case liveAdminKind:
			err = get(r, &l.admin)
		case liveListenerKind:
			err = get(r, grow(&l.frozen.Listeners))
		case liveSessionKind:
			sessions = append(sessions, r)
		default:
			err = r.Unknown()
		}
		if err != nil {
			return nil, err
		}
	}
	if l.frozen.Sessions, err = proxy.DecodeSessions(sessions); err != nil {
		return nil, err
	}
	l.frozen.Epoch, l.frozen.Counts, l.frozen.Channels = l.head.Epoch, l.head.Counts, l.head.Channels
	if len(l.admin.FDs) != len(l.admin.Sockets) {
		return nil, fmt.Errorf("%w: control sockets", state.ErrDamaged)
	}
	return l, l.check()
}

// check finds numbers that lead nowhere.
func (l *live) check() error {
	for _, n := range l.head.SessionPools {
		if n < 0 || n >= len(l.pools) {
			return fmt.Errorf("%w: pool %d of sessions", state.ErrDamaged, n)
		}
	}
	for _, b := range slices.Concat(l.head.SessionBackends, l.head.Closing) {
		if b[0] < 0 || b[0] >= len(l.pools) || b[1] < 0 || b[1] >= len(l.pools[b[0]].Backends) {
			return fmt.Errorf("%w: backend %v of sessions", state.ErrDamaged, b)
		}
	}
	return nil
}

// errFormat: the live state is of a format that this lb does not read.
var errFormat = errors.New("live state of an unknown format")

// grow adds an element.
func grow[T any](s *[]T) *T {
	var zero T
	*s = append(*s, zero)
	return &(*s)[len(*s)-1]
}

// fds are all descriptors that the state names.
func (l *live) fds() []int {
	fds := l.frozen.FDs()
	for _, f := range l.fleets {
		for _, fd := range f.Files {
			fds = append(fds, fd)
		}
	}
	fds = append(fds, l.admin.FDs...)
	for _, fd := range l.head.Files {
		fds = append(fds, fd)
	}
	for _, fd := range []int{l.head.Lock, l.head.Caller} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}
