package upgrade

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// heldBack are the signals that the tests have a guardian hold back.
var heldBack = []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1}

// handOverGuarded execs this binary again, with a guardian. The pipe is a descriptor that must be there
// still.
func handOverGuarded(what string) {
	self, err := Open("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		panic(err)
	}
	heard := make(chan os.Signal, 10)
	signal.Notify(heard, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	fmt.Println("listening")
	plan := &Plan{
		Binary: self, Args: os.Args, State: fmt.Appendf(nil, "%s %d", what, pipe[1]), FDs: []int{pipe[1]}, Signals: heldBack, Guard: true,
		Heard: func() []syscall.Signal {
			signal.Stop(heard)
			if strings.Contains(what, "early") { // it would end this process at once
				unix.Kill(os.Getpid(), unix.SIGTERM)
			}
			return []syscall.Signal{syscall.SIGUSR2}
		},
		Unheard: func(signals []syscall.Signal) { fmt.Println("unheard", signals) },
	}
	if what == "guarded:fails" {
		plan.Binary.Close()
		plan.Binary.file, _ = os.Open("/dev/null")
		plan.Binary.stat = unix.Stat_t{}
		unix.Fstat(int(plan.Binary.file.Fd()), &plan.Binary.stat)
		heardBefore := plan.Heard
		plan.Heard = func() []syscall.Signal { unix.Kill(os.Getpid(), unix.SIGINT); return heardBefore() }
	}
	fmt.Println("Exec:", Exec(plan))
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		fmt.Println("a child is left:", err)
	}
	os.Exit(1)
}

// beGuarded is new code that fares as the state says.
func beGuarded(h *Handover, how string) {
	how, number, _ := strings.Cut(how, " ")
	how = strings.TrimPrefix(how, "early-")
	fmt.Printf("pid %d died %v failed %q signals %v\n", os.Getpid(), h.Died != nil, h.Failed, h.Signals)
	if h.Died == nil {
		switch how {
		case "kill":
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		case "fault":
			unix.Kill(os.Getpid(), unix.SIGSEGV)
			select {}
		case "fatal":
			new(sync.Mutex).Unlock()
		case "exit":
			os.Exit(3)
		case "term": // sent to a process that does not listen
			for range 3 {
				unix.Kill(os.Getpid(), unix.SIGTERM)
			}
			unix.Kill(os.Getpid(), unix.SIGINT)
		case "term-kill":
			unix.Kill(os.Getpid(), unix.SIGTERM)
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		case "back":
			if h.Failed == "" {
				fmt.Println("Back:", h.Back("cannot", heldBack))
			}
		case "back-kill":
			if h.Failed != "" {
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
			fmt.Println("Back:", h.Back("cannot", heldBack))
		}
	}
	var fd int
	fmt.Sscan(number, &fd)
	heard := make(chan os.Signal, 10)
	signal.Notify(heard, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		fmt.Println("the descriptor is gone:", err)
	}
	fmt.Printf("kept by pid %d, held back %v\n", os.Getpid(), h.Keep([]int{fd}))
	if h.Died != nil {
		h.Died.Reap()
	}
	if how == "fine-and-waits" {
		io.ReadAll(os.Stdin)
	}
	os.Exit(0)
}

// guarded plays a handover with a guardian, and returns what all codes said, and the pid of the first.
func guarded(t *testing.T, how string) (out string, pid int, err error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", play+"=guarded:"+how)
	said := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait() // and until the last of them has closed its output
	return said.String(), cmd.Process.Pid, err
}

func TestGuardian_GoesAwayWhenTheNewCodeHasTakenOver(t *testing.T) {
	out, pid, err := guarded(t, "fine")
	if want := fmt.Sprintf("kept by pid %d, held back []", pid); err != nil || !strings.Contains(out, want) || !strings.Contains(out, "signals [user defined signal 2]") {
		t.Errorf("got %v\n%s\nwant %q", err, out, want)
	}
}

func TestGuardian_TakesOverFromCodeThatEnds(t *testing.T) {
	for how, want := range map[string]string{
		"kill": "was ended by a signal (killed)", "fault": "ended with exit status 2", "fatal": "ended with exit status 2", "exit": "ended with exit status 3",
		"back-kill": "was ended by a signal (killed)",
	} {
		t.Run(how, func(t *testing.T) {
			out, pid, _ := guarded(t, how)
			if !strings.Contains(out, "died true failed") || !strings.Contains(out, want+` before it had taken over`) || !strings.Contains(out, "signals [user defined signal 2]") {
				t.Errorf("got\n%s\nwant %q", out, want)
			}
			if strings.Contains(out, fmt.Sprintf("kept by pid %d", pid)) || strings.Count(out, "kept by pid") != 1 || strings.Contains(out, "descriptor is gone") {
				t.Errorf("got\n%s\nwant it kept by another process than %d", out, pid)
			}
		})
	}
}

func TestGuardian_StaysOnTheWayBack(t *testing.T) {
	out, pid, err := guarded(t, "back")
	if err != nil || !strings.Contains(out, fmt.Sprintf("kept by pid %d", pid)) || !strings.Contains(out, `died false failed "cannot"`) {
		t.Errorf("got %v\n%s\nwant it kept by the process that it was", err, out)
	}
}

func TestGuardian_HoldsSignalsBack(t *testing.T) {
	for how, want := range map[string][]string{
		"term": {"interrupt", "terminated"}, "early-fine": {"terminated"}, "early-term": {"interrupt", "terminated"},
	} {
		t.Run(how, func(t *testing.T) {
			out, pid, err := guarded(t, how)
			_, held, _ := strings.Cut(out, "held back")
			for _, name := range want { // one that is sent again while it waits is one
				if !strings.Contains(held, name) {
					t.Errorf("got\n%s\nwant %v held back", out, want)
				}
			}
			if err != nil || !strings.Contains(out, fmt.Sprintf("kept by pid %d", pid)) {
				t.Errorf("got %v\n%s\nwant it kept by the process that it was", err, out)
			}
		})
	}
	t.Run("of a process that is killed", func(t *testing.T) {
		out, _, _ := guarded(t, "early-term-kill")
		if !strings.Contains(out, "died true") || !strings.Contains(out, "signals [user defined signal 2 terminated") {
			t.Errorf("got\n%s\nwant that its successor has heard them", out)
		}
	})
}

func TestGuardian_IsDismissedWhenTheExecFails(t *testing.T) {
	out, _, _ := guarded(t, "fails")
	if !strings.Contains(out, "unheard [interrupt]") || !strings.Contains(out, "Exec: cannot run the new binary") || strings.Contains(out, "a child is left") {
		t.Errorf("got\n%s\nwant an error, the signal, and no child", out)
	}
}

// Signals come at every moment of an exec, from before the guardian is there until after the new code has
// taken over: each is heard by the code before, held back, or heard by the new code, and none ends the
// process.
func TestGuardian_NoSignalEndsTheProcess(t *testing.T) {
	total := 0
	for range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", play+"=guarded:fine-and-waits")
		cmd.Stderr = os.Stderr
		out, err1 := cmd.StdoutPipe()
		in, err2 := cmd.StdinPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan() // it listens
		enough := make(chan struct{})
		sent := make(chan int)
		go func() {
			for n := 0; ; n++ {
				select {
				case <-enough:
					sent <- n
					return
				default:
					cmd.Process.Signal(heldBack[n%3])
				}
			}
		}()
		said := lines.Text()
		for !strings.Contains(said, "kept by pid") && lines.Scan() {
			said += "\n" + lines.Text()
		}
		close(enough)
		total += <-sent
		in.Close()
		if err := cmd.Wait(); err != nil || !strings.Contains(said, fmt.Sprintf("kept by pid %d", cmd.Process.Pid)) {
			t.Fatalf("got %v; want it to live\n%s", err, said)
		}
	}
	t.Logf("%d signals", total)
}
