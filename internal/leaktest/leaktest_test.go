package leaktest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Run(m)) }

// TestLeft_NamesWhatWasLeft leaves one thing of each kind behind, and cleans it up.
func TestLeft_NamesWhatWasLeft(t *testing.T) {
	before := look()
	if left := before.await(patience); left != "" {
		t.Fatalf("nothing was left; got %q", left)
	}

	end := make(chan struct{})
	ended := make(chan struct{})
	go func() { defer close(ended); <-end }()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}

	left := before.await(0)
	for _, want := range []string{"TestLeft_NamesWhatWasLeft", ": /dev/null", "child process"} {
		if !strings.Contains(left, want) {
			t.Errorf("got %q; want %q in it", left, want)
		}
	}

	// What is on its way to its end is waited for.
	time.AfterFunc(20*time.Millisecond, func() { close(end) })
	f.Close()
	in.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
	if left := before.await(patience); left != "" {
		t.Errorf("all has ended; got %q", left)
	}
	<-ended
}
