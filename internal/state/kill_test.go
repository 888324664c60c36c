package state

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/internal/leaktest"
)

// writerVariable makes the test binary a process that writes the state file named there, again and again, to
// be killed.
const writerVariable = "LB_STATE_TEST_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerVariable); path != "" {
		writeForEver(path)
	}
	os.Exit(leaktest.Run(m))
}

// writeForEver writes state after state, and after each its number on stdout. The numbers go on from the
// file's.
func writeForEver(path string) {
	n := 0
	if data, err := ReadFile(path); err == nil {
		c, err := Unmarshal(data)
		if err != nil {
			fmt.Println("cannot read:", err)
			os.Exit(1)
		}
		n = number(&c)
	}
	for {
		n++
		c := numbered(n)
		if err := WriteFile(path, c.Marshal()); err != nil {
			fmt.Println("cannot write:", err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

// numbered is the n-th state; states differ in size, up to some pages.
func numbered(n int) Changes {
	c := Changes{Listeners: []Listener{{Name: "web", MaxConns: Int{true, 0, n}}}}
	for i := range n % 7 * 40 {
		c.Backends = append(c.Backends, Backend{Pool: "app", Name: "w" + strconv.Itoa(i), Address: "unix:@x", Weight: Int{true, 100, n % 1000}})
	}
	return c
}

// number is n of numbered(n); -1 when it is none whole.
func number(c *Changes) int {
	if len(c.Listeners) != 1 {
		return -1
	}
	n := c.Listeners[0].MaxConns.Value
	want := numbered(n)
	if string(want.Marshal()) != string(c.Marshal()) {
		return -1
	}
	return n
}

func TestWriteFile_KilledAtAnyMomentLeavesTheOldOrTheNewState(t *testing.T) {
	rounds := 125
	if testing.Short() {
		rounds = 15
	}
	for file := range 4 { // side by side: a writer waits for its disk most of the time
		t.Run(strconv.Itoa(file), func(t *testing.T) {
			t.Parallel()
			killWriters(t, filepath.Join(t.TempDir(), "state"), rounds)
		})
	}
}

// killWriters kills one writer after the other of a state file.
func killWriters(t *testing.T, path string, rounds int) {
	atOld, atNew := 0, 0
	for range rounds {
		told := killWriter(t, path, time.Duration(rand.Int64N(int64(4*time.Millisecond))))
		if told == 0 {
			t.Fatal("the writer has told of no state")
		}
		data, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Unmarshal(data)
		if err != nil {
			t.Fatalf("after state %d was written: got %v; want a whole state", told, err)
		}
		switch n := number(&c); n {
		case told:
			atOld++
		case told + 1:
			atNew++
		default:
			t.Fatalf("after state %d was written: got state %d; want that or the next", told, n)
		}
	}
	t.Logf("killed %d times: %d times the old state was there, %d times the new one", rounds, atOld, atNew)
	if left, _ := filepath.Glob(path + "*"); len(left) > 2 {
		t.Errorf("files: got %q; want the state and at most one that was being written", left)
	}
}

// killWriter starts a writer and kills it, a moment after it has told of its first state. It gives the last
// state that the writer told of.
func killWriter(t *testing.T, path string, after time.Duration) (last int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerVariable+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	var killed <-chan time.Time
	lines := make(chan string)
	go func() {
		defer close(lines)
		for {
			line, err := r.ReadString('\n')
			if err == io.EOF {
				return
			}
			lines <- line
		}
	}()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				cmd.Wait() // killed
				return last
			}
			n, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Errorf("the writer: got %q; want a number", line)
			}
			last = n
			if killed == nil {
				killed = time.After(after)
			}
		case <-killed:
			cmd.Process.Kill()
		}
	}
}
