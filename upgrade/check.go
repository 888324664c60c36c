package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// CheckTimeout bounds how long a new binary may take to say that it can take over.
	CheckTimeout = 10 * time.Second
	// maxSaid is how much it may say, in bytes, on each of its outputs.
	maxSaid = 64 << 10
)

// Answer is what a binary says of itself, as JSON on its standard output.
type Answer struct {
	Version string `json:"version"`
	Formats []int  `json:"formats"` // of the state that it reads
	// Guardian: it tells the guardian when it has taken over.
	Guardian bool `json:"guardian,omitempty"`
}

// Check runs the binary as a child, with args (the program's name is the first) and input on its standard
// input, and gives what it answers. It ends the child when ctx or timeout is over. The error says what to do.
func Check(ctx context.Context, binary *Binary, args []string, input []byte, timeout time.Duration) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// By a number of its own: on the way to the exec a child moves its descriptors about, and one of them may
	// take the place of any other.
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{binary.file}
	cmd.Args = args
	cmd.Env = environment()
	cmd.Stdin = bytes.NewReader(input)
	said := &limited{stop: cancel}
	complaints := &limited{stop: cancel}
	cmd.Stdout, cmd.Stderr = said, complaints
	cmd.WaitDelay = time.Second // for grandchildren that keep the outputs open
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	runtime.LockOSThread() // Pdeathsig is about the thread that forked (prctl(2))
	err := cmd.Run()
	runtime.UnlockOSThread()
	var exit *exec.ExitError
	switch {
	case said.over || complaints.over:
		return Answer{}, fmt.Errorf("the new binary says too much when asked whether it can take over (more than %d KiB): it is no lb that can", maxSaid>>10)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Answer{}, fmt.Errorf("the new binary does not say within %v whether it can take over; try it by hand: FILE check -f CONFIG", timeout)
	case ctx.Err() != nil:
		return Answer{}, ctx.Err()
	case errors.As(err, &exit):
		return Answer{}, fmt.Errorf("the new binary says that it cannot take over (%v): %s", exit, orNothing(string(complaints.said)))
	case err != nil && !errors.Is(err, exec.ErrWaitDelay) && !errors.Is(err, unix.EPIPE):
		// it may leave the input unread
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return Answer{}, execError(err)
	}
	var a Answer
	if err := json.Unmarshal(said.said, &a); err != nil || len(a.Formats) == 0 {
		return Answer{}, fmt.Errorf("the new binary does not know how to take over: it is no lb, or an old one; it said %s", orNothing(string(said.said)))
	}
	return a, nil
}

// orNothing is what somebody said, in one line.
func orNothing(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return "nothing"
	}
	if len(s) > maxReason {
		s = s[:maxReason] + "…"
	}
	return s
}

// limited keeps what is written, up to maxSaid, and stops who writes more. It has no ReadFrom, by which
// io.Copy would pass Write by.
type limited struct {
	said []byte
	over bool
	stop func()
}

func (l *limited) Write(b []byte) (int, error) {
	if len(l.said)+len(b) > maxSaid {
		l.over = true
		l.stop()
		return len(b), nil
	}
	l.said = append(l.said, b...)
	return len(b), nil
}
