package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/273ebdf9/lb/internal/eventually"
)

// freeze freezes the stage's pool.
func (s *stage) freeze() (json.RawMessage, map[string]*os.File) {
	s.t.Helper()
	state, files, err := s.pool.Freeze()
	if err != nil {
		s.t.Fatal(err)
	}
	return state, files
}

// exec is what an exec leaves of a frozen pool: its state and its files, in another one. Its Start is the
// caller's.
func (s *stage) exec(cfg Config, state json.RawMessage, files map[string]*os.File) *Pool {
	s.t.Helper()
	s.pool.thaw <- false
	<-s.pool.ended
	s.pool.finish()
	s.pool.home.Load().Close()
	p, err := NewPool("app", cfg, s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	p.trial, p.every = s.pool.trial, s.pool.every
	if err := p.TakeOver(state, files); err != nil {
		s.t.Fatal(err)
	}
	p.Hooks.Output, p.Hooks.Beat = s.pool.Hooks.Output, s.pool.Hooks.Beat
	s.pool = p
	return p
}

// begin starts what exec made, and closes the files.
func (s *stage) begin(files map[string]*os.File) {
	s.t.Helper()
	if err := s.pool.Start(); err != nil {
		s.t.Fatal(err)
	}
	closeFiles(files)
}

func (s *stage) texts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, l := range s.lines {
		all = append(all, l.Text)
	}
	return all
}

// untilSaid waits until the last line is text.
func (s *stage) untilSaid(text string) {
	s.t.Helper()
	eventually.NoError(s.t, func() error {
		if all := s.texts(); len(all) == 0 || all[len(all)-1] != text {
			return fmt.Errorf("got lines %q; want %q at their end", all, text)
		}
		return nil
	})
}

// same is the status with what may differ between two looks left out.
func same(st *Status) Status {
	c := *st
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	var plain Status // times lose their monotonic clock
	if err := json.Unmarshal(text, &plain); err != nil {
		panic(err)
	}
	round := func(w *WorkerStatus) {
		for _, at := range []*time.Time{&w.Since, &w.Started, &w.UpSince, &w.Due} {
			*at = at.Round(100 * time.Millisecond)
		}
	}
	for i := range plain.Slots {
		round(&plain.Slots[i].WorkerStatus)
	}
	for i := range plain.Retired {
		round(&plain.Retired[i])
	}
	return plain
}

func TestFreeze_AnExecChangesNothing(t *testing.T) {
	cfg := workerConfig("notify")
	cfg.Ready, cfg.Count = "notify", 4
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	ctx := background(t, 10*time.Second)
	if err := errors.Join(s.pool.StopSlot(ctx, 3), s.pool.Restart(ctx, RestartOptions{Slot: 1, Surge: 1})); err != nil {
		t.Fatal(err)
	}
	crashed := s.pool.Status().Slots[2].PID
	syscall.Kill(crashed, syscall.SIGKILL)
	s.until("crashed once", func(st *Status) bool {
		return st.Slots[2].PID != crashed && st.Slots[2].State == "up" && len(st.Retired) == 0
	})
	before := s.pool.Status()
	get(t, before.Slots[0].Backend, "/print?text=one")
	get(t, before.Slots[0].Backend, "/write?text=the+middle+")
	s.untilSaid("one")
	get(t, before.Slots[1].Backend, "/print?text=two")
	s.untilSaid("two")
	fds := len(openFDs("self"))
	counters := s.pool.Counters()

	state, files := s.freeze()
	get(t, before.Slots[0].Backend, "/print?text=of+a+line") // a worker needs no lb to serve
	get(t, before.Slots[0].Backend, "/print?text=three")
	get(t, before.Slots[0].Backend, "/beat?text=told+while+frozen")
	p := s.exec(cfg, state, files)
	type told struct {
		b Backend
		s Standing
	}
	var resumed []told
	p.Hooks.Resumed = func(b Backend, s Standing) { resumed = append(resumed, told{b, s}) }
	var calm atomic.Bool // nothing is to happen to a worker yet
	calm.Store(true)
	never := func(Backend, string) {
		if calm.Load() {
			t.Error("a hook was called for a worker that nothing happened to")
		}
	}
	p.Hooks.Added = func(b Backend) { never(b, "") }
	p.Hooks.Starting, p.Hooks.Ready, p.Hooks.Offline, p.Hooks.Removed = never, never, never, never
	p.Hooks.Changed = func(c Change) {
		if calm.Load() {
			t.Errorf("got change %+v", c)
		}
	}
	files["app/of another version"], _ = os.Open(os.DevNull)
	beats := make(chan Backend, 10)
	p.Hooks.Beat = func(b Backend) { beats <- b }
	s.begin(files)
	after := p.Status()
	if want := same(before); !reflect.DeepEqual(same(after), want) {
		t.Errorf("got\n%+v; want\n%+v", same(after), want)
	}
	want := []told{{before.Slots[0].Backend, Serving}, {before.Slots[1].Backend, Serving}, {before.Slots[2].Backend, Serving}}
	for _, w := range want {
		if !slices.Contains(resumed, w) {
			t.Errorf("got resumed %v; want %v", resumed, w)
		}
	}
	if len(resumed) != len(want) {
		t.Errorf("got %d resumed; want each once", len(resumed))
	}
	if b := <-beats; b != before.Slots[0].Backend {
		t.Errorf("got a beat of %v; want of %v", b, before.Slots[0].Backend)
	}
	s.until("the status that it told", func(st *Status) bool { return st.Slots[0].Text == "told while frozen" })
	s.untilSaid("three")
	if got := s.texts(); !slices.Equal(got, []string{"one", "two", "the middle of a line", "three"}) {
		t.Errorf("got lines %q; want each once and whole", got)
	}
	now := p.Counters()
	if now.Lines != counters.Lines+2 || now.Notify.Received != counters.Notify.Received+1 || now.Notify.Unknown != counters.Notify.Unknown {
		t.Errorf("got counters %+v; want them on from %+v", now, counters)
	}
	wantFDs(t, fds)

	calm.Store(false)
	// Who ends now is a child whose exit status is known, and the second death in a row is not the first.
	pid := after.Slots[2].PID
	syscall.Kill(pid, syscall.SIGKILL)
	s.until("a back-off", func(st *Status) bool { return st.Slots[2].State == "waiting" })
	slot := p.Status().Slots[2]
	if wait := slot.Due.Sub(slot.Since); slot.Deaths != 2 || wait < 800*time.Millisecond || wait > 1200*time.Millisecond {
		t.Errorf("got %d deaths, and a wait of %v; want 2 and a second", slot.Deaths, wait)
	}
	if slot.Last.Reason != "signal: killed" || slot.Last.PID != pid {
		t.Errorf("got %+v; want how %d ended", slot.Last, pid)
	}
	if err := p.Rollback(ctx, DefaultRestartOptions()); !errors.Is(err, ErrNoPrevious) {
		t.Errorf("got %v; want ErrNoPrevious, as before", err)
	}
}

func TestFreeze_DeathMeanwhileIsSeen(t *testing.T) {
	t.Parallel()
	f := func(exec bool) {
		t.Helper()
		cfg := workerConfig()
		s := start(t, open(t), cfg)
		s.until("ready", allUp)
		state, files := s.freeze()
		w := s.pool.Status().Slots[1]
		get(t, w.Backend, "/print?text=last+words")
		syscall.Kill(w.PID, syscall.SIGKILL)
		for deadline := time.Now().Add(5 * time.Second); !strings.Contains(readProc(t, w.PID, "stat"), ") Z "); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it did not die, or somebody took its exit status")
			}
		}
		if exec {
			s.exec(cfg, state, files)
			s.begin(files)
		} else {
			s.pool.Thaw()
			closeFiles(files)
		}
		s.until("replaced", func(st *Status) bool { return allUp(st) && st.Slots[1].PID != w.PID })
		slot := s.pool.Status().Slots[1]
		if slot.Deaths != 1 || slot.Last.PID != w.PID || slot.Last.Reason != "signal: killed" || !slices.Equal(slot.Last.Lines, []string{"last words"}) {
			t.Errorf("got %d deaths, and last %+v; want one, killed", slot.Deaths, slot.Last)
		}
		if slot.Backend != w.Backend {
			t.Errorf("got backend %v; want the same address, %v", slot.Backend, w.Backend)
		}
		s.stop()
	}
	f(true)
	f(false)
}

func TestThaw_TheSamePoolGoesOn(t *testing.T) {
	cfg := workerConfig("notify")
	s := start(t, open(t), cfg)
	s.until("ready, and their status told", func(st *Status) bool { return allUp(st) && st.Slots[0].Text != "" && st.Slots[1].Text != "" })
	before := s.pool.Status()
	fds := len(openFDs("self"))
	for i := range 5 {
		_, files := s.freeze()
		get(t, before.Slots[0].Backend, fmt.Sprintf("/write?text=%d-", i))
		get(t, before.Slots[1].Backend, "/beat")
		scaled := make(chan error, 1)
		go func() { scaled <- s.pool.Scale(context.Background(), 2) }() // waits, or comes after
		s.pool.Thaw()
		closeFiles(files)
		if err := <-scaled; err != nil {
			t.Error(err)
		}
	}
	get(t, before.Slots[0].Backend, "/print?text=end")
	s.untilSaid("0-1-2-3-4-end")
	s.until("all beats", func(*Status) bool { // two at the start
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.beats >= 7
	})
	if after := s.pool.Status(); same(after).Slots[1].PID != before.Slots[1].PID || !allUp(after) || after.Slots[0].Deaths != 0 {
		t.Errorf("got %+v; want it as before", after)
	}
	if n := s.pool.Counters().Notify; n.Received != 7 || n.Unknown != 0 {
		t.Errorf("got %+v; want 7 messages", n)
	}
	wantFDs(t, fds)
	if err := s.pool.Restart(background(t, 10*time.Second), DefaultRestartOptions()); err != nil {
		t.Error(err)
	}
}

func TestFreeze_IsRefusedWhileARestartIsUnderWay(t *testing.T) {
	t.Parallel()
	s := start(t, open(t), workerConfig())
	s.until("ready", allUp)
	o := DefaultRestartOptions()
	begun := make(chan struct{}, 10)
	o.Progress = func(Progress) { begun <- struct{}{} }
	ended := make(chan error, 1)
	go func() { ended <- s.pool.Restart(background(t, 10*time.Second), o) }()
	<-begun
	_, _, err := s.pool.Freeze()
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "of 2 workers are replaced") {
		t.Errorf("got %v; want ErrBusy, and how far it is", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the restart: %v", err)
	}
	s.stop()
	if _, _, err := s.pool.Freeze(); !errors.Is(err, ErrStopped) {
		t.Errorf("got %v; want ErrStopped", err)
	}
}

func TestFreeze_DrainingGoesOnAndAnotherCommandIsStale(t *testing.T) {
	cfg := workerConfig("notify")
	cfg.Ready, cfg.Count, cfg.StopTimeout = "notify", 1, time.Minute
	s := &stage{t: t, dir: open(t)}
	p, err := NewPool("app", cfg, s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	sessions := map[string]int{}
	count := func(b Backend) int { mu.Lock(); defer mu.Unlock(); return sessions[b.Name] }
	p.Hooks.Sessions = count
	s.pool = p
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	s.until("ready", allUp)
	old := p.Status().Slots[0]
	mu.Lock()
	sessions[old.Backend.Name] = 1
	mu.Unlock()
	if err := p.Restart(background(t, 10*time.Second), DefaultRestartOptions()); err != nil {
		t.Fatal(err)
	}
	s.until("drains", func(st *Status) bool { return len(st.Retired) == 1 && st.Retired[0].State == "draining" })
	state, files := s.freeze()
	cfg.Command = []string{"/bin/sleep", "1000"}
	s.exec(cfg, state, files)
	s.pool.Hooks.Sessions = count
	standing := map[string]Standing{}
	s.pool.Hooks.Resumed = func(b Backend, s Standing) { standing[b.Name] = s }
	s.begin(files)
	if standing[old.Backend.Name] != Leaving {
		t.Errorf("got %v for the one that drains; want Leaving", standing[old.Backend.Name])
	}
	if st := s.pool.Status(); !st.Stale || len(st.Retired) != 1 || st.Retired[0].PID != old.PID || st.Retired[0].State != "draining" {
		t.Errorf("got %+v; want pid %d to drain, and workers of another command", st, old.PID)
	}
	mu.Lock()
	sessions[old.Backend.Name] = 0
	mu.Unlock()
	s.until("drained", func(st *Status) bool { return len(st.Retired) == 0 })
}

func TestFreeze_WorkerThatStartsHasItsTimeLeft(t *testing.T) {
	t.Parallel()
	f := func(ready string) {
		t.Helper()
		cfg := workerConfig()
		cfg.Command = []string{"/bin/sleep", "1000"} // never ready
		cfg.Ready, cfg.Count, cfg.StartTimeout = ready, 1, time.Minute
		s := start(t, open(t), cfg)
		s.until("starts", func(st *Status) bool { return st.Slots[0].PID != 0 })
		pid := s.pool.Status().Slots[0].PID
		state, files := s.freeze()
		var st snapshot
		if err := json.Unmarshal(state, &st); err != nil {
			t.Fatal(err)
		}
		if left := st.Workers[0].Left; left <= 0 || left >= time.Minute || st.Workers[0].State != "starting" {
			t.Errorf("got %v left in %s; want less than a minute in starting", left, st.Workers[0].State)
		}
		st.Workers[0].Left = time.Second // as it is, had it been older
		state, _ = json.Marshal(st)
		s.exec(cfg, state, files)
		s.begin(files)
		if slot := s.pool.Status().Slots[0]; slot.PID != pid || slot.State != "starting" {
			t.Errorf("got %+v; want pid %d to start", slot, pid)
		}
		began := time.Now()
		s.until("late", func(st *Status) bool { return st.Slots[0].Last.PID == pid })
		if d := time.Since(began); d < 500*time.Millisecond {
			t.Errorf("it was late after %v; want a second", d)
		}
		if reason := s.pool.Status().Slots[0].Last; reason.Reason != "signal: terminated; it was not ready after 1m0s (start_timeout)" {
			t.Errorf("got %+v; want it stopped, and its end known", reason)
		}
		s.stop()
	}
	f("notify")
	f("connect")
}

func TestFreeze_BackoffAndQueueGoOn(t *testing.T) {
	t.Parallel()
	cfg := workerConfig("fail")
	cfg.Count = 1
	s := start(t, open(t), cfg)
	s.until("waits", func(st *Status) bool { return st.Slots[0].State == "waiting" && st.Slots[0].Deaths == 3 })
	before := s.pool.Status().Slots[0]
	state, files := s.freeze()
	s.exec(cfg, state, files)
	s.begin(files)
	after := s.pool.Status().Slots[0]
	if after.Deaths != 3 || after.State != "waiting" || after.Last.Reason != "exit status 3" || after.Backend != before.Backend ||
		after.Due.Sub(before.Due).Abs() > 100*time.Millisecond || after.Starts != before.Starts {
		t.Errorf("got\n%+v; want\n%+v", after, before)
	}
	s.until("the next death", func(st *Status) bool { return st.Slots[0].Deaths == 4 })
	if late := time.Since(before.Due); late < -50*time.Millisecond {
		t.Errorf("it was started %v early", -late)
	}
}

func TestFreeze_RecyclingGoesOn(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	cfg.Count, cfg.Recycle.Age, cfg.Recycle.Jitter = 1, time.Millisecond, 0
	s := startWith(t, open(t), cfg, 2*time.Second) // longer than a freeze takes
	s.until("proving", func(st *Status) bool { return st.Slots[0].Next != nil && st.Slots[0].Next.State == "proving" })
	next := s.pool.Status().Slots[0].Next.PID
	cfg.Recycle.Age = time.Hour
	state, files := s.freeze()
	s.exec(cfg, state, files)
	s.begin(files)
	p := s.pool
	if err := p.await(background(t, 5*time.Second), func() error {
		if a := p.recycling; a == nil || a.decided || a.worker != p.slots[0].next || a.worker.attempt != a || a.worker.pid() != next {
			return fmt.Errorf("got recycling %+v; want that of pid %d", a, next)
		}
		return nil
	}, now, nil); err != nil {
		t.Error(err)
	}
	s.until("replaced", func(st *Status) bool {
		return st.Slots[0].PID == next && st.Slots[0].Next == nil && len(st.Retired) == 0
	})
	cfg.Recycle.Age = 0
	if err := s.pool.Restart(background(t, 10*time.Second), DefaultRestartOptions()); err != nil {
		// nothing is in its way
		t.Error(err)
	}
}

func TestTakeOver_FilesThatAreMissingAreDoneWithout(t *testing.T) {
	t.Parallel()
	cfg := workerConfig("notify")
	s := start(t, open(t), cfg)
	s.until("ready, and their status told", func(st *Status) bool { return allUp(st) && st.Slots[0].Text != "" && st.Slots[1].Text != "" })
	before := s.pool.Status()
	state, files := s.freeze()
	closeFiles(files)
	s.exec(cfg, state, nil)
	s.begin(nil)
	if st := s.pool.Status(); !reflect.DeepEqual(same(st), same(before)) {
		t.Errorf("got\n%+v; want\n%+v", same(st), same(before))
	}
	get(t, before.Slots[0].Backend, "/print?text=hello")
	s.untilSaid("hello")
	s.until("a beat", func(st *Status) bool {
		// A child that another test forks just now may hold the notify socket of before, and a beat goes
		// there.
		get(t, before.Slots[0].Backend, "/beat?text=here")
		return st.Slots[0].Text == "here"
	})
}

func TestTakeOver_ChangedCountScales(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	before := s.pool.Status()
	state, files := s.freeze()
	cfg.Count = 3
	s.exec(cfg, state, files)
	s.begin(files)
	s.until("three", func(st *Status) bool { return len(st.Slots) == 3 && allUp(st) })
	if st := s.pool.Status(); st.Slots[0].PID != before.Slots[0].PID {
		t.Errorf("got pid %d; want %d", st.Slots[0].PID, before.Slots[0].PID)
	}
	state, files = s.freeze()
	cfg.Count = 1
	s.exec(cfg, state, files)
	s.begin(files)
	s.until("one", func(st *Status) bool { return len(st.Slots) == 1 && allUp(st) && len(st.Retired) == 0 })
}

func TestTakeOver_DiscardLeavesAllForTheProgramBefore(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	before := s.pool.Status()
	state, files := s.freeze()
	p := s.exec(cfg, state, files)
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	p.Discard() // another pool could not be adopted
	get(t, before.Slots[1].Backend, "/beat?text=between")
	p, err := NewPool("app", cfg, s.dir)
	if err == nil {
		err = p.TakeOver(state, files)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.pool = p
	s.begin(files)
	if st := p.Status(); !reflect.DeepEqual(same(st), same(before)) {
		t.Errorf("got\n%+v; want\n%+v", same(st), same(before))
	}
	s.until("the beat between the two", func(st *Status) bool { return st.Slots[1].Text == "between" })
}

func TestFreeze_LosesNoLineAndNoBeat(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	b := s.pool.Status().Slots[0].Backend
	get(t, b, "/count")
	freezes := 0
	for done := false; !done; freezes++ {
		state, files := s.freeze()
		if freezes%2 == 0 {
			s.pool.Thaw()
			closeFiles(files)
		} else {
			s.exec(cfg, state, files)
			s.begin(files)
		}
		texts := s.texts()
		done = len(texts) > 0 && texts[len(texts)-1] == "counted" || freezes > 10_000
	}
	t.Logf("%d freezes", freezes)
	for i, text := range s.texts() {
		if want := fmt.Sprintf("%d is a number", i); text != want && i < 3000 {
			t.Fatalf("line %d: got %q; want %q", i, text, want)
		}
	}
	get(t, b, "/beat?text=end")
	s.until("the last beat", func(st *Status) bool { return st.Slots[0].Text == "end" && s.beatsSoFar() >= 301 })
	if n := s.beatsSoFar(); n != 301 {
		t.Errorf("got %d beats; want 301", n)
	}
}

func TestTakeOver_RefusesWhatItCannotRead(t *testing.T) {
	const release = `{"command":["a"]}`
	worker := `{"slot":0,"role":"current","state":"up","release":` + release + `,"process":{"pid":5},"end":{"name":"0.1","path":"/x"}}`
	good := `{"version":1,"pool":"app","release":` + release + `,"slots":[{"release":` + release + `}],"workers":[` + worker + `],"from":"another version"}`
	p, err := NewPool("app", workerConfig(), &Dir{path: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.TakeOver(json.RawMessage(good), nil); err != nil {
		t.Errorf("got %v for what is good", err)
	}
	f := func(old, new string) {
		t.Helper()
		bad := strings.Replace(good, old, new, 1)
		if bad == good {
			t.Fatalf("%q is not there", old)
		}
		if err := p.TakeOver(json.RawMessage(bad), nil); !errors.Is(err, ErrState) {
			t.Errorf("%q: got %v; want ErrState", new, err)
		}
	}
	f(`{"version"`, `"version"`)
	f(`"version":1`, `"version":3`)
	f(`"version":1`, `"other":1`)
	f(`"pool":"app"`, `"pool":"other"`)
	f(`"release":{"command":["a"]},"slots"`, `"slots"`)
	f(`[{"release":{"command":["a"]}}]`, `[{"release":{"command":[]}}]`)
	f(`"slot":0`, `"slot":1`)
	f(`"slot":0`, `"slot":-1`)
	f(`"role":"current"`, `"role":"other"`)
	f(`"state":"up"`, `"state":"gone"`)
	f(`"state":"up"`, `"state":"new"`)
	f(`"state":"up"`, `"state":"waiting"`)
	f(`"pid":5`, `"pid":1`)
	f(`"name":"0.1"`, `"name":"../x"`)
	f(`"name":"0.1"`, `"name":""`)
	f(`"path":"/x"`, `"port":70000`)
	f(worker, worker+","+worker)
}

func TestTakeOverDir_TheLockHoldsAllTheTime(t *testing.T) {
	dir, err := OpenDir(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := dir.File()
	if err != nil {
		t.Fatal(err)
	}
	dir.Close() // as an exec does
	if _, err := OpenDir(dir.Path()); !errors.Is(err, ErrDirInUse) {
		t.Errorf("got %v between the two; want ErrDirInUse", err)
	}
	next, err := TakeOverDir(dir.Path(), lock, nil)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if _, err := OpenDir(dir.Path()); !errors.Is(err, ErrDirInUse) {
		t.Errorf("got %v; want ErrDirInUse", err)
	}
	next.Close()
	free, err := OpenDir(dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	other, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := TakeOverDir(dir.Path(), other, nil); !errors.Is(err, ErrDirInUse) {
		t.Errorf("got %v for another file; want ErrDirInUse", err)
	}
}
