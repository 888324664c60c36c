package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/cli"
	"github.com/273ebdf9/lb/internal/eventually"
	"golang.org/x/sys/unix"
)

// rig is a daemon in this process, with backends that hold what they accept.
type rig struct {
	*daemon
	t    *testing.T
	dir  string
	file string
}

// rigConfig has w1 and w2 in app, b1 in beta, and a split between them. DIR is the folder of its sockets.
const rigConfig = `
[admin]
socket = "DIR/admin.sock"
http = ""
state_file = "DIR/state"
[log]
output = "DIR/log"
[listeners.web]
bind = ["unix:DIR/web.sock"]
pool = "app"
[listeners.both]
bind = ["unix:DIR/both.sock"]
split = { app = 90, beta = 10 }
[pools.app]
[[pools.app.backends]]
name = "w1"
address = "unix:DIR/w1.sock"
[[pools.app.backends]]
name = "w2"
address = "unix:DIR/w2.sock"
[pools.beta]
[[pools.beta.backends]]
name = "b1"
address = "unix:DIR/w1.sock"
`

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, file: filepath.Join(dir, "lb.toml")}
	for _, name := range []string{"w1", "w2", "w3"} {
		l, err := net.Listen("unix", filepath.Join(dir, name+".sock"))
		if err != nil {
			t.Fatal(err)
		}
		var held sync.WaitGroup
		held.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				held.Go(func() {
					defer c.Close()
					c.Read(make([]byte, 1)) // until the other side closes
				})
			}
		})
		t.Cleanup(func() { l.Close(); held.Wait() })
	}
	r.configure()
	r.begin()
	t.Cleanup(func() { r.end() })
	return r
}

// configure writes the config file, with pairs of what to replace in rigConfig.
func (r *rig) configure(replace ...string) {
	r.t.Helper()
	text := rigConfig
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			r.t.Fatalf("the config has no %q", replace[i])
		}
		text = strings.Replace(text, replace[i], replace[i+1], 1)
	}
	if err := os.WriteFile(r.file, []byte(strings.ReplaceAll(text, "DIR", r.dir)), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) begin() {
	r.t.Helper()
	cfg, err := config.Load(r.file)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.daemon, err = newDaemon(r.file, cfg, admin.Frozen{}, nil); err != nil {
		r.t.Fatal(err)
	}
	r.daemon.admin.ServeSelf()
	if err := r.start(cfg); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) end() { r.daemon.stop(canceled(), canceled()) }

// restart is another lb with the same files.
func (r *rig) restart() {
	r.t.Helper()
	r.end()
	r.begin()
}

// lb runs a command line that asks a running lb.
func lb(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Execute(args, &out, &errs, cli.Programs{})
	return code, out.String(), errs.String()
}

// client returns a client of the control API.
func (r *rig) client() *api.Client { return api.NewClient(filepath.Join(r.dir, "admin.sock")) }

// must fails the test on an error, which comes as the last of the values of a Control function.
func (r *rig) must(values ...any) {
	r.t.Helper()
	if err, ok := values[len(values)-1].(error); ok && err != nil {
		r.t.Fatal(err)
	}
}

// shape is what runs: each backend with weight, admin state and limit, and each listener's weights and limit.
func (r *rig) shape() string {
	var parts []string
	for _, p := range r.view.Load().pools {
		for _, b := range p.Backends() {
			parts = append(parts, fmt.Sprintf("%s/%s=%d,%v,%d", p.Name, b.Name, b.Weight(), b.Admin(), b.MaxConns()))
		}
	}
	for _, ln := range r.proxy.Listeners() {
		if s := ln.Split(); s != nil {
			parts = append(parts, fmt.Sprintf("%s=%v,%d", ln.Name, s.Weights(), ln.MaxConns()))
		} else {
			parts = append(parts, fmt.Sprintf("%s=%s,%d", ln.Name, ln.Pool().Name, ln.MaxConns()))
		}
	}
	return strings.Join(parts, " ")
}

func (r *rig) wantShape(when, want string) {
	r.t.Helper()
	if got := r.shape(); got != want {
		r.t.Errorf("%s: got\n%s\nwant\n%s", when, got, want)
	}
}

const rigShape = "app/w1=100,ready,0 app/w2=100,ready,0 beta/b1=100,ready,0 web=app,0 both=map[app:90 beta:10],0"

// changeAll makes a change of every kind, and gives what is true then.
func (r *rig) changeAll() string {
	r.t.Helper()
	c, ctx := r.client(), r.t.Context()
	weight := 30
	r.must(c.SetWeightPercent(ctx, "app", "w1", 50))
	r.must(c.SetAdmin(ctx, "app", "w1", "drain"))
	r.must(c.SetMaxConns(ctx, "app", "w1", 7))
	r.must(c.RemoveBackend(ctx, "app", "w2"))
	r.must(c.AddBackend(ctx, "app", api.NewBackend{Name: "w3", Address: "unix:" + r.dir + "/w3.sock", Weight: &weight}))
	r.must(c.SetSplit(ctx, "both", map[string]int{"beta": 60}))
	r.must(c.SetListenerMaxConns(ctx, "web", 5))
	return "app/w1=50,drain,7 app/w3=30,ready,0 beta/b1=100,ready,0 web=app,5 both=map[app:90 beta:60],0"
}

func TestControl_ChangesAndTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.wantShape("at the start", rigShape)
	r.wantShape("after the changes", r.changeAll())
	c, ctx := r.client(), r.t.Context()
	for name, err := range map[string]error{
		"a pool that is not there":           second(c.SetWeight(ctx, "nix", "w1", 1)),
		"a backend that is not there":        second(c.SetAdmin(ctx, "app", "w9", "drain")),
		"a weight out of range":              second(c.SetWeightPercent(ctx, "app", "w1", 1001)),
		"a state that is none":               second(c.SetAdmin(ctx, "app", "w1", "off")),
		"a negative limit":                   second(c.SetMaxConns(ctx, "app", "w1", -1)),
		"a name that is taken":               second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w3", Address: "unix:@x"})),
		"another w2 beside the config":       second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w2", Address: "unix:@x"})),
		"a weight out of range of a new one": second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w4", Address: "unix:@x", Weight: new(5000)})),
		"a negative limit of a new one":      second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w4", Address: "unix:@x", MaxConns: -5})),
		"a name that is none":                second(c.AddBackend(ctx, "app", api.NewBackend{Name: "a/b", Address: "unix:@x"})),
		"an address that is missing":         second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w4"})),
		"a split out of range":               second(c.SetSplit(ctx, "both", map[string]int{"beta": 1001})),
		"a listener of lb itself":            second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w4", Address: "unix:" + r.dir + "/web.sock"})),
		"an address that is none":            second(c.AddBackend(ctx, "app", api.NewBackend{Name: "w4", Address: "nonsense"})),
		"a split of all zero":                second(c.SetSplit(ctx, "both", map[string]int{"app": 0, "beta": 0})),
		"a split with another pool":          second(c.SetSplit(ctx, "both", map[string]int{"nix": 1})),
		"a listener without a split":         second(c.SetSplit(ctx, "web", map[string]int{"app": 1})),
		"a log level that is none":           second(c.SetLogLevel(ctx, "loud")),
	} {
		var refusal *api.Error
		if !errors.As(err, &refusal) || refusal.Status < 400 || refusal.Status >= 500 {
			t.Errorf("%s: got %v; want a refusal", name, err)
		}
	}
	r.wantShape("after the refusals", "app/w1=50,drain,7 app/w3=30,ready,0 beta/b1=100,ready,0 web=app,5 both=map[app:90 beta:60],0")
}

func second[T any](_ T, err error) error { return err }

func TestState_OutlivesARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	want := r.changeAll()
	r.restart()
	r.wantShape("after a restart", want)
	r.restart()
	r.wantShape("after another one", want)

	// Undone by hand, nothing is left to remember.
	c, ctx := r.client(), r.t.Context()
	r.must(c.SetWeight(ctx, "app", "w1", 100))
	r.must(c.SetAdmin(ctx, "app", "w1", "ready"))
	r.must(c.SetMaxConns(ctx, "app", "w1", 0))
	r.must(c.RemoveBackend(ctx, "app", "w3"))
	r.must(c.AddBackend(ctx, "app", api.NewBackend{Name: "w2", Address: "unix:" + r.dir + "/w2.sock"}))
	r.must(c.SetSplit(ctx, "both", map[string]int{"beta": 10}))
	r.must(c.SetListenerMaxConns(ctx, "web", 0))
	if all := r.memory.all(); !all.Empty() {
		t.Errorf("remembered after all was undone: got %+v; want nothing", all)
	}
	r.restart()
	r.wantShape("after all was undone", rigShape)
}

func TestState_ConfigThatChangedWinsFieldByField(t *testing.T) {
	for _, how := range []string{"restart", "reload"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			r.changeAll()
			// w1's weight and the split's beta change; w1's state and limit, and everything else, do not.
			r.configure("w1.sock\"\n", "w1.sock\"\nweight = 80\n", "beta = 10", "beta = 20")
			if how == "restart" {
				r.restart()
			} else {
				result, err := r.client().Reload(t.Context(), false)
				r.must(err)
				if all := strings.Join(result.Warnings, "\n"); !strings.Contains(all, "pools.app.backends.w1.weight: the config's 80 wins over 50") || !strings.Contains(all, "listeners.both.split.beta: the config's 20 wins over 60") {
					t.Errorf("warnings: got %q; want those of the weight and the split", all)
				}
				if !slices.ContainsFunc(result.Kept, func(s string) bool { return strings.Contains(s, "w1: drain") }) {
					t.Errorf("kept: got %q; want the state of w1", result.Kept)
				}
			}
			r.wantShape("afterwards", "app/w1=80,drain,7 app/w3=30,ready,0 beta/b1=100,ready,0 web=app,5 both=map[app:90 beta:20],0")
		})
	}
}

func TestState_DamagedFileIsSetAside(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.changeAll()
	r.end()
	path := filepath.Join(r.dir, "state")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r.begin()
	r.wantShape("after the file was damaged", rigShape)
	aside, _ := filepath.Glob(path + ".damaged-*")
	if len(aside) != 1 {
		t.Fatalf("set aside: got %q; want one file", aside)
	}
	if kept, err := os.ReadFile(aside[0]); err != nil || string(kept) != string(data) {
		t.Errorf("set aside: got %q, %v; want the damaged file", kept, err)
	}
}

func TestState_ThatCannotBeWrittenIsToldToWhoMadeTheChange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	state := filepath.Join(r.dir, "state")
	os.Remove(state)
	r.must(os.Mkdir(state, 0o700)) // a file cannot take its place
	r.configure("name = \"w2\"", "name = \"w2\"\nweight = 7")
	for _, line := range []string{"weight app/w1 50", "maint app/w1 --wait", "set-limit app/w1 5", "set-limit web 9", "split both app=50",
		"add app w4 unix:/w4", "remove app/w4", "reload"} {
		code, stdout, stderr := lb(t, append(strings.Fields(line), "-s", r.dir+"/admin.sock")...)
		if code != 0 || stdout == "" || !strings.HasPrefix(stderr, "lb: warning: what was changed at run time will not outlive a restart: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("lb %s: got %d, %q, %q; want it done, and a warning", line, code, stdout, stderr)
		}
	}
	if _, stdout, stderr := lb(t, "weight", "app/w1", "51", "--json", "-s", r.dir+"/admin.sock"); !strings.Contains(stdout, `"warnings": [`) || stderr != "" {
		t.Errorf("lb weight --json: got %q, %q; want the warning in the answer", stdout, stderr)
	}
	r.must(os.Remove(state))
	if code, _, stderr := lb(t, "weight", "app/w1", "52", "-s", r.dir+"/admin.sock"); code != 0 || stderr != "" {
		t.Errorf("once it can be written: got %d, %q; want no warning", code, stderr)
	}
}

func TestState_DirectoryInItsPlaceIsAFaultAndStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.end()
	path := filepath.Join(r.dir, "state")
	r.must(os.RemoveAll(path), os.Mkdir(path, 0o700))
	cfg, err := config.Load(r.origin.path)
	r.must(err)
	d, err := newDaemon(r.origin.path, cfg, admin.Frozen{}, nil)
	r.must(err)
	err = d.start(cfg)
	d.stop(canceled(), canceled())
	if err == nil || !strings.Contains(err.Error(), "admin.state_file") || !strings.Contains(err.Error(), path) {
		t.Errorf("start: got %v; want an error that names the key and the path", err)
	}
	if st, err := os.Stat(path); err != nil || !st.IsDir() {
		t.Errorf("the directory afterwards: got %v, %v; want it as it was", st, err)
	}
	r.must(os.Remove(path))
	r.begin()
}

func TestReload_AppliesTheDifferencesOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	app, w1 := r.view.Load().pool("app"), r.view.Load().pool("app").Get("w1")
	r.configure("[pools.app]", "[pools.app]\nbalance = \"roundrobin\"\nmax_conns = 9\n[pools.app.health]\nfall = 7",
		"name = \"w2\"\naddress = \"unix:DIR/w2.sock\"", "name = \"w3\"\naddress = \"unix:DIR/w3.sock\"", "[log]\n", "[log]\nformat = \"json\"\n")
	reload := r.client().Reload
	dry, err := reload(context.Background(), true)
	r.must(err)
	r.wantShape("after a dry run", rigShape)
	result, err := reload(context.Background(), false)
	r.must(err)
	if !slices.Equal(dry.Changes, result.Changes) || len(result.Changes) != 5 {
		t.Errorf("changes: got %q and %q; want the same five", dry.Changes, result.Changes)
	}
	if len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0], "log.format") || !strings.Contains(result.Warnings[0], "needs a restart") {
		t.Errorf("warnings: got %q; want the one that needs a restart", result.Warnings)
	}
	r.wantShape("after the reload", "app/w1=100,ready,9 app/w3=100,ready,9 beta/b1=100,ready,0 web=app,0 both=map[app:90 beta:10],0")
	if now := r.view.Load().pool("app"); now != app || now.Get("w1") != w1 || app.Config().Balance != "roundrobin" {
		t.Errorf("pool and w1: got others, balance %q; want those from before, roundrobin", app.Config().Balance)
	}
	again, err := reload(context.Background(), false)
	r.must(err)
	if len(again.Changes) != 0 || len(again.Warnings) != 1 {
		t.Errorf("a second reload: got %q and %q; want no changes and the same warning", again.Changes, again.Warnings)
	}
}

func TestReload_FailureChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	taken := filepath.Join(r.dir, "w3.sock")
	r.configure("[pools.app]", "[listeners.more]\nbind = [\"unix:DIR/free.sock\", \"unix:DIR/w3.sock\"]\npool = \"app\"\n[pools.app]\nmax_conns = 3", "beta = 10", "beta = 11")
	_, err := r.client().Reload(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("Reload: got %v; want an error with %q", err, taken)
	}
	r.wantShape("after it", rigShape)
	if _, err := os.Stat(filepath.Join(r.dir, "free.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket that was opened first: got %v; want it gone", err)
	}
	r.configure("[pools.app]", "[pools.app]\nnonsense = 1")
	if _, err := r.client().Reload(t.Context(), false); err == nil || !strings.HasPrefix(err.Error(), r.file+":15: pools.app.nonsense: unknown key") {
		t.Errorf("Reload of a bad file: got %v; want its fault and where it is", err)
	}
}

func TestReload_OntoAnAddressOfItsOwnNamesTheListener(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	address := free.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	free.Close()
	r.configure("unix:DIR/web.sock", address)
	r.must(r.Reload(t.Context(), false, "test"))
	for _, bind := range []string{":" + port, "0.0.0.0:" + port, "[::]:" + port} {
		r.configure("unix:DIR/web.sock", bind)
		_, err = r.Reload(t.Context(), false, "test")
		want := fmt.Sprintf("it is listener %q of lb, whose %s it overlaps: take that bind out and reload", "web", address)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("reload from %s to %s: got %v; want %q", address, bind, err, want)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	defer taken.Close()
	r.configure("unix:DIR/web.sock", taken.Addr().String())
	if _, err := r.Reload(t.Context(), false, "test"); err == nil || strings.Contains(err.Error(), "it is listener") {
		t.Errorf("reload to an address of another process: got %v; want no listener of lb named", err)
	}
	if got := r.proxy.Listeners()[1].Addresses(); got[0] != address && r.proxy.Listeners()[0].Addresses()[0] != address {
		t.Errorf("addresses: got %v; want %s still", got, address)
	}
}

func TestChanges_ManyAtOnceAreConsistent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, ctx := r.client(), r.t.Context()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 10 {
				name := fmt.Sprintf("n%d", i)
				r.must(c.AddBackend(ctx, "app", api.NewBackend{Name: name, Address: "unix:" + r.dir + "/w3.sock"}))
				r.must(c.SetWeight(ctx, "app", "w1", i*10+j))
				r.must(c.Reload(ctx, false))
				r.must(c.RemoveBackend(ctx, "app", name))
				r.must(c.Sessions(ctx, api.SessionFilter{}, 10))
				r.admin.Events()
			}
		})
	}
	all.Wait()
	r.must(c.SetWeight(ctx, "app", "w1", 100))
	r.wantShape("after all", rigShape)
}

func TestKill_ClosesWhatTheFilterAdmits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var conns []net.Conn
	for range 20 {
		conn, err := net.Dial("unix", filepath.Join(r.dir, "web.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	on := func(backend string) int {
		_, n := r.listSessions(api.SessionFilter{Pool: "app", Backend: backend}, 5)
		return n
	}
	eventually.True(t, "every session runs", func() bool { return on("w1")+on("w2") == len(conns) })
	n, err := r.Kill(context.Background(), api.SessionFilter{Pool: "app", Backend: "w1"}, 100*time.Millisecond, "test")
	if err != nil || n != 10 || on("w1") != 0 || on("w2") != 10 {
		t.Errorf("Kill of w1: got %d, %v, %d and %d left; want 10, and 0 and 10 left", n, err, on("w1"), on("w2"))
	}
	n, err = r.Kill(canceled(), api.SessionFilter{}, time.Hour, "test")
	if !errors.Is(err, context.Canceled) || n > 1 {
		t.Errorf("Kill that is called off: got %d, %v; want context.Canceled", n, err)
	}
}

func TestStatus_SaysStoppingWhileSessionsFinish(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if code, stdout, _ := lb(t, "status", "-s", r.dir+"/admin.sock"); code != 0 || strings.Contains(stdout, "stopping") {
		t.Errorf("lb status before: got %d, %q; want no stopping", code, stdout)
	}
	c, err := net.Dial("unix", r.dir+"/web.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually.True(t, "the session runs", func() bool { return r.proxy.Sessions() > 0 })
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.daemon.stop(context.Background(), context.Background())
	}()
	eventually.NoError(t, func() error {
		code, stdout, stderr := lb(t, "status", "-s", r.dir+"/admin.sock")
		if code != 0 || !strings.Contains(stdout, ", stopping, up ") {
			return fmt.Errorf("lb status: got %d, %q, %q; want it to say stopping", code, stdout, stderr)
		}
		return nil
	})
	c.Close()
	<-stopped
	r.begin() // for what the rig does at the end
}

func TestTurns_AreSpreadOverTheTime(t *testing.T) {
	due := turns(10, time.Second, func() float64 { return 0.5 })
	if !slices.IsSorted(due) || due[0] != 50*time.Millisecond || due[9] != 950*time.Millisecond {
		t.Errorf("got %v; want 50ms, 150ms, … 950ms", due)
	}
}

// TestShortages_AreEvents has the proxy report what it does when it is short of something, twice each.
func TestShortages_AreEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w1, web := r.view.Load().pool("app").Get("w1"), r.listener("web")
	for range 2 {
		r.proxy.OnShortage(w1, unix.EADDRNOTAVAIL)
		r.proxy.OnShortage(w1, unix.EMFILE)
		r.proxy.OnAcceptError(web, unix.ENFILE)
	}
	r.proxy.OnLimit(7)
	var got []string
	for _, e := range r.admin.Events() {
		if e.Kind == "shortage" {
			got = append(got, e.Level+" "+e.Subject+" "+e.Text)
		}
	}
	want := []string{"error app/w1 .*ip_local_port_range", "error app/w1 .*RLIMIT_NOFILE", "error web .*too many open files", "warn lb .*max_sessions.*7"}
	if len(got) != len(want) {
		t.Fatalf("events: got %q; want one of each kind", got)
	}
	for i := range want {
		if !regexp.MustCompile(want[i]).MatchString(got[i]) {
			t.Errorf("event %d: got %q; want %s", i, got[i], want[i])
		}
	}
}
