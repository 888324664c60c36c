package load

import (
	"bufio"
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/273ebdf9/lb/internal/clock"
)

const (
	// maxConns is how many connections a client keeps.
	maxConns = 4096
	// maxInFlight is how many requests over new connections are under way at a time.
	maxInFlight = 4096
)

// Target is what a load goes to.
type Target struct {
	// Address is "host:port", or "unix:/path".
	Address string
	// Path is what is requested; "" is "/".
	Path string
	// Timeout is how long a request may take, from the moment it was to begin on; then it counts as hung.
	Timeout time.Duration
}

// Outcome is what became of one request. Its times are since the beginning of the load.
type Outcome struct {
	// Intended is when it was to begin; Began when the client began it: its connect, or its sending over a
	// kept connection.
	Intended, Began, Done time.Duration
	// Failure is why there was no answer; "" if there was one.
	Failure Failure
	// Worker is the number of the worker that served it, PID its process; -1 and 0 where the answer does not
	// tell.
	Worker, PID int
	// Begin and End are when the worker took it up and had done it; 0 where the answer does not tell.
	Begin, End time.Duration

	last bool // the server closes the connection
}

// Latency is how long it took, counted from when it was to begin.
func (o *Outcome) Latency() time.Duration { return o.Done - o.Intended }

// Result is what a load came to.
type Result struct {
	// Outcomes are in the order of their end.
	Outcomes []Outcome
	// Planned is how many requests an open loop was to send.
	Planned int
	// Lag is how much later than it could have the client began the requests, in microseconds.
	Lag *hdrhistogram.Histogram
	// Full says that at some moment no more requests could be under way, so that the load was less than
	// planned.
	Full bool
}

// A load counts as sent on schedule if the lag at its 99th percentile is at most lagLimit, or at most a fifth
// of the latency there, of which it is a part: what differs by less than a fifth is not told apart by the few
// requests beyond p99 either.
const lagLimit = 5 * time.Millisecond

// LagP99 is the 99th percentile of the lag.
func (r *Result) LagP99() time.Duration {
	return time.Duration(r.Lag.ValueAtQuantile(99)) * time.Microsecond
}

// Behind says why the figures do not count because the client could not keep the schedule; "" if it could.
func (r *Result) Behind() string {
	switch {
	case r.Full:
		return "could not keep the schedule: more requests under way than the client can have"
	case r.LagP99() > max(lagLimit, r.latencyP99()/5):
		return "could not keep the schedule: the client itself was " + r.LagP99().Round(100*time.Microsecond).String() + " late at the 99th percentile"
	}
	return ""
}

// latencyP99 is the 99th percentile of the latency of all that did not fail at once.
func (r *Result) latencyP99() time.Duration {
	h := newHistogram()
	for i := range r.Outcomes {
		if o := &r.Outcomes[i]; o.Failure == "" || o.Failure == Hung {
			h.RecordValue(o.Latency().Microseconds())
		}
	}
	return time.Duration(h.ValueAtQuantile(99)) * time.Microsecond
}

// Run carries out a plan against a target. begun, if not nil, is called at the beginning of the load with a
// function that tells how long ago that was. When Run returns, every request has an outcome and every
// connection is closed. If ctx ends, the requests under way are given up, no others begin, and the error is
// that of ctx.
func Run(ctx context.Context, p *Plan, t Target, begun func(elapsed func() time.Duration)) (*Result, error) {
	r := &runner{plan: p, target: t, ctx: ctx, lag: newHistogram()}
	r.request = requestHead(t)
	var err error
	if r.alarm, err = newAlarm(); err != nil {
		return nil, err
	}
	defer r.alarm.close()
	defer context.AfterFunc(ctx, r.alarm.close)()
	kept, err := r.openKept(ctx)
	if err != nil {
		return nil, err
	}
	r.start = clock.Monotonic()
	if begun != nil {
		begun(r.elapsed)
	}
	switch {
	case p.Rate == 0:
		r.closedLoop(kept)
	case p.Conns > 0:
		r.keptLoop(kept)
	default:
		r.newLoop()
	}
	r.all.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &Result{Outcomes: r.outcomes, Planned: len(p.Arrivals), Lag: r.lag, Full: r.full.Load()}, nil
}

// runner is a running plan.
type runner struct {
	plan    *Plan
	target  Target
	ctx     context.Context
	request []byte
	alarm   *alarm // of the pace
	start   time.Duration
	all     sync.WaitGroup
	full    atomic.Bool

	mu       sync.Mutex // guards the fields below
	outcomes []Outcome
	lag      *hdrhistogram.Histogram
}

func (r *runner) elapsed() time.Duration { return clock.Monotonic() - r.start }

// newHistogram counts microseconds up to an hour to three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Hour.Microseconds(), 3)
}

// record notes an outcome and the client's own lag.
func (r *runner) record(o Outcome, lag time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomes = append(r.outcomes, o)
	r.lag.RecordValue(max(0, lag.Microseconds()))
}

// pace calls begin for each arrival when its time has come, and returns early when ctx is over.
func (r *runner) pace(begin func(a Arrival)) {
	for _, a := range r.plan.Arrivals {
		if !r.pause(a.At) {
			return
		}
		begin(a)
	}
}

// pause sleeps until a moment after the beginning, and says whether the load goes on.
func (r *runner) pause(at time.Duration) bool {
	return at <= r.elapsed() && r.ctx.Err() == nil || r.alarm.until(r.start+at) == nil
}

// newLoop begins each request when its time has come, on a connection and a goroutine of its own.
func (r *runner) newLoop() {
	room := make(chan struct{}, maxInFlight)
	r.pace(func(a Arrival) {
		select {
		case room <- struct{}{}:
		default:
			r.full.Store(true)
			room <- struct{}{}
		}
		r.all.Go(func() {
			defer func() { <-room }()
			began := r.elapsed()
			in := readers.Get().(*bufio.Reader)
			defer readers.Put(in)
			o := r.exchange(nil, in, a.At, began, a.Service, true)
			r.record(o, began-a.At)
		})
	})
}

// keptLoop hands each request to its connection when its time has come.
func (r *runner) keptLoop(kept []net.Conn) {
	queues := make([]chan Arrival, len(kept))
	for i := range kept {
		queues[i] = make(chan Arrival, len(r.plan.Arrivals)) // the pace never waits for a connection
		r.all.Go(func() { r.keptConn(kept[i], queues[i]) })
	}
	late := r.plan.Late > 0
	r.pace(func(a Arrival) {
		if late && a.At >= r.plan.LateAt {
			late = false
			for _, q := range queues[len(queues)-r.plan.Late:] {
				q <- Arrival{Conn: -1}
			}
		}
		queues[a.Conn] <- a
	})
	for _, q := range queues {
		close(q)
	}
}

// keptConn sends the requests of one kept connection in their order. After a failure it opens it anew. One
// without a connection is told to open one by an arrival for none.
func (r *runner) keptConn(conn net.Conn, queue <-chan Arrival) {
	s := &session{runner: r, conn: conn, in: bufio.NewReaderSize(nil, 4096)}
	defer s.close()
	var free time.Duration // since when the connection could take the next request
	for a := range queue {
		if r.ctx.Err() != nil {
			return
		}
		if a.Conn < 0 {
			s.open() // a failure shows at the first request
			continue
		}
		began := r.elapsed()
		o := s.exchange(a.At, began, a.Service)
		r.record(o, began-max(a.At, free))
		free = r.elapsed()
	}
}

// closedLoop has each client send a request when the one before was answered.
func (r *runner) closedLoop(kept []net.Conn) {
	for i, list := range r.plan.services {
		r.all.Go(func() { r.client(kept[i], list) })
	}
}

// backoff is how long a client of a closed loop waits after a failure, lest it does nothing but fail.
const backoff = 10 * time.Millisecond

func (r *runner) client(conn net.Conn, services []time.Duration) {
	s := &session{runner: r, conn: conn, in: bufio.NewReaderSize(nil, 4096)}
	defer s.close()
	for i := 0; r.elapsed() < r.plan.Duration && r.ctx.Err() == nil; i++ {
		began := r.elapsed()
		o := s.exchange(began, began, services[i%len(services)])
		if r.plan.NewConn {
			s.close()
		}
		r.record(o, 0)
		if o.Failure != "" {
			time.Sleep(backoff)
		}
	}
}

// openKept opens the connections that are there from the beginning, one after the other, as clients come one
// by one.
func (r *runner) openKept(ctx context.Context) ([]net.Conn, error) {
	if r.plan.Conns == 0 {
		return nil, nil
	}
	kept := make([]net.Conn, r.plan.Conns)
	if r.plan.NewConn {
		return kept, nil
	}
	for i := range kept[:r.plan.Conns-r.plan.Late] {
		dialer := net.Dialer{Timeout: r.target.Timeout}
		conn, err := dialer.DialContext(ctx, network(r.target.Address), path(r.target.Address))
		if err != nil {
			for _, c := range slices.DeleteFunc(kept, func(c net.Conn) bool { return c == nil }) {
				c.Close()
			}
			return nil, err
		}
		kept[i] = conn
	}
	return kept, nil
}
