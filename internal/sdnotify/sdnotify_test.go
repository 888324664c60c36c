package sdnotify

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/internal/leaktest"
	"github.com/273ebdf9/lb/internal/printable"
)

func TestParse(t *testing.T) {
	f := func(text string, want Message) {
		t.Helper()
		got, err := Parse([]byte(text))
		if err != nil || got != want {
			t.Errorf("Parse(%q): got %+v, %v; want %+v", text, got, err, want)
		}
	}
	f("", Message{})
	f("READY=1", Message{Ready: true})
	f("READY=0\n", Message{})
	f("READY=1\nSTATUS=serving\nWATCHDOG=1\n", Message{Ready: true, Status: "serving", HasStatus: true, Watchdog: true})
	f("STOPPING=1\nERRNO=2", Message{Stopping: true, Errno: 2})
	f("RELOADING=1\nMONOTONIC_USEC=5", Message{Reloading: true, Monotonic: 5 * time.Microsecond})
	f("STOPPING=1\nEXTEND_TIMEOUT_USEC=7000000", Message{Stopping: true, Extend: 7 * time.Second})
	f("WATCHDOG=trigger", Message{Trigger: true})
	f("WATCHDOG_USEC=3000000", Message{WatchdogInterval: 3 * time.Second})
	f("MAINPID=1\nFDSTORE=1\nFDNAME=x\nX_OWN=a=b\nBARRIER=1", Message{Barrier: true})
	f("STATUS=a\x1b[2Jb", Message{Status: `a\x1b[2Jb`, HasStatus: true})
	f("STATUS=\u009b2J\u202eb", Message{Status: `\u009b2J\u202eb`, HasStatus: true})
	f("STATUS="+strings.Repeat("a", 300), Message{Status: strings.Repeat("a", 256), HasStatus: true})
}

func TestParse_RefusesGarbage(t *testing.T) {
	for _, text := range []string{"READY", "=1", "READY=1\nrubbish", "A=\x00", "\xff=1", "ERRNO=x", "WATCHDOG_USEC=-1", "WATCHDOG_USEC=99999999999999999999", "EXTEND_TIMEOUT_USEC=1s"} {
		if m, err := Parse([]byte(text)); !errors.Is(err, ErrGarbage) || m != (Message{}) {
			t.Errorf("Parse(%q): got %+v, %v; want ErrGarbage", text, m, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x\nWATCHDOG_USEC=12\nERRNO=1"))
	f.Add([]byte("STOPPING=1\nEXTEND_TIMEOUT_USEC=9"))
	f.Add([]byte("STATUS=é\nMONOTONIC_USEC=7\nRELOADING=1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(m.Format())
		if err != nil || again != m {
			t.Fatalf("got %+v, %v; want %+v", again, err, m)
		}
		if len(m.Status) > maxStatus || printable.Text(m.Status) != m.Status {
			t.Fatalf("status %q has %d bytes; want at most %d that no terminal obeys", m.Status, len(m.Status), maxStatus)
		}
	})
}

type note struct {
	pid int
	m   Message
}

// receive runs a Receiver whose notes come through the channel.
func receive(t *testing.T) (*Receiver, chan note) {
	t.Helper()
	r, err := Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	notes := make(chan note, 1000)
	r.Notify = func(pid int, m Message) bool { notes <- note{pid, m}; return true }
	run(t, r)
	return r, notes
}

func run(t *testing.T, r *Receiver) {
	done := make(chan struct{})
	go func() { defer close(done); r.Run() }()
	t.Cleanup(func() {
		r.Close()
		<-done
	})
}

func TestReceiver_TakesThePidFromTheKernel(t *testing.T) {
	r, notes := receive(t)
	s := NewSender(r.Path())
	defer s.Close()
	if err := s.send([]byte("READY=1\nMAINPID=1"), nil); err != nil {
		t.Fatal(err)
	}
	if got := <-notes; got.pid != os.Getpid() || !got.m.Ready {
		t.Errorf("got %+v; want READY of pid %d", got, os.Getpid())
	}
}

func TestReceiver_BarrierIsAnsweredAndFDsAreClosed(t *testing.T) {
	r, _ := receive(t)
	s := NewSender(r.Path())
	defer s.Close()
	before := len(leaktest.Files())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for range 20 {
		if err := s.Barrier(ctx); err != nil {
			t.Fatal(err)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	many := make([]int, maxFDs)
	for i := range many {
		many[i] = int(null.Fd())
	}
	if err := s.send([]byte("FDSTORE=1"), unix.UnixRights(many...)); err != nil {
		t.Fatal(err)
	}
	if err := s.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	if got := r.Counts().Closed; got != 21+maxFDs {
		t.Errorf("closed %d descriptors; want %d", got, 21+maxFDs)
	}
	if after := len(leaktest.Files()); after > before+2 { // the sender's own, and null
		t.Errorf("%d descriptors are open; %d were before", after, before)
	}
}

// A hostile sender changes nothing, is counted, and does not keep others out.
func TestReceiver_SurvivesHostileDatagrams(t *testing.T) {
	r, err := Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var known atomic.Uint64
	r.Notify = func(pid int, m Message) bool {
		if m.Status == "friend" {
			known.Add(1)
			return true
		}
		return false
	}
	run(t, r)
	s := NewSender(r.Path())
	defer s.Close()
	send := func(data []byte) {
		t.Helper()
		if err := s.send(data, nil); err != nil {
			t.Fatal(err)
		}
	}
	const n = 20_000
	for range n {
		send([]byte("READY=1"))
	}
	for range 100 {
		send(bytes.Repeat([]byte("STATUS=x\n"), 64<<10/9))
		send([]byte{0, 1, 2, 0xff})
		send([]byte("READY"))
	}
	send([]byte("STATUS=friend"))
	if err := s.Barrier(context.Background()); err != nil {
		t.Fatal(err)
	}
	got := r.Counts()
	want := Counts{Received: n + 302, Unknown: n + 1, Garbage: 200, TooLong: 100, Closed: 1}
	if got.Unknown == n { // the barrier's own message may not be counted yet
		got.Unknown++
	}
	if got != want || known.Load() != 1 {
		t.Errorf("got %+v and %d known; want %+v and 1", got, known.Load(), want)
	}
}

func TestSender_FindsASupervisorThatWasStartedAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	s := NewSender(path)
	defer s.Close()
	if err := s.Send(Message{Ready: true}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a supervisor: got %v; want ErrNotExist", err)
	}
	for range 2 {
		os.Remove(path) // of the one before
		r, err := Listen(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan Message, 1)
		r.Notify = func(_ int, m Message) bool { got <- m; return true }
		done := make(chan struct{})
		go func() { defer close(done); r.Run() }()
		if err := s.Send(Message{Watchdog: true}); err != nil {
			t.Fatal(err)
		}
		if m := <-got; !m.Watchdog {
			t.Errorf("got %+v; want WATCHDOG=1", m)
		}
		r.Close()
		<-done
	}
}

func TestSender_WithoutSocketTellsNobody(t *testing.T) {
	var none *Sender
	for _, s := range []*Sender{none, NewSender("")} {
		if err := errors.Join(s.Send(Message{Ready: true}), s.Barrier(context.Background())); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

func TestFromFile_GoesOnWithTheSocket(t *testing.T) {
	r, err := Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.File()
	if err != nil {
		t.Fatal(err)
	}
	s := NewSender(r.Path())
	defer s.Close()
	if err := s.Send(Message{Ready: true}); err != nil { // waits in the queue
		t.Fatal(err)
	}
	r.Close()
	again, err := FromFile(r.Path(), f)
	if err != nil {
		t.Fatal(err)
	}
	notes := make(chan int, 1)
	again.Notify = func(pid int, m Message) bool { notes <- pid; return true }
	run(t, again)
	if pid := <-notes; pid != os.Getpid() {
		t.Errorf("got pid %d; want %d", pid, os.Getpid())
	}
}

func TestReceiver_PausedReadsNothingAndGoesOnWithItsCounts(t *testing.T) {
	r, err := Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	notes := make(chan Message, 10)
	r.Notify = func(_ int, m Message) bool { notes <- m; return true }
	s := NewSender(r.Path())
	defer s.Close()
	done := make(chan struct{})
	round := func() {
		t.Helper()
		go func() { r.Run(); done <- struct{}{} }()
		if m := <-notes; !m.Watchdog {
			t.Errorf("got %+v; want WATCHDOG=1", m)
		}
		r.Pause()
		<-done
		r.Resume()
	}
	for range 3 {
		if err := s.Send(Message{Watchdog: true}); err != nil { // while nobody reads
			t.Fatal(err)
		}
		if len(notes) != 0 {
			t.Error("it is read, though it is paused")
		}
		round()
	}
	counts := r.Counts()
	if counts.Received != 3 {
		t.Errorf("got %d received; want 3", counts.Received)
	}
	other, err := Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.Restore(Counts{1, 2, 3, 4, 5, 6})
	if got := other.Counts(); got != (Counts{1, 2, 3, 4, 5, 6}) {
		t.Errorf("got %+v; want what was restored", got)
	}
}

// One failed read, of a kernel that is short of memory for example, must not make all workers look silent.
func TestReceiver_GoesOnAfterAnError(t *testing.T) {
	r, err := Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, faults := make(chan bool, 10), make(chan error, 10)
	r.Notify = func(int, Message) bool { got <- true; return true }
	r.Fault = func(err error) { faults <- err }
	run(t, r)
	raw, err := r.current().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	socket := -1
	raw.Control(func(fd uintptr) { // every read fails from here on, as it is no socket
		if socket, err = unix.Dup(int(fd)); err == nil {
			err = unix.Dup3(int(null.Fd()), int(fd), unix.O_CLOEXEC)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	s := NewSender(r.Path())
	defer s.Close()
	if err := s.Send(Message{Ready: true}); err != nil {
		t.Fatal(err)
	}
	if err := eventually.Receive(t, "the fault is told", faults); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("got %v; want ENOTSOCK", err)
	}
	raw.Control(func(fd uintptr) { err = unix.Dup3(socket, int(fd), unix.O_CLOEXEC) })
	unix.Close(socket)
	if err != nil {
		t.Fatal(err)
	}
	eventually.Receive(t, "the message is read", got)
	if c := r.Counts(); c.Failed == 0 || len(faults) != 0 {
		t.Errorf("got %+v and %d more faults; want failures counted, and told once", c, len(faults))
	}
}

func TestReceiver_RebindGoesOnAtTheSamePath(t *testing.T) {
	r, notes := receive(t)
	if err := os.Remove(r.Path()); err != nil {
		t.Fatal(err)
	}
	if err := r.Rebind(nil); err != nil {
		t.Fatal(err)
	}
	s := NewSender(r.Path())
	defer s.Close()
	if err := s.Send(Message{Ready: true}); err != nil {
		t.Fatal(err)
	}
	eventually.Receive(t, "the message comes by the new socket", notes)
	r.Pause()
	if err := errors.Join(os.Remove(r.Path()), r.Rebind(nil)); err != nil {
		t.Fatal(err)
	}
	r.Resume()
}
