package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// script is a source whose answers a test sets, and what the watcher made of them.
type script struct {
	mu     sync.Mutex // guards all below
	answer Answer
	err    error
	used   bool // what Apply returns
	seen   []string
	asked  int
}

func (s *script) watch(ctx context.Context, known ...Backend) (*Watcher, chan struct{}) {
	w := &Watcher{
		LookUp: func(context.Context, []Backend) (Answer, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.asked++
			return s.answer, s.err
		},
		Apply: func(found []Backend) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen = append(s.seen, fmt.Sprint("apply ", len(found)))
			return s.used
		},
		Stale: func(_ time.Time, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen = append(s.seen, fmt.Sprint("stale ", err))
		},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, known)
	}()
	return w, done
}

// set changes what the source answers from now on, and whether it is used.
func (s *script) set(err error, used bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.used = err, used
}

func (s *script) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func answerOf(ttl time.Duration, addresses ...string) Answer {
	a := Answer{TTL: ttl}
	for _, s := range addresses {
		a.Backends = append(a.Backends, Backend{Address: s, At: netip.MustParseAddrPort(s), Weight: 100})
	}
	return a
}

func TestWatcher_AsksAgainWhenTheAnswerIsOld(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		ttl         time.Duration
		least, most int // questions in ten minutes
	}{{0, 600, 670}, {20 * time.Second, 30, 35}, {time.Hour, 10, 12}} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			s := &script{answer: answerOf(test.ttl, "10.0.0.1:80"), used: true}
			_, done := s.watch(ctx)
			time.Sleep(10 * time.Minute)
			cancel()
			<-done
			if s.asked < test.least || s.asked > test.most {
				t.Errorf("TTL %v: asked %d times in ten minutes; want %d to %d", test.ttl, s.asked, test.least, test.most)
			}
		})
	}
}

func TestWatcher_ReportsEachTurnOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &script{answer: answerOf(time.Minute, "10.0.0.1:80"), used: true}
		w, done := s.watch(ctx)
		synctest.Wait()
		s.set(errors.New("no answer"), true)
		time.Sleep(5 * time.Minute)
		st := w.Status()
		if st.Error == nil || st.StaleSince.IsZero() || time.Since(st.Checked) < 4*time.Minute {
			t.Errorf("while answers fail: got %+v", st)
		}
		asked := s.questions()
		s.set(nil, true)
		time.Sleep(retryMost)
		synctest.Wait()
		if now := s.questions(); now != asked+1 {
			t.Errorf("asked %d times within %v after the repair; want once", now-asked, retryMost)
		}
		if st := w.Status(); st.Error != nil || !st.StaleSince.IsZero() {
			t.Errorf("after the repair: got %+v", st)
		}
		cancel()
		<-done
		if want := []string{"apply 1", "stale no answer", "apply 1", "stale <nil>"}; !slices.Equal(s.seen, want) {
			t.Errorf("got %q; want %q", s.seen, want)
		}
	})
}

func TestWatcher_OffersAnAnswerAgainThatCouldNotBeUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &script{answer: answerOf(time.Minute, "10.0.0.1:80")}
		_, done := s.watch(ctx)
		time.Sleep(3*applyAgain + applyAgain/2)
		s.set(nil, true)
		time.Sleep(10 * applyAgain)
		cancel()
		<-done
		if len(s.seen) != 5 || s.asked != 1 {
			t.Errorf("got %q after %d questions; want 5 times the one answer", s.seen, s.asked)
		}
	})
}
