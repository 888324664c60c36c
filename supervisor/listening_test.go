package supervisor

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// The process of the test is the worker that is looked at.
func TestListens_FindsEveryKindOfSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	want := []string{"unix:" + path}
	for _, a := range []struct{ network, address, shown string }{
		{"tcp4", "127.0.0.1:0", "127.0.0.1"}, {"tcp4", "0.0.0.0:0", "*"}, {"tcp6", "[::1]:0", "[::1]"}, {"tcp", "[::]:0", "*"}, {"unix", path, ""},
	} {
		l, err := net.Listen(a.network, a.address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if a.shown != "" {
			want = append(want, a.shown+":"+strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
		}
	}
	all, looked := Listens(os.Getpid())
	if !looked {
		t.Fatal("got no look at this process; want one")
	}
	var got []string
	for _, l := range all {
		if l.PID != os.Getpid() {
			t.Errorf("got pid %d for %s; want %d", l.PID, l.Address, os.Getpid())
		}
		got = append(got, l.Address)
	}
	for _, address := range want {
		if !slices.Contains(got, address) {
			t.Errorf("got %q; want %q among them", got, address)
		}
	}
}
