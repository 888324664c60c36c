package logs

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// text is what a log wrote.
type text struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *text) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

// newThrottle makes a Throttle of one line a second and the text it writes, without times.
func newThrottle() (*Throttle, *text) {
	out := new(text)
	noTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: noTime}))
	return NewThrottle(log, time.Second), out
}

// wantLines compares what was written since the last call.
func wantLines(t *testing.T, text *text, want ...string) {
	t.Helper()
	text.mu.Lock()
	defer text.mu.Unlock()
	got := strings.TrimSuffix(text.buf.String(), "\n")
	if got != strings.Join(want, "\n") {
		t.Errorf("log: got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	text.buf.Reset()
}

func TestThrottle_FoldsWhatRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th, text := newThrottle()
		for i := range 513 {
			th.Log(slog.LevelWarn, "accept", "cannot accept", "n", i)
		}
		wantLines(t, text, `level=WARN msg="cannot accept" n=0`)
		time.Sleep(time.Second)
		synctest.Wait()
		wantLines(t, text, `level=WARN msg="cannot accept" n=512 repeated=512`)

		th.Log(slog.LevelWarn, "accept", "cannot accept", "n", 1000) // the count began an interval of its own
		wantLines(t, text, ``)
		time.Sleep(time.Second)
		synctest.Wait()
		wantLines(t, text, `level=WARN msg="cannot accept" n=1000 repeated=1`)
		time.Sleep(time.Second)
		synctest.Wait()
		wantLines(t, text, ``)
		th.Log(slog.LevelWarn, "accept", "cannot accept", "n", 2000)
		wantLines(t, text, `level=WARN msg="cannot accept" n=2000`)
	})
}

func TestThrottle_KeysDoNotTouchEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th, text := newThrottle()
		th.Log(slog.LevelWarn, "w1", "cannot connect", "backend", "w1")
		th.Log(slog.LevelWarn, "w2", "cannot connect", "backend", "w2")
		wantLines(t, text, `level=WARN msg="cannot connect" backend=w1`, `level=WARN msg="cannot connect" backend=w2`)
	})
}

func TestThrottle_LevelThatIsOffCostsNothing(t *testing.T) {
	th, text := newThrottle()
	th.Log(slog.LevelDebug, "k", "detail")
	th.Log(slog.LevelDebug, "k", "detail")
	if len(th.repeats) != 0 {
		t.Errorf("keys: got %d; want none", len(th.repeats))
	}
	wantLines(t, text, ``)
}

func TestThrottle_FlushWritesTheCountsAndStopsTheTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th, text := newThrottle()
		th.Log(slog.LevelError, "k", "no descriptors")
		th.Log(slog.LevelError, "k", "no descriptors")
		th.Flush()
		wantLines(t, text, `level=ERROR msg="no descriptors"`, `level=ERROR msg="no descriptors" repeated=1`)
		time.Sleep(time.Minute)
		synctest.Wait()
		wantLines(t, text, ``)
	})
}

func TestThrottle_MemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th, _ := newThrottle()
		for range 3 {
			for i := range 2 * maxThrottleKeys {
				th.Log(slog.LevelWarn, fmt.Sprint(i), "cannot connect")
			}
			if got := len(th.repeats); got > maxThrottleKeys+1 {
				t.Errorf("keys: got %d; want at most %d", got, maxThrottleKeys+1)
			}
			time.Sleep(time.Hour)
		}
		th.Log(slog.LevelWarn, "new", "cannot connect")
		if got := len(th.repeats); got > 2 {
			t.Errorf("keys after all have expired: got %d; want the new one", got)
		}
		th.Flush()
	})
}
