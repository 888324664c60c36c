package proxy_test

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/proxy"
)

// onUnix is a rig whose listener has a socket file, and the path of that.
func onUnix(t *testing.T) (r *rig, bind, path string) {
	t.Helper()
	bind = bindAddress(t, unixSocket)
	r = newRig(t, func(s *setup) { s.listener.Bind = []string{bind} }, serve(t, unixSocket, echo).address)
	return r, bind, strings.TrimPrefix(bind, "unix:")
}

// successor listens at path in lb's place.
func successor(t *testing.T, path string) net.Listener {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestSocketFile_OfASuccessorStaysWhenTheListenerCloses(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"removed", "handed over, and removed"} {
		r, _, path := onUnix(t)
		if how != "removed" {
			r.handOver()
		}
		successor(t, path)
		r.become(r.spec("web", "127.0.0.1:0"))
		if c, err := net.Dial("unix", path); err != nil {
			t.Errorf("%s: the successor is not reached: %v", how, err)
		} else {
			c.Close()
		}
	}
}

func TestSocketFile_ThatIsGoneIsMadeAnewByAReload(t *testing.T) {
	t.Parallel()
	for _, moves := range []bool{false, true} {
		r, bind, path := onUnix(t)
		queued := dial(t, bind)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		name := "web"
		if moves {
			name = "another"
		}
		r.become(r.spec(name, bind))
		wantServed(t, bind)
		talk(t, queued)
		queued.Close()
		r.become(r.spec(name, "127.0.0.1:0"))
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the new file after its listener has closed: got %v; want none", err)
		}
	}
}

func TestSocketFile_ThatIsAnothersIsToldByAReload(t *testing.T) {
	t.Parallel()
	r, bind, path := onUnix(t)
	successor(t, path)
	_, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("web", bind)}, nil)
	if err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("reload: got %v; want that another process listens there", err)
	}
}
