package proxy

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// expireAll gives the sessions that expire at now.
func expireAll(w *wheel, now time.Duration) []*session {
	var fired []*session
	w.expire(now, func(s *session) { fired = append(fired, s) })
	return fired
}

func TestWheel_ExpiresAtTheDeadlineAndNotBefore(t *testing.T) {
	for _, deadline := range []time.Duration{
		1, wheelTick, wheelTick + 1, time.Second,
		// around one turn of the wheel
		wheelSlots*wheelTick - 1, wheelSlots * wheelTick, wheelSlots*wheelTick + 1,
		5 * time.Minute, 25 * time.Hour,
	} {
		w, s := newWheel(), new(session)
		w.arm(s, deadline)
		for now := time.Duration(0); now < deadline; now += max((deadline-now)/2, wheelTick/2) {
			if fired := expireAll(w, now); fired != nil {
				t.Errorf("deadline %v: fired at %v", deadline, now)
			}
		}
		if fired := expireAll(w, deadline+wheelTick); len(fired) != 1 || fired[0] != s {
			t.Errorf("deadline %v: fired %d timers after it; want 1", deadline, len(fired))
		}
		if w.armed != 0 || w.due() != never {
			t.Errorf("deadline %v: got %d armed, due at %v afterwards; want none, never", deadline, w.armed, w.due())
		}
	}
}

func TestWheel_SleepingUntilDueReachesTheDeadline(t *testing.T) {
	for _, deadline := range []time.Duration{time.Millisecond, time.Second, time.Minute, 10 * time.Minute, 3 * time.Hour} {
		w, s := newWheel(), new(session)
		if w.due() != never {
			t.Fatalf("due with nothing armed: got %v; want never", w.due())
		}
		w.arm(s, deadline)
		now, rounds := time.Duration(0), 0
		for ; w.armed > 0; rounds++ {
			now = w.due()
			w.expire(now, func(*session) {})
		}
		if now < deadline || now > deadline+wheelTick {
			t.Errorf("deadline %v: fired at %v", deadline, now)
		}
		// One look a turn of the wheel is what a later deadline costs.
		if most := int(deadline/(wheelSlots*wheelTick)) + 2; rounds > most {
			t.Errorf("deadline %v: looked %d times; want at most %d", deadline, rounds, most)
		}
	}
}

func TestWheel_FiringMayArmAndCancelOthers(t *testing.T) {
	w := newWheel()
	var s [4]session
	for i := range s {
		w.arm(&s[i], time.Second)
	}
	var fired []*session
	w.expire(2*time.Second, func(x *session) {
		fired = append(fired, x)
		for i := range s {
			if &s[i] != x {
				w.cancel(&s[i]) // in the same slot, due, not fired yet
			}
		}
		w.arm(x, 0)                 // again: at the next tick, not in this round
		w.arm(&s[0], 3*time.Second) // and this one later, whether it has fired or not
	})
	if len(fired) != 1 {
		t.Fatalf("fired: got %d timers; want the first to cancel the others", len(fired))
	}
	w.cancel(fired[0])
	w.arm(fired[0], 10*time.Second)
	again := expireAll(w, 4*time.Second)
	want := 1
	if fired[0] == &s[0] {
		want = 0
	}
	if len(again) != want {
		t.Errorf("fired at 4s: got %d timers; want %d", len(again), want)
	}
}

// TestWheel_AgreesWithASortedList arms, moves and cancels at random, with short and very long deadlines and
// jumps of time, also from within firing timers.
func TestWheel_AgreesWithASortedList(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		w := newWheel()
		sessions := make([]session, 1+rnd.IntN(200))
		due := map[*session]int64{} // the tick at which each armed timer is due
		now := time.Duration(rnd.Int64N(int64(time.Hour)))
		w.expire(now, func(*session) { t.Fatal("an empty wheel fired") })

		some := func() *session { return &sessions[rnd.IntN(len(sessions))] }
		span := func() time.Duration {
			most := []time.Duration{wheelTick, time.Second, 64 * time.Second, 70 * time.Second, time.Hour}
			return time.Duration(rnd.Int64N(int64(most[rnd.IntN(len(most))])))
		}
		arm := func(s *session) {
			deadline := now + span()
			w.arm(s, deadline)
			// The first whole tick from the deadline on, and never one that is over.
			due[s] = max(int64((deadline+wheelTick-1)/wheelTick), int64(now/wheelTick)+1)
		}
		cancel := func(s *session) {
			w.cancel(s)
			delete(due, s)
		}
		for range 2000 {
			switch rnd.IntN(4) {
			case 0, 1:
				arm(some())
			case 2:
				cancel(some())
			case 3:
				next := w.due()
				if len(due) == 0 && next != never {
					t.Fatalf("due with nothing armed: got %v; want never", next)
				}
				if len(due) > 0 && int64(next/wheelTick) > slices.Min(ticks(due)) {
					t.Fatalf("due at %v: got %v; the first timer is at tick %d", now, next, slices.Min(ticks(due)))
				}
				now += span()
				tick := int64(now / wheelTick)
				w.expire(now, func(s *session) {
					at, armed := due[s]
					if !armed || at > tick {
						t.Fatalf("fired at tick %d: armed %v, due %d", tick, armed, at)
					}
					delete(due, s)
					switch rnd.IntN(4) {
					case 0:
						arm(s)
					case 1:
						arm(some())
					case 2:
						cancel(some())
					}
				})
				for _, at := range ticks(due) {
					if at <= tick {
						t.Fatalf("not fired at tick %d: due %d", tick, at)
					}
				}
			}
			if w.armed != len(due) {
				t.Fatalf("armed: got %d; want %d", w.armed, len(due))
			}
		}
	}
}

func ticks(due map[*session]int64) []int64 {
	var all []int64
	for _, at := range due {
		all = append(all, at)
	}
	return all
}

// BenchmarkWheel is what a session costs the wheel: armed once, cancelled at its end, among many others; and
// the look at the wheel in each round of the loop.
func BenchmarkWheel(b *testing.B) {
	b.ReportAllocs()
	w := newWheel()
	sessions := make([]session, 10_000)
	for i := range sessions {
		w.arm(&sessions[i], time.Hour+time.Duration(i)*time.Millisecond)
	}
	now, fire := time.Duration(0), func(s *session) { b.Error("fired") }
	for i := 0; b.Loop(); i++ {
		s := &sessions[i*7919%len(sessions)]
		now += 10 * time.Microsecond
		w.cancel(s)
		w.arm(s, now+time.Hour)
		w.expire(now, fire)
	}
}
