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

// sampleLive is a live state with something of everything.
func sampleLive() *live {
	l := &live{head: liveHead{
		Format: liveFormat, Version: "1", Path: "/etc/lb/lb.toml", Config: "x", Lock: -1, Caller: 7,
		SessionPools: []int{0}, SessionBackends: [][2]int{{0, 0}}, Closing: [][2]int{{0, 0}},
	}}
	l.pools = []livePool{{SavedPool: backends.SavedPool{Name: "app", Backends: []backends.SavedBackend{{Name: "w1"}}}}}
	l.fleets = []liveFleet{{Pool: "app", State: []byte(`{}`), Files: map[string]int{"app/notify": 9}}}
	l.frozen.Listeners = []proxy.SavedListener{{Name: "web", Sockets: []proxy.SavedSocket{{FD: 5}}}}
	l.frozen.Sessions = []proxy.SavedSession{{
		ID: 3, Loop: 1, Phase: 4, HalfOpen: true, Forwarded: true, Counted: true, LastFrom: 1, Retries: 2, Place: -1, Tried: []int{0}, Forbidden: []int{0},
		Client: netip.MustParseAddrPort("192.0.2.1:80"), Peer: netip.MustParseAddrPort("[2001:db8::1]:81"), TLVs: []byte{1, 2},
		Ends:       [2]proxy.SavedEnd{{FD: 11, Flags: 3}, {FD: 12}},
		Directions: [2]proxy.SavedDirection{{Buffered: []byte("held"), Bytes: 1 << 40}, {Buffered: []byte{}, Piped: 100, PipeR: 13, PipeW: 14, PipeSize: 65536}},
		Start:      time.Second, Expires: time.Hour, Queued: -1,
	}}
	return l
}

func TestLive_ComesBackAsItWas(t *testing.T) {
	want := sampleLive()
	got, err := readLive(want.marshal())
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

func TestLive_DamageIsAnError(t *testing.T) {
	data := sampleLive().marshal()
	for n := range data {
		if _, err := readLive(data[:n]); err == nil {
			t.Errorf("the first %d of %d bytes: got no error", n, len(data))
		}
		for bit := range 8 {
			flipped := slices.Clone(data)
			flipped[n] ^= 1 << bit
			if _, err := readLive(flipped); err == nil {
				t.Errorf("bit %d of byte %d flipped: got no error", bit, n)
			}
		}
	}
}

func TestLive_NumbersThatLeadNowhereAreAnError(t *testing.T) {
	for name, spoil := range map[string]func(*live){
		"pool":          func(l *live) { l.head.SessionPools[0] = 1 },
		"negative pool": func(l *live) { l.head.SessionPools[0] = -1 },
		"backend":       func(l *live) { l.head.SessionBackends[0][1] = 1 },
		"its pool":      func(l *live) { l.head.SessionBackends[0][0] = 1 },
		"to be closed":  func(l *live) { l.head.Closing[0][1] = 1 },
		"format":        func(l *live) { l.head.Format++ },
		"sockets":       func(l *live) { l.admin.FDs = []int{3} },
	} {
		l := sampleLive()
		spoil(l)
		if _, err := readLive(l.marshal()); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// FuzzReadLive has a state whose checksum is right, and whose content is anything: a session's record above
// all.
func FuzzReadLive(f *testing.F) {
	f.Add(sampleLive().marshal(), []byte(nil))
	f.Add([]byte(nil), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data, session []byte) {
		readLive(data)
		l := sampleLive()
		readLive(withSession(l, session))
	})
}

// withSession is the state with another record of a session.
func withSession(l *live, record []byte) []byte {
	w := state.NewWriter(state.PurposeLive)
	head, _ := json.Marshal(&l.head)
	w.Record(liveHeadKind, head)
	pool, _ := json.Marshal(&l.pools[0])
	w.Record(livePoolKind, pool)
	w.Record(liveSessionKind, record)
	return w.Bytes()
}
