package daemon

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
)

// sampleSnapshot is a snapshot with something of everything.
func sampleSnapshot() *snapshot {
	snap := &snapshot{head: snapshotHead{
		Format: snapshotFormat, Version: "1", Path: "/etc/lb/lb.toml", Config: "x", Lock: -1, Caller: 7,
		SessionPools: []int{0}, SessionBackends: [][2]int{{0, 0}}, Closing: [][2]int{{0, 0}},
	}}
	snap.pools = []poolSnapshot{{SavedPool: backends.SavedPool{Name: "app", Backends: []backends.SavedBackend{{Name: "w1"}}}}}
	snap.workers = []workersSnapshot{{Pool: "app", State: []byte(`{}`), Files: map[string]int{"app/notify": 9}}}
	snap.frozen.Listeners = []proxy.SavedListener{{Name: "web", Sockets: []proxy.SavedSocket{{FD: 5}}}}
	snap.frozen.Sessions = []proxy.SavedSession{{
		ID: 3, Loop: 1, Phase: 4, HalfOpen: true, Forwarded: true, Counted: true, LastFrom: 1, Retries: 2, Place: -1, Tried: []int{0}, Forbidden: []int{0},
		Client: netip.MustParseAddrPort("192.0.2.1:80"), Peer: netip.MustParseAddrPort("[2001:db8::1]:81"), TLVs: []byte{1, 2},
		Ends:       [2]proxy.SavedEnd{{FD: 11, Flags: 3}, {FD: 12}},
		Directions: [2]proxy.SavedDirection{{Buffered: []byte("held"), Bytes: 1 << 40}, {Buffered: []byte{}, Piped: 100, PipeR: 13, PipeW: 14, PipeSize: 65536}},
		Start:      time.Second, Expires: time.Hour, Queued: -1,
	}}
	return snap
}

func TestSnapshot_ComesBackAsItWas(t *testing.T) {
	want := sampleSnapshot()
	got, err := readSnapshot(want.marshal())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.frozen.Sessions, want.frozen.Sessions) {
		t.Errorf("sessions: got %+v; want %+v", got.frozen.Sessions, want.frozen.Sessions)
	}
	if !reflect.DeepEqual(got.head, want.head) {
		t.Errorf("head: got %+v; want %+v", got.head, want.head)
	}
	a, b := got.fds(), want.fds()
	slices.Sort(a)
	slices.Sort(b)
	if !slices.Equal(a, b) || len(a) != 7 {
		t.Errorf("descriptors: got %v; want %v", a, b)
	}
}

func TestSnapshot_DamageIsAnError(t *testing.T) {
	data := sampleSnapshot().marshal()
	for n := range data {
		if _, err := readSnapshot(data[:n]); err == nil {
			t.Errorf("the first %d of %d bytes: got no error", n, len(data))
		}
		for bit := range 8 {
			flipped := slices.Clone(data)
			flipped[n] ^= 1 << bit
			if _, err := readSnapshot(flipped); err == nil {
				t.Errorf("bit %d of byte %d flipped: got no error", bit, n)
			}
		}
	}
}

func TestSnapshot_NumbersThatLeadNowhereAreAnError(t *testing.T) {
	for name, spoil := range map[string]func(*snapshot){
		"pool":          func(snap *snapshot) { snap.head.SessionPools[0] = 1 },
		"negative pool": func(snap *snapshot) { snap.head.SessionPools[0] = -1 },
		"backend":       func(snap *snapshot) { snap.head.SessionBackends[0][1] = 1 },
		"its pool":      func(snap *snapshot) { snap.head.SessionBackends[0][0] = 1 },
		"to be closed":  func(snap *snapshot) { snap.head.Closing[0][1] = 1 },
		"format":        func(snap *snapshot) { snap.head.Format++ },
		"sockets":       func(snap *snapshot) { snap.admin.FDs = []int{3} },
	} {
		snap := sampleSnapshot()
		spoil(snap)
		if _, err := readSnapshot(snap.marshal()); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// FuzzReadSnapshot has a state whose checksum is right, and whose content is anything: a session's record
// above all.
func FuzzReadSnapshot(f *testing.F) {
	f.Add(sampleSnapshot().marshal(), []byte(nil))
	f.Add([]byte(nil), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data, session []byte) {
		readSnapshot(data)
		snap := sampleSnapshot()
		readSnapshot(withSession(snap, session))
	})
}

// withSession is the state with another record of a session.
func withSession(snap *snapshot, record []byte) []byte {
	w := state.NewWriter(state.PurposeSnapshot)
	head, _ := json.Marshal(&snap.head)
	w.Record(headKind, head)
	pool, _ := json.Marshal(&snap.pools[0])
	w.Record(poolKind, pool)
	w.Record(sessionKind, record)
	return w.Bytes()
}
