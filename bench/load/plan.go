package load

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Shape says what load a plan is of.
type Shape struct {
	// Rate is how many requests begin a second, in an open loop; 0 is a closed loop.
	Rate float64 `json:"rate_per_s,omitempty"`
	// Conns is how many connections are kept alive, or how many clients a closed loop has. 0 is a new
	// connection for each request of an open loop.
	Conns int `json:"conns,omitempty"`
	// NewConn has the clients of a closed loop open a connection for each request.
	NewConn bool `json:"new_conn,omitempty"`
	// Late is how many of the kept connections are opened only at LateAt after the beginning; until then the
	// others carry the load.
	Late   int           `json:"late,omitempty"`
	LateAt time.Duration `json:"late_at_ns,omitempty"`
	// Duration is how long requests begin.
	Duration time.Duration `json:"duration_ns"`
	// Law is of the service times.
	Law Law `json:"-"`
}

// Validate returns all faults of the shape.
func (s Shape) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(s.Rate >= 0 && s.Rate <= 100_000, "rate: %g is not within 0..100000 requests a second", s.Rate)
	check(s.Conns >= 0 && s.Conns <= maxConns, "conns: %d is not within 0..%d", s.Conns, maxConns)
	check(s.Rate > 0 || s.Conns > 0, "conns: a closed loop has at least 1 client")
	check(s.Late >= 0 && s.Late < max(s.Conns, 1), "late: %d is not below the %d connections", s.Late, s.Conns)
	check(s.Duration > 0 && s.Duration <= time.Hour, "duration: %v is not within 1ns..1h", s.Duration)
	return errors.Join(errs...)
}

// Arrival is one request of an open loop.
type Arrival struct {
	// At is when it begins, after the beginning of the load.
	At time.Duration
	// Service is how long it keeps a worker.
	Service time.Duration
	// Conn is the kept connection that it goes over; -1 is a new one.
	Conn int
}

// Plan is a load with all that chance decides.
type Plan struct {
	Shape
	// Arrivals are in the order of their time; none in a closed loop.
	Arrivals []Arrival
	// services are of a closed loop, one list a client, begun anew when it ends.
	services [][]time.Duration
}

// closedServices is how many service times a client of a closed loop has before they repeat.
const closedServices = 4096

// NewPlan makes a plan. The same shape and seed always give the same plan.
func NewPlan(s Shape, seed uint64) *Plan {
	p := &Plan{Shape: s}
	// Two streams, so that another law leaves the arrivals as they are.
	when, what := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
	if s.Rate == 0 {
		for range s.Conns {
			list := make([]time.Duration, closedServices)
			for i := range list {
				list[i] = s.Law.Quantile(what.Float64())
			}
			p.services = append(p.services, list)
		}
		return p
	}
	for at := 0.0; ; {
		at += when.ExpFloat64() / s.Rate
		a := Arrival{At: time.Duration(at * float64(time.Second)), Service: s.Law.Quantile(what.Float64()), Conn: -1}
		if a.At >= s.Duration {
			return p
		}
		if s.Conns > 0 {
			open := s.Conns
			if a.At < s.LateAt {
				open -= s.Late
			}
			a.Conn = when.IntN(open)
		}
		p.Arrivals = append(p.Arrivals, a)
	}
}

// Digest names the plan: plans with the same digest have the same requests at the same moments.
func (p *Plan) Digest() string {
	h := fnv.New64a()
	var b [24]byte
	for _, a := range p.Arrivals {
		binary.LittleEndian.PutUint64(b[0:], uint64(a.At))
		binary.LittleEndian.PutUint64(b[8:], uint64(a.Service))
		binary.LittleEndian.PutUint64(b[16:], uint64(a.Conn))
		h.Write(b[:])
	}
	for _, list := range p.services {
		for _, d := range list {
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(d)))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
