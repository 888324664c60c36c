package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// served is a server that serves, and can be frozen by the test.
type served struct {
	*Server
	t     *testing.T
	ended chan error
}

func serveUntilFrozen(t *testing.T, s *Server) *served {
	t.Helper()
	x := &served{s, t, make(chan error, 1)}
	go func() { x.ended <- s.Serve() }()
	t.Cleanup(func() { s.Close(canceledContext()) })
	return x
}

func canceledContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// freeze freezes the server, which must have returned from Serve then.
func (x *served) freeze(patience time.Duration) *Frozen {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f, err := x.Freeze(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(f.Close)
	select {
	case err := <-x.ended:
		if err != nil {
			x.t.Errorf("Serve: got %v; want nil after Freeze", err)
		}
	case <-time.After(5 * time.Second):
		x.t.Error("Serve: still runs after Freeze; want it returned")
	}
	return f
}

// overExec gives a Frozen as another process reads it.
func overExec(t *testing.T, f *Frozen) Frozen {
	t.Helper()
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var g Frozen
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	for i := range g.Sockets {
		g.Sockets[i].File = f.Sockets[i].File
	}
	return g
}

// wantHealthz reads the answer to a GET /healthz that was sent on c.
func wantHealthz(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("%s: got %v; want an answer", what, err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: got %s; want 200", what, resp.Status)
	}
}

const getHealthz = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

// knock connects and asks for /healthz, and does not wait for the answer.
func knock(t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, getHealthz); err != nil {
		t.Fatal(err)
	}
	return c
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestFreeze_NewcomersWaitForTheSuccessor(t *testing.T) {
	cfg := Config{Socket: socketPath(t), SocketMode: "0660", HTTP: "127.0.0.1:0"}
	s, err := selfServing(NewServer(cfg, Sources{}))
	if err != nil {
		t.Fatal(err)
	}
	address := s.Addrs()[1].String()
	old := serveUntilFrozen(t, s)
	f := old.freeze(time.Second)
	ino := inode(t, cfg.Socket)
	local, tcp := knock(t, "unix", cfg.Socket), knock(t, "tcp", address)

	cfg.SocketMode = "0600"
	heir, err := selfServing(NewServerFrom(cfg, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	old.letGo()
	serve(t, heir)
	wantHealthz(t, "control socket, queued during the freeze", local)
	wantHealthz(t, "HTTP address, queued during the freeze", tcp)
	heir.Settle()
	wantHealthz(t, "control socket, after Settle", knock(t, "unix", cfg.Socket))
	wantHealthz(t, "HTTP address, after Settle", knock(t, "tcp", address))
	if got := inode(t, cfg.Socket); got != ino {
		t.Errorf("file of the control socket: got another one; want the same")
	}
	if info, _ := os.Lstat(cfg.Socket); info.Mode().Perm() != 0o600 {
		t.Errorf("mode: got %v; want the 0600 of the new config", info.Mode().Perm())
	}
	if err := f.Sockets[0].File.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("given file after Settle: got %v; want it closed", err)
	}
	if err := heir.Close(t.Context()); err != nil {
		t.Errorf("Close: got %v; want nil", err)
	}
	if _, err := os.Lstat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file of the control socket after Close: got %v; want none", err)
	}
}

// letGo closes the listening sockets, as exec does: their files stay.
func (x *served) letGo() {
	for _, e := range x.ends {
		if c, ok := e.listener.inner().(*controlSocket); ok {
			c.dev, c.ino = 0, 0
		}
	}
	x.closeListeners()
}

func TestFreeze_RequestsUnderWayFinishAndTheOthersEnd(t *testing.T) {
	s, socket, address := newServer(t, Sources{}, true)
	entered, leave := make(chan struct{}), make(chan struct{})
	slow := s.reply(func(*http.Request) (any, error) {
		close(entered)
		<-leave
		return api.Status{}, nil
	})
	s.ends[0].server.Handler = s.mux([]route{{method: "GET", path: "/v1/status", handler: slow}, {method: "GET", path: "/v1/events", handler: s.serveEvents}})
	x := serveUntilFrozen(t, s)
	c := api.NewClient(socket)
	answered := make(chan error, 1)
	go func() {
		_, err := c.Status(context.Background())
		answered <- err
	}()
	<-entered
	silent, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	idle := knock(t, "tcp", address) // accepted after the silent one
	wantHealthz(t, "a connection that is idle then", idle)
	following, ended := make(chan struct{}), make(chan error, 1)
	s.Publish(api.Event{})
	go func() {
		ended <- c.Events(context.Background(), api.EventQuery{Follow: true}, func(api.Event) error { close(following); return nil })
	}()
	<-following

	frozen := make(chan *Frozen, 1)
	go func() { frozen <- x.freeze(time.Minute) }()
	if err := <-ended; !errors.Is(err, api.ErrStreamEnded) {
		t.Errorf("follower: got %v; want the stream ended, though a request is under way", err)
	}
	for what, conn := range map[string]net.Conn{"idle connection": idle, "silent connection": silent} {
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v; want it closed, though a request is under way", what, err)
		}
	}
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("request under way: got %v; want its answer", err)
	}
	if f := <-frozen; f.Cut != 0 || f.Running != 0 {
		t.Errorf("frozen: got %d cut, %d running; want none", f.Cut, f.Running)
	}
	wantNobodyServing(t)
}

// wantNobodyServing fails if a goroutine of package http serves.
func wantNobodyServing(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); ; runtime.Gosched() {
		// the last of them may be on its way out
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !strings.Contains(string(stacks), "net/http.(*conn).serve") && !strings.Contains(string(stacks), "net/http.(*Server).Serve") {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("goroutines: got some that serve; want none:\n%s", stacks)
			return
		}
	}
}

func TestFreeze_CutsRequestsAtItsDeadline(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	entered := make(chan struct{})
	s.ends[0].server.Handler = s.mux([]route{{method: "GET", path: "/v1/status", handler: func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}}})
	x := serveUntilFrozen(t, s)
	answered := make(chan error, 1)
	go func() {
		_, err := api.NewClient(socket).Status(context.Background())
		answered <- err
	}()
	<-entered
	if f := x.freeze(time.Millisecond); f.Cut != 1 || f.Running != 0 {
		t.Errorf("frozen: got %d cut, %d running; want one cut", f.Cut, f.Running)
	}
	if err := <-answered; !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("request under way: got %v; want it cut", err)
	}
}

func TestThaw_ServesThoseWhoWaited(t *testing.T) {
	s, socket, address := newServer(t, Sources{}, true)
	x := serveUntilFrozen(t, s)
	for range 2 {
		f := x.freeze(time.Second)
		if err := s.Serve(); err != nil {
			t.Errorf("Serve while frozen: got %v; want nil at once", err)
		}
		if _, err := s.Freeze(t.Context()); err == nil {
			t.Error("second Freeze: got nil; want an error")
		}
		local, tcp := knock(t, "unix", socket), knock(t, "tcp", address)
		f.Close()
		s.Thaw()
		go func() { x.ended <- s.Serve() }()
		wantHealthz(t, "control socket, queued during the freeze", local)
		wantHealthz(t, "HTTP address, queued during the freeze", tcp)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("Close: got %v; want nil", err)
	}
	if err := <-x.ended; err != nil {
		t.Errorf("Serve: got %v; want nil after Close", err)
	}
	if _, err := s.Freeze(t.Context()); err == nil {
		t.Error("Freeze of a closed server: got nil; want an error")
	}
}

func TestFreeze_BeforeServeKeepsItFromServing(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	f, err := s.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Serve(); err != nil {
		t.Errorf("Serve: got %v; want nil at once", err)
	}
	waiting := knock(t, "unix", socket)
	s.Thaw()
	serve(t, s)
	wantHealthz(t, "the one that waited", waiting)
}

func TestNewServerFrom_GoesOnWithWhatWasCounted(t *testing.T) {
	fake := newFakeLB(t)
	cfg := Config{Socket: socketPath(t), SocketMode: "0660"}
	src := fake.sources()
	src.Workers = func(pool string) *api.WorkersStatus { return &api.WorkersStatus{Slots: make([]api.SlotStatus, 2)} }
	s, err := selfServing(NewServer(cfg, src))
	if err != nil {
		t.Fatal(err)
	}
	s.refused.count(refusedHost)
	for range eventLogSize + 3 {
		s.Publish(api.Event{Kind: "weight"})
	}
	for i := range lineLogSize + 3 {
		s.PublishLine("app", api.WorkerLine{Slot: i % 2, Text: fmt.Sprint(i)})
	}
	f, err := s.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	heir, err := selfServing(NewServerFrom(cfg, src, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	heir.Settle()
	serve(t, heir)
	s.closeListeners()
	if got := heir.refused[refusedHost].Load(); got != 1 {
		t.Errorf("refusals: got %d; want 1", got)
	}
	if e := heir.Publish(api.Event{}); e.ID != eventLogSize+4 {
		t.Errorf("next event: got ID %d; want %d", e.ID, eventLogSize+4)
	}
	heir.PublishLine("app", api.WorkerLine{Slot: 0, Text: "new"})
	var lines []string
	missed := uint64(0)
	l := heir.lineRing("app")
	for n, wake := uint64(0), (<-chan struct{})(nil); wake == nil; {
		var got []api.WorkerLine
		var m uint64
		got, n, m, wake = l.after(n, eventBatch)
		missed += m
		for _, x := range got {
			lines = append(lines, x.Text)
		}
	}
	if len(lines) != lineLogSize || lines[0] != "4" || lines[lineLogSize-2] != fmt.Sprint(lineLogSize+2) || lines[lineLogSize-1] != "new" || missed != 4 {
		t.Errorf("lines: got %d from %q to %q, %d missed; want the last %d and the new one", len(lines), lines[0], lines[len(lines)-1], missed, lineLogSize-1)
	}
}

func TestNewServerFrom_RatesGoOn(t *testing.T) {
	p := newPool(t, "app", "w1")
	src := Sources{Pools: func() []*backends.Pool { return []*backends.Pool{p} }}
	r := new(rates)
	p.Get("w1").Counters.Connections.Store(100)
	r.reference(&src)
	saved := r.save()
	// that long ago, and without the monotonic clock
	saved[0].Time = saved[0].Time.Round(0).Add(-2 * time.Second)
	next := new(rates)
	next.restore(append([]SavedConnectionCount{{Time: time.Now().Add(time.Hour)}}, saved...))
	p.Get("w1").Counters.Connections.Store(120)
	st := api.BackendStatus{Connections: 120}
	next.ofBackend(&src, p.Get("w1"), &st)
	if st.Rate == nil || *st.Rate < 5 || *st.Rate > 10 {
		t.Errorf("rate: got %v; want 20 in 2 s", st.Rate)
	}
}

func TestNewServerFrom_ReadsWhatOthersWrote(t *testing.T) {
	var f Frozen
	const text = `{"state": {"refused": {"host": 7, "of_tomorrow": 1}, "events": [{"id": 3, "colour": "red"}],
		"lines": {"app": {"lines": [{"text": "x"}]}}, "of_tomorrow": {}}, "more": 1}`
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatal(err)
	}
	s, err := selfServing(NewServerFrom(Config{Socket: socketPath(t), SocketMode: "0660"}, Sources{}, f))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	if got := s.refused[refusedHost].Load(); got != 7 {
		t.Errorf("refusals: got %d; want 7", got)
	}
	if e := s.Publish(api.Event{}); e.ID != 4 {
		t.Errorf("next event: got ID %d; want 4", e.ID)
	}
}

func TestNewServerFrom_FailureGivesEverythingBack(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s, socket, address := newServer(t, Sources{}, true)
	x := serveUntilFrozen(t, s)
	f := x.freeze(time.Second)
	ino := inode(t, socket)
	if _, err := selfServing(NewServerFrom(Config{Socket: socket, SocketMode: "0660", HTTP: taken.Addr().String()}, Sources{}, overExec(t, f))); err == nil {
		t.Fatal("NewServerFrom on a taken port: got nil; want an error")
	}
	other := socketPath(t)
	heir, err := selfServing(NewServerFrom(Config{Socket: other, SocketMode: "0660", HTTP: "127.0.0.1:0"}, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	heir.Abandon()
	if _, err := os.Lstat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file of the abandoned server's own socket: got %v; want none", err)
	}
	heir, err = selfServing(NewServerFrom(Config{Socket: socket, SocketMode: "0660", HTTP: "127.0.0.1:0"}, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	heir.Abandon()
	if got := inode(t, socket); got != ino {
		t.Error("file of the control socket: got another one; want it untouched")
	}
	// The files are enough to go on: it is what the old binary has after an exec back.
	x.letGo()
	back, err := selfServing(NewServerFrom(Config{Socket: socket, SocketMode: "0660", HTTP: "127.0.0.1:0"}, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, back)
	wantHealthz(t, "control socket", knock(t, "unix", socket))
	wantHealthz(t, "HTTP address", knock(t, "tcp", address))
}

func TestNewServerFrom_UnwantedSocketGoesAtSettle(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	f, err := s.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(filepath.Dir(socket), "other.sock")
	heir, err := selfServing(NewServerFrom(Config{Socket: other, SocketMode: "0660"}, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, heir)
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("unwanted socket before Settle: got %v; want it there", err)
	}
	heir.Settle()
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unwanted socket after Settle: got %v; want none", err)
	}
	wantHealthz(t, "the other socket", knock(t, "unix", other))
	s.Close(t.Context())
}

func TestNewServerFrom_SocketFileOfAnotherIsLeftAlone(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	f, err := s.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if err := os.Rename(socket, socket+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, []byte("precious"), 0o640); err != nil {
		t.Fatal(err)
	}
	heir, err := selfServing(NewServerFrom(Config{Socket: socket, SocketMode: "0666"}, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	heir.Settle()
	heir.Close(t.Context())
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("file of another: got %v, %v; want it there with its mode", info, err)
	}
}

func TestNewServerFrom_SocketWithoutFileIsOpenedAnew(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	f, err := s.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	heir, err := selfServing(NewServerFrom(Config{Socket: socket, SocketMode: "0660"}, Sources{}, overExec(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, heir)
	heir.Settle()
	wantHealthz(t, "control socket", knock(t, "unix", socket))
}
