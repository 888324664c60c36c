package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// fakeHost has the address 192.0.2.7, known as box, a directory /link that leads to /real, and no other
// names.
var fakeHost = &network{
	lookup: func(host string) []netip.Addr {
		if host == "box" {
			return []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		}
		return nil
	},
	local:   []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
	resolve: func(path string) string { return strings.Replace(path, "/link/", "/real/", 1) },
}

const oneListener = `[admin]
socket = "/real/admin.sock"
http = "127.0.0.1:9901"
[listeners.web]
bind = ["%s"]
pool = "app"
[pools.app]
[[pools.app.backends]]
address = "%s"
`

func TestLoops_EverySpellingOfTheListenerIsFound(t *testing.T) {
	f := func(n *network, bind, backend, want string) {
		t.Helper()
		c, faults := parse([]byte(fmt.Sprintf(oneListener, bind, backend)), false)
		d := decoder{at: map[string]int{}, faulty: map[string]bool{}}
		if n != textual && len(faults) == 0 {
			d.checkLoops(c, n)
			faults = d.faults
		}
		var got string
		if len(faults) > 0 {
			got = faults[0].Message
		}
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("a backend %s of the listener %s: got %q; want %q", backend, bind, got, want)
		}
	}
	const circle = "is the listener \"web\" itself: connections would go in a circle"
	for _, bind := range []string{":80", "0.0.0.0:80", "[::]:80", "127.0.0.1:80", "localhost:80"} {
		f(textual, bind, "127.0.0.1:80", circle)
		f(textual, bind, "localhost:80", circle)
		f(textual, bind, "LOCALHOST.:80", circle)
		f(textual, bind, "[::ffff:127.0.0.1]:80", circle)
		f(textual, bind, "0.0.0.0:80", circle)
		f(textual, bind, "127.0.0.1:81", "")
		f(textual, bind, "192.0.2.8:80", "")
		f(fakeHost, bind, "192.0.2.8:80", "")
		f(fakeHost, bind, "elsewhere:80", "")
	}
	for _, bind := range []string{":80", "[::]:80", "[::1]:80"} {
		f(textual, bind, "[::1]:80", circle)
		f(textual, bind, "[::]:80", circle)
	}
	f(textual, "0.0.0.0:80", "127.9.9.9:80", circle)
	f(textual, "127.0.0.1:80", "127.9.9.9:80", "")
	f(textual, "0.0.0.0:80", "[::1]:80", "")
	for _, bind := range []string{":80", "0.0.0.0:80", "192.0.2.7:80", "box:80"} {
		f(fakeHost, bind, "192.0.2.7:80", circle)
		f(fakeHost, bind, "box:80", circle)
		f(fakeHost, bind, "[::ffff:192.0.2.7]:80", circle)
	}
	f(fakeHost, "[::]:80", "[2001:db8::7]:80", circle)
	f(fakeHost, "127.0.0.1:80", "box:80", "")
	f(textual, "unix:/real/w.sock", "unix:/real/./x/../w.sock", circle)
	f(textual, "unix:/real/w.sock", "unix:/link/w.sock", "")
	f(fakeHost, "unix:/real/w.sock", "unix:/link/w.sock", circle)
	f(textual, "unix:@w", "unix:@w", circle)
	f(textual, "unix:@w", "unix:@w/", "")

	const control = "lb's own control API"
	f(textual, ":80", "unix:/real//admin.sock", control)
	f(fakeHost, ":80", "unix:/link/admin.sock", control)
	f(textual, ":80", "localhost:9901", control)
	f(textual, ":80", "[::1]:9901", "")
}

// chain is a config of listeners of which each one's backend is another; to[i] is the listener that pool i
// leads to, -1 a backend that is none.
func chain(to ...int) string {
	var b strings.Builder
	b.WriteString("[admin]\nsocket = \"\"\nhttp = \"\"\n")
	for i, next := range to {
		address := fmt.Sprintf("localhost:%d", 7000+next)
		if next < 0 {
			address = "unix:/app.sock"
		}
		fmt.Fprintf(&b, "[listeners.l%d]\nbind = [\":%d\"]\npool = \"p%d\"\n[pools.p%d]\n[[pools.p%d.backends]]\naddress = %q\n", i, 7000+i, i, i, i, address)
	}
	return b.String()
}

func TestLoops_ACircleOfListenersIsFoundAndAChainIsNot(t *testing.T) {
	f := func(want int, to ...int) {
		t.Helper()
		_, err := Parse("lb.toml", []byte(chain(to...)))
		got := 0
		if err != nil {
			got = strings.Count(err.Error(), "in a circle")
		}
		if got != want {
			t.Errorf("chain %v: got %d backends refused, %v; want %d", to, got, err, want)
		}
	}
	f(0, -1)
	f(1, 0)
	f(0, 1, -1)
	f(0, 1, 2, 3, -1)
	f(2, 1, 0)
	f(3, 1, 2, 0)
	f(2, 1, 2, 1)     // the first leads into the circle, and is no part of it
	f(3, -1, 2, 3, 1) // beside one that is good
}

func TestLoad_FindsALoopThroughASymbolicLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "lb.toml")
	text := fmt.Sprintf(oneListener, "unix:"+dir+"/w.sock", "unix:"+dir+"/link/w.sock")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "lb.toml:9: pools.app.backends[0].address: ") {
		t.Errorf("got %v; want the loop, with its place", err)
	}
}

func TestRefuseLoop_IsTheSameRule(t *testing.T) {
	c, err := Parse("lb.toml", []byte(fmt.Sprintf(oneListener, ":80", "unix:/app.sock")))
	if err != nil {
		t.Fatal(err)
	}
	for address, refused := range map[string]bool{"127.0.0.1:80": true, "127.0.0.1:9901": true, "127.0.0.1:81": false, "unix:/x": false} {
		a, err := backends.ParseAddress(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.RefuseLoop(t.Context(), "app", a); (err != nil) != refused {
			t.Errorf("%s: got %v; want refused %v", address, err, refused)
		}
	}
}

// A config of a megabyte must not hold up a reload.
func TestLoops_AreFoundQuicklyInAnyConfig(t *testing.T) {
	var b strings.Builder
	b.WriteString("[admin]\nsocket = \"\"\nhttp = \"\"\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "[listeners.l%d]\nbind = [\"127.%d.%d.1:80\"]\npool = \"p%d\"\n[pools.p%d]\n[[pools.p%d.backends]]\naddress = \"127.%d.%d.1:80\"\n",
			i, i/200, i%200, i, i, i, (i+1)%2000/200, (i+1)%2000%200)
	}
	start := cpuTime(t)
	_, err := Parse("lb.toml", []byte(b.String()))
	var faults *Error
	if !errors.As(err, &faults) || len(faults.Faults) != 2000 {
		t.Errorf("got %.200v; want 2000 faults, one circle of all", err)
	}
	if took := cpuTime(t) - start; took > 10*time.Second {
		t.Errorf("it took %v of CPU time; want less than 10s", took)
	}
}
