package load

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/273ebdf9/lb/internal/clock"
)

// Checked is what came of holding the client against a server whose latency is known.
type Checked struct {
	Law string `json:"law"`
	// Requests is how many there were.
	Requests  int        `json:"requests"`
	Quantiles []Quantile `json:"quantiles"`
	// LagP99 is the client's own lag.
	LagP99 time.Duration `json:"lag_p99_ns"`
	// Behind says that the client could not keep its schedule; "" if it could.
	Behind string `json:"behind,omitempty"`
}

// Quantile is one known quantile and the measured one.
type Quantile struct {
	Q        float64       `json:"q"`
	Known    time.Duration `json:"known_ns"`
	Measured time.Duration `json:"measured_ns"`
}

// Error is by how much the measured one is off, as a part of the known one.
func (q Quantile) Error() float64 { return float64(q.Measured)/float64(q.Known) - 1 }

// Tolerance is up to which error the client's figures are good.
const Tolerance = 0.02

// OK says whether every quantile is within the tolerance and the schedule was kept.
func (c *Checked) OK() bool {
	return c.Behind == "" && !slices.ContainsFunc(c.Quantiles, func(q Quantile) bool {
		return q.Error() > Tolerance || q.Error() < -Tolerance
	})
}

// CheckQuietly is Check, again if it was not OK, up to three times: what disturbs the machine for a moment
// says nothing about the load generator.
func CheckQuietly(ctx context.Context, law Law, n int, rate float64, seed uint64) (c *Checked, err error) {
	for range 3 {
		if c, err = Check(ctx, law, n, rate, seed); err != nil || c.OK() {
			break
		}
	}
	return c, err
}

// Check sends n requests at the rate to a server in this process that answers each, however many there are at
// a time, after its service time, and compares the quantiles of the measured latency with those of the law.
// The service times are n equally likely ones in random order, the k-th least at k/n of the law, so that
// chance does not blur what is compared.
func Check(ctx context.Context, law Law, n int, rate float64, seed uint64) (*Checked, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot check the load generator: %w", err)
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer ln.Close()
	all.Go(func() { serveAtOnce(ln, &all) })

	plan := &Plan{Shape: Shape{Rate: rate, Law: law}}
	random := rand.New(rand.NewPCG(seed, 3))
	at := 0.0
	for _, i := range random.Perm(n) {
		at += random.ExpFloat64() / rate
		plan.Arrivals = append(plan.Arrivals, Arrival{
			At: time.Duration(at * float64(time.Second)), Service: law.Quantile(min(float64(i+1), float64(n)-0.5) / float64(n)), Conn: -1,
		})
	}
	r, err := Run(ctx, plan, Target{Address: ln.Addr().String(), Timeout: time.Minute}, nil)
	if err != nil {
		return nil, err
	}
	h := newHistogram()
	for i := range r.Outcomes {
		if f := r.Outcomes[i].Failure; f != "" {
			return nil, fmt.Errorf("cannot check the load generator: a request failed: %s", f)
		}
		h.RecordValue(r.Outcomes[i].Latency().Microseconds())
	}
	c := &Checked{Law: law.String(), Requests: n, LagP99: r.LagP99(), Behind: r.Behind()}
	for _, q := range []float64{0.5, 0.9, 0.99} {
		c.Quantiles = append(c.Quantiles, Quantile{Q: q, Known: law.Quantile(q), Measured: time.Duration(h.ValueAtQuantile(q*100)) * time.Microsecond})
	}
	return c, nil
}

// serveAtOnce answers every request after its service time, until the listener is closed.
func serveAtOnce(ln net.Listener, all *sync.WaitGroup) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		arrived := clock.Monotonic()
		all.Go(func() {
			defer conn.Close()
			timer, err := newAlarm()
			if err != nil {
				return
			}
			defer timer.close()
			var head []byte
			in := readers.Get().(*bufio.Reader)
			defer readers.Put(in)
			in.Reset(conn)
			for {
				line, err := in.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 2 {
					break
				}
				head = append(head, line...)
			}
			ns, _ := strconv.ParseInt(header(head, serviceHeader), 10, 64)
			if timer.until(arrived+time.Duration(ns)) != nil {
				return
			}
			conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"))
		})
	}
}
