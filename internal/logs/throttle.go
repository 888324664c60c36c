package logs

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// maxThrottleKeys bounds the keys that a Throttle remembers at once; beyond it, lines share one.
const maxThrottleKeys = 1024

// Throttle folds lines that repeat: the first of a key is written at once, those of the next interval are
// counted and become one line with the attribute "repeated", and so on. Make it with NewThrottle. Safe for
// concurrent use.
type Throttle struct {
	log   *slog.Logger
	every time.Duration

	mu      sync.Mutex
	repeats map[string]*repeat
	forgot  time.Time // when forget last went over all of them
}

// repeat is what is known of one key.
type repeat struct {
	until time.Time // the end of the interval that its last written line began
	count int       // lines since then; while it is not 0, the timer runs
	level slog.Level
	msg   string
	args  []any // of the last
	timer *time.Timer
}

// NewThrottle makes a Throttle that writes to log at most one line a key in each interval.
func NewThrottle(log *slog.Logger, every time.Duration) *Throttle {
	return &Throttle{log: log, every: every, repeats: map[string]*repeat{}}
}

// Log writes a line, or counts it if one of the same key was written within the interval. The line with
// the count has the level, the message and the arguments of the last one counted. The key says which lines
// are the same: for errors of a backend, the backend's name and the reason, say. It reports whether it wrote
// the line.
func (t *Throttle) Log(level slog.Level, key, msg string, args ...any) (written bool) {
	if !t.log.Enabled(context.Background(), level) {
		return false
	}
	if t.count(level, key, msg, args) {
		return false
	}
	t.log.Log(context.Background(), level, msg, args...)
	return true
}

// count counts the line, and reports whether it is not to be written now.
func (t *Throttle) count(level slog.Level, key, msg string, args []any) bool {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.repeats[key]
	if r == nil {
		t.forget(now)
		if len(t.repeats) >= maxThrottleKeys {
			key = ""
			r = t.repeats[key]
		}
	}
	if r == nil {
		r = new(repeat)
		t.repeats[key] = r
	}
	if r.count == 0 && !now.Before(r.until) {
		r.until = now.Add(t.every)
		return false
	}
	r.count++
	r.level, r.msg, r.args = level, msg, args
	if r.count == 1 {
		r.timer = time.AfterFunc(r.until.Sub(now), func() { t.report(r) })
	}
	return true
}

// forget drops the keys that have nothing to tell, when there are many, and at most once an interval. The
// caller holds mu.
func (t *Throttle) forget(now time.Time) {
	if len(t.repeats) < maxThrottleKeys || now.Sub(t.forgot) < t.every {
		return
	}
	t.forgot = now
	for key, r := range t.repeats {
		if r.count == 0 && !now.Before(r.until) {
			delete(t.repeats, key)
		}
	}
}

// report writes how often a line repeated, at the end of an interval.
func (t *Throttle) report(r *repeat) {
	t.mu.Lock()
	n, level, msg, args := r.count, r.level, r.msg, r.args
	r.count, r.args = 0, nil
	if n > 0 {
		r.until = time.Now().Add(t.every)
	}
	t.mu.Unlock()
	if n == 0 { // Flush was faster
		return
	}
	args = append(args[:len(args):len(args)], "repeated", n)
	t.log.Log(context.Background(), level, msg, args...)
}

// Flush writes the counts now, for the end of the process, and stops the timers.
func (t *Throttle) Flush() {
	t.mu.Lock()
	var pending []*repeat
	for _, r := range t.repeats {
		if r.count > 0 {
			r.timer.Stop()
			pending = append(pending, r)
		}
	}
	t.mu.Unlock()
	for _, r := range pending {
		t.report(r)
	}
}
