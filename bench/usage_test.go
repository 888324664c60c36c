package bench

import (
	"os"
	"syscall"
	"testing"
	"time"
)

func TestParseStat_NameWithParentheses(t *testing.T) {
	line := "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 150 25 8 9 20 0 3 0 98765 1000 200 18446744073709551615 1 1 0\n"
	got, err := parseStat(line)
	want := procStat{pid: 42, parent: 7, user: 1500 * time.Millisecond, system: 250 * time.Millisecond, start: 98765}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestParseStat_Zombie(t *testing.T) {
	got, err := parseStat("42 (x) Z 7 42 42 0 -1 4194560 1 2 3 4 150 25 8 9 20 0 3 0 98765 1000")
	if err != nil || !got.dead {
		t.Errorf("got %+v, %v; want a dead one", got, err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 150 25 8 9 20 0 3 0 98765 1000")
	f.Add("42 )(")
	f.Add("")
	f.Fuzz(func(t *testing.T, line string) {
		if st, err := parseStat(line); err != nil && st != (procStat{}) {
			t.Errorf("got %+v beside error %v", st, err)
		}
	})
}

func TestParseSmapsRollup(t *testing.T) {
	const rollup = "55de02835000-7ffe2baf9000 ---p 00000000 00:00 0    [rollup]\n" +
		"Rss:     1584 kB\nPss:   484 kB\nPss_Anon:   112 kB\nPss_File:   372 kB\nPss_Shmem:   20 kB\nSwapPss:   3 kB\n"
	got, err := parseSmapsRollup([]byte(rollup))
	want := Memory{Anon: 112 << 10, Shared: 20 << 10, Swapped: 3 << 10}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got.User() != 135<<10 {
		t.Errorf("got %d bytes of user memory; want %d", got.User(), 135<<10)
	}
	if _, err := parseSmapsRollup([]byte("Rss: 1 kB\nPss: 1 kB\n")); err == nil {
		t.Error("got no error without Pss_Anon")
	}
}

func TestParseMachineBusy(t *testing.T) {
	// user nice system idle iowait irq softirq steal guest guest_nice
	got, err := parseMachineBusy("cpu  1 2 4 1000 2000 8 16 32 4000 8000\ncpu0 1 1 1\n")
	if want := 63 * 10 * time.Millisecond; err != nil || got != want {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if _, err := parseMachineBusy("intr 1 2 3 4 5 6 7 8 9\n"); err == nil {
		t.Error("got no error without a cpu line")
	}
}

// The clock and /proc/PID/stat are two views of one sum, and the clock must move while a thread is running.
func TestReadCPU_AgreesWithStat(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := ReadCPU(self)
	if err != nil {
		t.Fatal(err)
	}
	var used CPU
	for used.Total < 50*time.Millisecond {
		now, err := ReadCPU(self)
		if err != nil {
			t.Fatal(err)
		}
		used = now.Sub(before)
	}
	// utime and stime are cut to 10 ms each, at both readings.
	if diff := (used.User + used.System - used.Total).Abs(); diff > 4*statTick {
		t.Errorf("got %v by stat and %v by clock", used.User+used.System, used.Total)
	}
	if total := before.Total + used.Total; total < 50*time.Millisecond {
		t.Errorf("got %v since start; want at least what was used just now", total)
	}
}

func TestReadCPU_GoneProcess(t *testing.T) {
	p := startChild(t, "sleeper")
	if _, err := ReadCPU([]int{p.PID()}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(0); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadCPU([]int{p.PID()}); err == nil {
		t.Errorf("got %+v; want an error", got)
	}
}

func TestReadMemory_CountsTouchedPages(t *testing.T) {
	// A process of its own, because this one allocates and gives back memory all the time.
	p := startChild(t, "toucher")
	read := func() int64 {
		t.Helper()
		m, err := ReadMemory([]int{p.PID()})
		if err != nil {
			t.Fatal(err)
		}
		return int64(m.User())
	}
	reserved := read()
	if reserved >= touchedBytes {
		t.Errorf("got %d bytes; want that memory not touched yet is not counted", reserved)
	}
	if err := syscall.Kill(p.PID(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	awaitOutput(t, p, "touched\n")
	if got := read() - reserved; got < touchedBytes-1<<20 || got > touchedBytes+8<<20 {
		t.Errorf("got %d bytes more; want about %d", got, touchedBytes)
	}
}

func TestCountFDs(t *testing.T) {
	p := startChild(t, "sleeper")
	before, err := CountFDs([]int{p.PID()})
	if err != nil || before < 3 {
		t.Fatalf("got %d, %v; want at least 3", before, err)
	}
	twice, err := CountFDs([]int{p.PID(), p.PID()})
	if err != nil || twice != 2*before {
		t.Errorf("got %d, %v for the process twice; want %d", twice, err, 2*before)
	}
}

func TestTree_GoneRoot(t *testing.T) {
	p := startChild(t, "sleeper")
	if err := p.Stop(0); err != nil {
		t.Fatal(err)
	}
	if got, err := Tree(p.PID()); err == nil {
		t.Errorf("got %v; want an error", got)
	}
}
