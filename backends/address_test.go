package backends_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

func TestParseAddress_EveryForm(t *testing.T) {
	for _, tc := range []struct {
		in            string
		want          backends.Address
		network, dial string
	}{
		{"unix:/run/app.sock", backends.Address{Path: "/run/app.sock"}, "unix", "/run/app.sock"},
		{"unix:@app", backends.Address{Path: "@app"}, "unix", "@app"},
		{"unix:/" + strings.Repeat("a", 106), backends.Address{Path: "/" + strings.Repeat("a", 106)}, "unix", "/" + strings.Repeat("a", 106)},
		{"127.0.0.1:80", backends.Address{Host: "127.0.0.1", Port: 80}, "tcp", "127.0.0.1:80"},
		{"app.example:65535", backends.Address{Host: "app.example", Port: 65535}, "tcp", "app.example:65535"},
		{"[::1]:8080", backends.Address{Host: "::1", Port: 8080}, "tcp", "[::1]:8080"},
		{"[fe80::1%lo]:1", backends.Address{Host: "fe80::1%lo", Port: 1}, "tcp", "[fe80::1%lo]:1"},
		{":0", backends.Address{}, "tcp", ":0"},
	} {
		a, err := backends.ParseAddress(tc.in)
		if err != nil || a != tc.want {
			t.Errorf("ParseAddress(%q): got %+v, %v; want %+v", tc.in, a, err, tc.want)
			continue
		}
		if a.String() != tc.in || a.Network() != tc.network || a.Dial() != tc.dial || a.IsUnix() != (tc.network == "unix") {
			t.Errorf("%q: got %q, %s, %q; want %q, %s, %q", tc.in, a, a.Network(), a.Dial(), tc.in, tc.network, tc.dial)
		}
	}
}

func TestParseAddress_FaultsSayWhatToWrite(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "write host:port",
		"localhost":                         "write host:port",
		"::1:80":                            "write host:port",
		"/run/app.sock":                     "write host:port",
		"host:http":                         `port "http" is not a number`,
		"host:":                             `port "" is not a number`,
		"host:65536":                        "from 0 to 65535",
		"host:-1":                           "is not a number",
		"unix:":                             "no path",
		"unix:@":                            "no path",
		"unix:app.sock":                     "must be absolute",
		"unix:/a\x00b":                      "NUL",
		"unix:/" + strings.Repeat("a", 107): "at most 107 bytes",
	} {
		if a, err := backends.ParseAddress(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAddress(%q): got %+v, %v; want an error with %q", in, a, err, want)
		} else if !strings.Contains(err.Error(), fmt.Sprintf("%q", in)) {
			t.Errorf("ParseAddress(%q): the error does not show it: %v", in, err)
		}
	}
}

func TestAddress_HostNameHasToBeLookedUp(t *testing.T) {
	for in, want := range map[string]bool{"app.example:1": true, "localhost:1": true, "10.0.0.1:1": false, "[::1]:1": false, ":1": false, "unix:/a": false} {
		a, err := backends.ParseAddress(in)
		must(t, err)
		if a.IsHostName() != want {
			t.Errorf("%q: got %v; want %v", in, a.IsHostName(), want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"unix:/a", "unix:@a", "h:1", "[::1]:2", ":0", "[fe80::1%lo]:1", "a:b:c", "[", "unix:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := backends.ParseAddress(s)
		if err != nil {
			return
		}
		if again, err := backends.ParseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q is %+v, whose form %q is %+v, %v", s, a, a.String(), again, err)
		}
		if a.IsUnix() || !a.IsHostName() {
			if _, err := a.Resolve(context.Background()); err != nil {
				t.Errorf("%q: cannot resolve: %v", s, err)
			}
		}
	})
}

// TestResolve_KernelTakesTheAddress connects to real sockets by the raw form.
func TestResolve_KernelTakesTheAddress(t *testing.T) {
	dir, err := os.MkdirTemp("", "lb-address-")
	must(t, err)
	defer os.RemoveAll(dir)
	longest := filepath.Join(dir, strings.Repeat("x", 106-len(dir)))
	for _, tc := range []struct{ network, listen, form string }{
		{"unix", filepath.Join(dir, "s"), "unix:%s"},
		{"unix", longest, "unix:%s"},
		{"unix", fmt.Sprintf("@lb-address-test-%d", os.Getpid()), "unix:%s"},
		{"tcp4", "127.0.0.1:0", "%s"},
		{"tcp6", "[::1]:0", "%s"},
		{"tcp4", "127.0.0.1:0", "[::ffff:127.0.0.1]:%s"},
		{"tcp4", "127.0.0.1:0", "localhost:%s"},
	} {
		ln, err := net.Listen(tc.network, tc.listen)
		if err != nil {
			t.Fatal(err)
		}
		where := ln.Addr().String()
		if strings.HasSuffix(tc.form, ":%s") && tc.network != "unix" {
			_, where, _ = net.SplitHostPort(where)
		}
		form := fmt.Sprintf(tc.form, where)
		a, err := backends.ParseAddress(form)
		must(t, err)
		sa, err := a.Resolve(t.Context())
		must(t, err)
		if err := connectRaw(sa); err != nil {
			t.Errorf("connect to %q: %v", form, err)
		}
		if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
			if got := sa.AddrPort(); got != tcp.AddrPort() {
				t.Errorf("%q: got %v; want %v", form, got, tcp.AddrPort())
			}
		} else if sa.AddrPort().IsValid() {
			t.Errorf("%q: got %v; want no IP address", form, sa.AddrPort())
		}
		ln.Close()
	}
}

func connectRaw(sa *backends.RawSockaddr) error {
	fd, err := unix.Socket(sa.Family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.Any)), uintptr(sa.Len)); errno != 0 {
		return errno
	}
	return nil
}

func TestResolve_FailureKeepsTheLastAnswer(t *testing.T) {
	p := livePool(t, 0, nil)
	b := addBackend(t, p, "b", backends.HealthUp, func(c *backends.BackendConfig) { c.Address = "localhost:80" })
	if b.Sockaddr() != nil {
		t.Fatal("a host name was looked up while it was added")
	}
	must(t, b.Resolve(t.Context()))
	first := b.Sockaddr()
	if first == nil || first.AddrPort().Port() != 80 || !first.AddrPort().Addr().IsLoopback() {
		t.Fatalf("localhost:80: got %v", first)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	gone := addBackend(t, p, "gone", backends.HealthUp, func(c *backends.BackendConfig) { c.Address = "no-such-host.invalid:80" })
	if err := gone.Resolve(ctx); err == nil || !strings.Contains(err.Error(), `"gone"`) {
		t.Errorf("Resolve of a host that is not there: got %v; want an error that names the backend", err)
	} else if dns := (*net.DNSError)(nil); !errors.As(err, &dns) && !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve of a host that is not there: got %v; want it to wrap the resolver's error", err)
	}
	if gone.Sockaddr() != nil || b.Sockaddr() != first {
		t.Error("a failed look-up changed an answer")
	}
}
