package supervisor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unwatchedPipe makes a pipe as outputPipe does, which the runtime has not put into its epoll set.
func unwatchedPipe(t *testing.T) (out *os.File, in *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	out, in = os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "worker's output")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return out, in
}

// TestOutput_IsReadThoughEpollHasNoPlaceForIt: the user's fs.epoll.max_user_watches may be used up when a
// worker starts.
func TestOutput_IsReadThoughEpollHasNoPlaceForIt(t *testing.T) {
	t.Parallel()
	p, err := NewPool("app", workerConfig(), &Dir{path: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	p.Hooks.Output = func(all []Line) uint64 {
		for _, l := range all {
			lines <- l.Text
		}
		return 0
	}
	file, in := unwatchedPipe(t)
	o := p.newOutput(0, 1, file)
	read := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.read(ctx)
		}()
		return func() { cancel(); <-done }
	}
	say := func(text string) {
		t.Helper()
		if _, err := in.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	want := func(text string) {
		t.Helper()
		if got := <-lines; got != text {
			t.Errorf("line: got %q; want %q", got, text)
		}
	}
	stop := read()
	for i := range 3 {
		say(fmt.Sprintf("line %d\n", i))
		want(fmt.Sprintf("line %d", i))
	}
	stop() // as a freeze does
	say("meanwhile\n")
	stop = read()
	want("meanwhile")
	say("last words") // the pipe stays open, as with a process that the worker has left
	o.finish()
	want("last words")
	stop()
	if got := o.lines(); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "lb cannot") }) {
		t.Errorf("lines: got %q; want the worker's only", got)
	}
}
