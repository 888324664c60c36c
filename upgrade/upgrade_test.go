package upgrade

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/leaktest"
)

// The test binary plays both codes: LB_UPGRADE_TEST says what the one that hands over does, and the one that
// was handed something does what the state says.
const play = "LB_UPGRADE_TEST"

func TestMain(m *testing.M) {
	h, err := FromEnv()
	switch {
	case err != nil:
		fmt.Println("FromEnv:", err)
		os.Exit(1)
	case h != nil:
		if word, how, ok := strings.Cut(string(h.State), ":"); ok && word == "guarded" {
			beGuarded(h, how)
		}
		takeOver(h)
	case strings.HasPrefix(os.Getenv(play), "guarded:"):
		handOverGuarded(os.Getenv(play))
	case os.Getenv(play) != "":
		handOver(os.Getenv(play))
	case len(os.Args) > 1 && os.Args[1] == "check":
		beAsked(os.Args[2])
	default:
		os.Exit(leaktest.Run(m))
	}
}

// handOver execs this binary again, with a pipe that the new code writes to.
func handOver(what string) {
	self, err := Open("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		panic(err)
	}
	os.Setenv(envFailed, "of another day")
	err = Exec(&Plan{
		Binary: self, Args: os.Args, State: fmt.Appendf(nil, "%s %d", what, pipe[1]), FDs: []int{pipe[1]},
		Signals: []syscall.Signal{syscall.SIGUSR1}, Heard: func() []syscall.Signal { return []syscall.Signal{syscall.SIGHUP} },
	})
	fmt.Println("Exec:", err)
	os.Exit(1)
}

// takeOver says what was handed over, or gives it back.
func takeOver(h *Handover) {
	what, number, _ := strings.Cut(string(h.State), " ")
	fd, _ := strconv.Atoi(number)
	fmt.Printf("pid %d state %q failed %q heard %v left %q\n", os.Getpid(), h.State, h.Failed, h.Signals, os.Getenv(envHandover)+os.Getenv(envFailed)+os.Getenv(envSignals))
	if what == "back" && h.Failed == "" {
		fmt.Println("Back:", h.Back("cannot do it\x00", nil))
		os.Exit(1)
	}
	if what == "back" {
		fmt.Println("Back again:", h.Back("nor can I", nil))
	}
	flag := func() int {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			return -1
		}
		return n
	}
	before := flag()
	h.Keep([]int{fd})
	fmt.Printf("close-on-exec %d then %d\n", before, flag())
	os.Exit(0)
}

// beAsked answers as a new binary may.
func beAsked(how string) {
	input, _ := io.ReadAll(os.Stdin)
	switch how {
	case "yes":
		fmt.Printf(`{"version": %q, "formats": [1, 2]}`, input)
	case "no":
		fmt.Fprintln(os.Stderr, "pools.app.balance: unknown policy")
		os.Exit(1)
	case "nothing":
	case "babble":
		for {
			os.Stdout.Write(bytes.Repeat([]byte("x"), 4096))
		}
	case "hang":
		time.Sleep(time.Hour)
	}
	os.Exit(0)
}

// played runs this binary as the one that hands over, and gives what both codes said.
func played(t *testing.T, what string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), play+"="+what)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if pid := fmt.Sprintf("pid %d ", cmd.Process.Pid); strings.Count(string(out), pid) != strings.Count(string(out), "pid ") {
		t.Errorf("got %q; want %q everywhere", out, pid)
	}
	return string(out)
}

func TestExec_HandsStateAndDescriptorsToTheNewCode(t *testing.T) {
	out := played(t, "forth")
	for _, want := range []string{`state "forth `, `failed ""`, "heard [hangup]", `left ""`, "close-on-exec 0 then 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("got %q; want %q", out, want)
		}
	}
}

func TestBack_GivesTheSameToTheCodeBefore(t *testing.T) {
	out := played(t, "back")
	for _, want := range []string{`failed "cannot do it"`, "Back again: there is no binary before this one", "close-on-exec 0 then 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("got %q; want %q", out, want)
		}
	}
	if strings.Count(out, `state "back `) != 2 {
		t.Errorf("got %q; want the state twice", out)
	}
}

// binary makes a file to run.
func binary(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "binary")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// unread opens a file as Open does one that it may run and not read: the kernel alone judges it.
func unread(t *testing.T, path string) *Binary {
	t.Helper()
	f, err := openPath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b := &Binary{file: f, path: path}
	if err := unix.Fstat(int(f.Fd()), &b.stat); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExec_ThatFailsChangesNothing(t *testing.T) {
	f := unread(t, binary(t, "\x7fELF and no more", 0o755))
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	err := Exec(&Plan{Binary: f, Args: []string{"x"}, State: []byte("state"), FDs: pipe[:], Signals: []syscall.Signal{syscall.SIGTERM}})
	if !errors.Is(err, unix.ENOEXEC) || !strings.Contains(err.Error(), "no program for this machine") {
		t.Errorf("got %v; want ENOEXEC, in words", err)
	}
	for _, fd := range pipe {
		if n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || n != unix.FD_CLOEXEC {
			t.Errorf("descriptor %d: got flags %d, %v; want close-on-exec", fd, n, err)
		}
	}
	if err := Exec(&Plan{Binary: f, Args: []string{"x"}, FDs: []int{pipe[0], 1 << 20}}); !errors.Is(err, unix.EBADF) {
		t.Errorf("with a descriptor that is not open: got %v; want EBADF", err)
	}
	if n, _ := unix.FcntlInt(uintptr(pipe[0]), unix.F_GETFD, 0); n != unix.FD_CLOEXEC {
		t.Errorf("descriptor before it: got flags %d; want close-on-exec", n)
	}
}

func TestOpen_SaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file",
		dir:                        "no regular file",
		binary(t, "x", 0o644):      "chmod +x",
		binary(t, "", 0o755):       "empty",
	} {
		if f, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): got %v, %v; want %q", path, f, err, want)
		}
	}
}

func TestCheck_TakesTheAnswerOrSaysWhatIsWrong(t *testing.T) {
	self, err := Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	garbage := unread(t, binary(t, "\x7fELF", 0o755))
	ask := func(f *Binary, how string, timeout time.Duration) (Answer, error) {
		return Check(context.Background(), f, []string{"lb", "check", how}, []byte("v2"), timeout)
	}
	if a, err := ask(self, "yes", time.Minute); err != nil || a.Version != "v2" || len(a.Formats) != 2 {
		t.Errorf("got %+v, %v; want its version and formats", a, err)
	}
	for how, want := range map[string]string{
		"no": "unknown policy", "nothing": "it said nothing", "babble": "too much",
	} {
		if a, err := ask(self, how, time.Minute); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %+v, %v; want %q", how, a, err, want)
		}
	}
	if _, err := ask(self, "hang", 300*time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not say within 300ms") {
		t.Errorf("hang: got %v; want that it does not say", err)
	}
	if _, err := ask(garbage, "", time.Minute); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("garbage: got %v; want ENOEXEC", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(over, self, []string{"lb", "check", "hang"}, nil, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v; want that", err)
	}
}

func TestMemfd_SaysThatTheStateIsTooLarge(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &old)
	if f, err := memfd(make([]byte, 4097)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, %v; want %v", f, err, ErrTooLarge)
	}
	f, err := memfd(make([]byte, 4096))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a sealed state can be changed")
	}
}
