//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hurt is something that is wrong with a config, or with the host for it.
type hurt struct {
	name string
	old  string // a line of goodConfig that is replaced by new; "" is none
	new  string
	more string                         // is added at the end
	host func(t *testing.T, dir string) // runHurts the host
	user bool                           // run as a user without rights
}

// runHurts are things for which lb run does not start. DIR and PORT are as in goodConfig.
var runHurts = []hurt{
	{name: "a backend that is the listener", old: `address = "unix:DIR/w1.sock"`, new: `address = "localhost:PORT"`},
	{name: "a backend that is the control socket", old: `address = "unix:DIR/w1.sock"`, new: `address = "unix:DIR/./admin.sock"`},
	{name: "a backend that is the listener's file by another path", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["unix:DIR/link/w1.sock"]`,
		host: func(t *testing.T, dir string) { must(t, os.Symlink(dir, dir+"/link")) }},
	{name: "one address twice, in two spellings", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["127.0.0.1:PORT", "localhost:PORT"]`},
	{name: "an address that overlaps", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["127.0.0.1:PORT", ":PORT"]`},
	{name: "an address of another host", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["192.0.2.1:PORT"]`},
	{name: "a name that nobody has", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["nobody.invalid:PORT"]`},
	{name: "a socket in no directory", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["unix:DIR/none/web.sock"]`},
	{name: "a socket in the place of a file", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["unix:DIR/lb.toml"]`},
	{name: "a path too long for a socket", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["unix:DIR/` + strings.Repeat("p", 108) + `"]`},
	{name: "a port for root", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["127.0.0.1:81"]`, user: true},
	{name: "a control socket in the place of a file", old: `socket = "DIR/admin.sock"`, new: `socket = "DIR/lb.toml"`},
	{name: "a control socket in no directory", old: `socket = "DIR/admin.sock"`, new: `socket = "DIR/none/deeper/admin.sock"`},
	{name: "a control socket where this user may not write", old: `socket = "DIR/admin.sock"`, new: `socket = "/usr/admin.sock"`, user: true},
	{name: "a group that there is not", old: `http = ""`, new: "http = \"\"\nsocket_group = \"nobody-has-this-one\""},
	{name: "a token that is missing", old: `http = ""`, new: "http = \"127.0.0.1:0\"\ntoken_file = \"DIR/token\""},
	{name: "a token for all to read", old: `http = ""`, new: "http = \"127.0.0.1:0\"\ntoken_file = \"DIR/token\"",
		host: func(t *testing.T, dir string) { writeFile(t, dir, "token", strings.Repeat("x", 40), 0o644) }},
	{name: "a page on an address of another host", old: `http = ""`, new: `http = "192.0.2.1:9901"`},
	{name: "a state file that is a directory", old: `http = ""`, new: "http = \"\"\nstate_file = \"DIR/state\"",
		host: func(t *testing.T, dir string) { must(t, os.Mkdir(dir+"/state", 0o700)) }},
	{name: "a log in no directory", old: `access = "off"`, new: `access = "DIR/none/access.log"`},
	{name: "a log that is a directory", old: `access = "off"`, new: `access = "DIR"`},
	{name: "a log that this user may not write", old: `access = "off"`, new: `access = "/usr/access.log"`, user: true},
	{name: "workers in a directory too long for their sockets", old: `http = ""`, new: "http = \"\"\nrun_dir = \"DIR/" + strings.Repeat("p", 80) + `"`, more: workers},
	{name: "workers' sockets in a file's place", old: `http = ""`, new: "http = \"\"\nrun_dir = \"DIR/lb.toml\"", more: workers},
	{name: "workers' sockets in a directory that others may write to", old: `http = ""`, new: "http = \"\"\nrun_dir = \"DIR/run\"", more: workers,
		host: func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/run", 0o700))
			must(t, os.Chmod(dir+"/run", 0o777))
		}},
	{name: "workers of a user that there is not", more: workers + "user = \"nobody-has-this-name\"\n"},
	{name: "workers of another user without the right", more: workers + "user = \"daemon\"\n", user: true},
}

const workers = "[pools.app.workers]\ncommand = [\"/bin/sleep\", \"60\"]\n"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hurtConfig writes goodConfig with a hurt into a directory of its own, which the user nobody may use, and
// returns its path.
func hurtConfig(t *testing.T, h hurt) (dir, path string) {
	t.Helper()
	dir = tempDir(t)
	must(t, os.Chmod(dir, 0o755))
	text := goodConfig
	if h.old != "" {
		if text = strings.Replace(text, h.old, h.new, 1); text == goodConfig {
			t.Fatalf("cannot find the line %q in the config", h.old)
		}
	}
	_, port, _ := strings.Cut(freePort(t, "127.0.0.1"), ":")
	text = strings.NewReplacer("DIR", dir, "PORT", port).Replace(text + h.more)
	path = writeFile(t, dir, "lb.toml", text, 0o644)
	if h.host != nil {
		h.host(t, dir)
	}
	if h.user {
		must(t, os.Chown(dir, 65534, 65534))
	}
	return dir, path
}

// runHurt runs lb until it ends, for as long as it takes to start, as the hurt's user.
func runHurt(t *testing.T, h hurt, args ...string) (code int, output string) {
	t.Helper()
	cmd := exec.Command(lbBinary(t), args...)
	if h.user {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	kill := time.AfterFunc(3*time.Second, func() { cmd.Process.Signal(syscall.SIGINT) })
	defer kill.Stop()
	cmd.Wait()
	return cmd.ProcessState.ExitCode(), out.String()
}

// contents are the files under a directory, with all that a program can change of them.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintln(&b, path, st.Ino, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim)
		return nil
	}))
	return b.String()
}

func TestCheck_RefusesWhateverRunRefusesAndChangesNothing(t *testing.T) {
	for _, h := range runHurts {
		t.Run(strings.ReplaceAll(h.name, " ", "_"), func(t *testing.T) {
			if h.user && os.Geteuid() != 0 {
				t.Skip("only root can run lb as another user")
			}
			dir, path := hurtConfig(t, h)
			before := contents(t, dir)
			code, said := runHurt(t, h, "check", "--strict", "-f", path)
			if after := contents(t, dir); after != before {
				t.Errorf("lb check: got\n%swhere it was\n%s; want nothing changed", after, before)
			}
			if code != 1 || !strings.Contains(said, path+":") {
				t.Errorf("lb check: got %d, %q; want 1, and the place", code, said)
			}
			if code, said := runHurt(t, h, "run", "-f", path); code != 1 {
				t.Errorf("lb run: got %d, %q; want 1: this hurts nobody", code, said)
			}
		})
	}
}

// What check lets pass, run takes; the table above says nothing if check refuses everything.
func TestCheck_LetsPassWhatRunTakes(t *testing.T) {
	for _, h := range []hurt{
		{name: "nothing wrong"},
		{name: "both families", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["0.0.0.0:PORT", "[::]:PORT"]`},
		{name: "both families, one address", old: `bind = ["127.0.0.1:PORT"]`, new: `bind = ["127.0.0.1:PORT", "[::]:PORT"]`},
		{name: "workers", more: workers},
		{name: "a listener before another", old: `address = "unix:DIR/w1.sock"`, new: `address = "unix:DIR/second.sock"`,
			more: "[listeners.second]\nbind = [\"unix:DIR/second.sock\"]\npool = \"last\"\n[pools.last]\n[[pools.last.backends]]\naddress = \"unix:DIR/x.sock\"\n"},
		{name: "a user without rights", user: true},
	} {
		t.Run(strings.ReplaceAll(h.name, " ", "_"), func(t *testing.T) {
			if h.user && os.Geteuid() != 0 {
				t.Skip("only root can run lb as another user")
			}
			_, path := hurtConfig(t, h)
			if code, said := runHurt(t, h, "check", "-f", path); code != 0 {
				t.Errorf("lb check: got %d, %q; want 0", code, said)
			}
			if code, said := runHurt(t, h, "run", "-f", path); code != 0 {
				t.Errorf("lb run: got %d, %q; want it to serve until it is stopped", code, said)
			}
		})
	}
}
