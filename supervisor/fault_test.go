package supervisor

import (
	"strings"
	"testing"
	"time"
)

func TestCrash_FindsTheFirstLineOfADump(t *testing.T) {
	goroutines := strings.Repeat("goroutine 7 [running]:\nmain.main()\n\t/src/main.go:3 +0x1d\n", 100)
	for name, c := range map[string]struct{ text, want string }{
		"go panic":  {"listening\npanic: boom\n\n" + goroutines + "exit status 2", "panic: boom"},
		"go abort":  {"SIGABRT: abort\nPC=0x4 m=0 sigcode=0\n\n" + goroutines + "rax 0x1\nrip 0x4", "SIGABRT: abort"},
		"go nested": {"panic: first\n\tpanic: second\n\n" + goroutines, "panic: first"},
		"python": {"Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\n    1/0\n    ~^~\nZeroDivisionError: division by zero",
			"ZeroDivisionError: division by zero"},
		"node":       {"/srv/app.js:3\nthrow new Error('boom')\n^\n\nError: boom\n    at Object.<anonymous> (/srv/app.js:3:7)\n\nNode.js v26.0.0", "Error: boom"},
		"node errno": {"node:events:497\n      throw er; // Unhandled 'error' event\n      ^\n\nError [ERR_X]: listen EADDRINUSE\n    at x", "Error [ERR_X]: listen EADDRINUSE"},
		"rust":       {"thread 'main' panicked at src/main.rs:2:5:\nboom\nnote: run with RUST_BACKTRACE=1", "thread 'main' panicked at src/main.rs:2:5:"},
		"java":       {"Exception in thread \"main\" java.lang.IllegalStateException: boom\n\tat App.main(App.java:3)", "Exception in thread \"main\" java.lang.IllegalStateException: boom"},
		"ruby":       {"app.rb:1:in 'Object#x': boom (RuntimeError)\n\tfrom app.rb:3:in '<main>'", "app.rb:1:in 'Object#x': boom (RuntimeError)"},
		"c":          {"app: app.c:3: main: Assertion `x' failed.", "app: app.c:3: main: Assertion `x' failed."},
		"no crash":   {"listening\nGET / 200\nno errors: 0\n", ""},
	} {
		var x crash
		now := time.Now()
		for line := range strings.SplitSeq(c.text, "\n") {
			x.see(line, now)
		}
		if x.line != c.want {
			t.Errorf("%s: got %q; want %q", name, x.line, c.want)
		}
	}
}

// A program that recovers from a panic, and crashes later, crashed of the later one.
func TestCrash_LaterOneCounts(t *testing.T) {
	var x crash
	now := time.Now()
	x.see("panic: recovered long ago", now)
	x.see("panic: the end", now.Add(time.Minute))
	if x.line != "panic: the end" {
		t.Errorf("got %q; want the later one", x.line)
	}
}
