package daemon

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/eventually"
)

// dialNameServer, if set, is how look-ups reach their name server. TestMain installs it: whatever runs reads
// net.DefaultResolver.
var dialNameServer atomic.Pointer[func(context.Context) error]

func installResolver() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if dial := dialNameServer.Load(); dial != nil {
			return nil, (*dial)(ctx)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
}

// deafNameServer has every look-up of this process wait until release; asked is closed with the first.
func deafNameServer(t *testing.T) (asked <-chan struct{}, release func()) {
	t.Helper()
	begun, end := make(chan struct{}), make(chan struct{})
	var once, ended sync.Once
	dial := func(ctx context.Context) error {
		once.Do(func() { close(begun) })
		select {
		case <-end:
		case <-ctx.Done():
		}
		return errors.New("no answer")
	}
	dialNameServer.Store(&dial)
	t.Cleanup(func() { dialNameServer.Store(nil) })
	return begun, func() { ended.Do(func() { close(end) }) }
}

func TestReload_LookUpOfANameHoldsUpNoOtherChange(t *testing.T) {
	for name, do := range map[string]func(*rig) error{
		"backend of a reload": func(r *rig) error {
			r.configure("name = \"w2\"\naddress = \"unix:DIR/w2.sock\"", "name = \"w2\"\naddress = \"db.example:80\"")
			return second(r.client().Reload(context.Background(), false))
		},
		"backend that is added": func(r *rig) error {
			return second(r.client().AddBackend(context.Background(), "app", api.NewBackend{Name: "w9", Address: "db.example:80"}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			asked, release := deafNameServer(t)
			defer release()
			ended := make(chan error, 1)
			go func() { ended <- do(r) }()
			eventually.Receive(t, "the look-up", asked)
			if _, err := r.client().SetWeight(t.Context(), "app", "w1", 7); err != nil {
				t.Errorf("weight: got %v; want it changed", err)
			}
			select {
			case err := <-ended:
				t.Errorf("ended with %v before its look-up did; the test shows nothing", err)
			default:
			}
			release()
			<-ended
		})
	}
}
