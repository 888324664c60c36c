package load

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testLimit is how long a test waits for what must come.
const testLimit = 20 * time.Second

// startWorker starts a worker on an address and returns its process.
func startWorker(t *testing.T, address, kind string) *exec.Cmd {
	t.Helper()
	file, err := Socket(address, false)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return startOn(t, file, kind, "LISTEN_FDS=1")
}

// startOn starts a worker that gets a file as descriptor 3, with a variable in its environment that says what
// it is.
func startOn(t *testing.T, file *os.File, kind, variable string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LOAD_TEST_WORKER="+kind, variable)
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mustRun(t *testing.T, p *Plan, target Target) *Result {
	t.Helper()
	if target.Timeout == 0 {
		target.Timeout = testLimit
	}
	r, err := Run(t.Context(), p, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRun_WorkerDoesOneRequestAtATimeAndTellsOfIt(t *testing.T) {
	for _, shape := range []Shape{
		{Rate: 200, Duration: 250 * time.Millisecond},
		{Rate: 200, Conns: 4, Late: 2, LateAt: 100 * time.Millisecond, Duration: 250 * time.Millisecond},
		{Conns: 3, Duration: 100 * time.Millisecond},
		{Conns: 3, NewConn: true, Duration: 100 * time.Millisecond},
	} {
		shape.Law = MustLaw("constant:5ms")
		address := "unix:" + filepath.Join(shortDir(t), "w.sock")
		cmd := startWorker(t, address, "sleep")
		r := mustRun(t, NewPlan(shape, 1), Target{Address: address})
		if len(r.Outcomes) == 0 || shape.Rate > 0 && len(r.Outcomes) != r.Planned {
			t.Errorf("%+v: got %d outcomes of %d planned; want all, and some", shape, len(r.Outcomes), r.Planned)
		}
		for i, o := range r.Outcomes {
			if o.Failure != "" || o.Worker != 7 || o.PID != cmd.Process.Pid {
				t.Fatalf("%+v: got %+v; want an answer of worker 7, process %d", shape, o, cmd.Process.Pid)
			}
			// The worker is twice as slow as it is asked to be.
			if o.End-o.Begin < 10*time.Millisecond || o.Begin < o.Began || o.End > o.Done {
				t.Fatalf("%+v: got %+v; want 10ms of work between beginning and end", shape, o)
			}
			for _, other := range r.Outcomes[:i] {
				if o.Begin < other.End && other.Begin < o.End {
					t.Fatalf("%+v: got %+v and %+v at the same time; want one at a time", shape, o, other)
				}
			}
		}
	}
}

func TestRun_LatencyCountsFromTheIntendedMoment(t *testing.T) {
	address := "unix:" + filepath.Join(shortDir(t), "w.sock")
	startWorker(t, address, "sleep")
	// Two requests of 20ms over one connection, both to begin at once: the second one waits for the first.
	p := &Plan{Shape: Shape{Rate: 1, Conns: 1, Law: MustLaw("constant:10ms")}, Arrivals: []Arrival{
		{At: 0, Service: 10 * time.Millisecond}, {At: 0, Service: 10 * time.Millisecond},
	}}
	r := mustRun(t, p, Target{Address: address})
	if got := r.Outcomes[1].Latency(); got < 40*time.Millisecond {
		t.Errorf("got %v for the second; want its wait in it: at least 40ms", got)
	}
}

func TestRun_WorkerBurnsCPU(t *testing.T) {
	address := "unix:" + filepath.Join(shortDir(t), "w.sock")
	cmd := startWorker(t, address, "burn")
	// The worker is twice as slow as it is asked to be.
	p := &Plan{Shape: Shape{Rate: 1, Conns: 1}, Arrivals: slices.Repeat([]Arrival{{Service: 5 * time.Millisecond}}, 10)}
	mustRun(t, p, Target{Address: address})
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if got := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); got < 100*time.Millisecond {
		t.Errorf("got %v of CPU time; want the 10 service times of 10ms in it", got)
	}
}

func TestRun_FailuresHaveTheirKinds(t *testing.T) {
	dir := shortDir(t)
	f := func(name string, want Failure, serve func(net.Conn)) {
		t.Helper()
		timeout := testLimit // on a busy machine too the answer comes before
		if want == Hung {
			timeout = 300 * time.Millisecond
		}
		address := "unix:" + filepath.Join(dir, name)
		if serve != nil {
			ln, err := net.Listen("unix", filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					go serve(conn)
				}
			}()
		}
		r := mustRun(t, NewPlan(Shape{Rate: 100, Duration: 50 * time.Millisecond}, 1), Target{Address: address, Timeout: timeout})
		if len(r.Outcomes) == 0 || len(r.Outcomes) != r.Planned {
			t.Errorf("%s: got %d outcomes; want %d", name, len(r.Outcomes), r.Planned)
		}
		for _, o := range r.Outcomes {
			if o.Failure != want || o.Worker != -1 {
				t.Errorf("%s: got %+v; want %s", name, o, want)
			}
			if want == Hung && o.Latency() < timeout {
				t.Errorf("%s: got %v; want the whole time-out", name, o.Latency())
			}
		}
	}
	read := func(c net.Conn) { c.Read(make([]byte, 4096)) }
	f("refused", Refused, nil)
	f("closed", Closed, func(c net.Conn) { read(c); c.Close() })
	f("hung", Hung, func(c net.Conn) { io.Copy(io.Discard, c); c.Close() })
	f("status", Status, func(c net.Conn) {
		read(c)
		io.WriteString(c, "HTTP/1.1 503 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		c.Close()
	})
}

func TestRun_EndsWithItsContext(t *testing.T) {
	dir := shortDir(t)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // nobody accepts
	for _, shape := range []Shape{{Rate: 50, Duration: time.Hour}, {Rate: 50, Conns: 2, Duration: time.Hour}, {Conns: 2, Duration: time.Hour}} {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Run(ctx, NewPlan(Shape{Rate: shape.Rate, Conns: shape.Conns, Duration: time.Minute}, 1), Target{Address: "unix:" + ln.Addr().String(), Timeout: time.Hour},
			func(func() time.Duration) { cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%+v: got %v; want that it was canceled", shape, err)
		}
	}
}

func TestResult_SaysThatTheClientWasBehind(t *testing.T) {
	r := &Result{Lag: newHistogram()}
	for range 100 {
		r.Outcomes = append(r.Outcomes, Outcome{Done: 30 * time.Millisecond})
		r.Lag.RecordValue((4 * time.Millisecond).Microseconds())
	}
	if got := r.Behind(); got != "" {
		t.Errorf("got %q with a lag of 4ms; want none", got)
	}
	for range 5 {
		r.Lag.RecordValue((8 * time.Millisecond).Microseconds())
	}
	if got := r.Behind(); !strings.Contains(got, "8ms late") {
		t.Errorf("got %q with a lag of 8ms in 30ms; want it said", got)
	}
	r.Lag = newHistogram()
	r.Full = true
	if got := r.Behind(); !strings.Contains(got, "more requests under way") {
		t.Errorf("got %q; want that there were too many", got)
	}
}

func TestServe_FinishesWhatItHasAtSIGTERM(t *testing.T) {
	path := filepath.Join(shortDir(t), "w.sock")
	cmd := startWorker(t, "unix:"+path, "sleep")
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nService-Time: 50000000\r\n") // the head is not complete yet
	// The worker has it once a request on another connection, which came later, is answered.
	mustRun(t, &Plan{Shape: Shape{Rate: 1}, Arrivals: []Arrival{{Conn: -1}}}, Target{Address: "unix:" + path})
	cmd.Process.Signal(syscall.SIGTERM)
	io.WriteString(conn, "\r\n")
	reply, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(reply), "200 OK") {
		t.Errorf("got %q, %v; want an answer", reply, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v; want a clean end", err)
	}
}
