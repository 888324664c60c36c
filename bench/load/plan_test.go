package load

import (
	"math"
	"testing"
	"time"
)

func TestPlan_SameSeedGivesTheSameRequests(t *testing.T) {
	for _, shape := range []Shape{
		{Rate: 500, Duration: 2 * time.Second, Law: MustLaw("exponential:10ms")},
		{Rate: 500, Conns: 16, Late: 8, LateAt: time.Second, Duration: 2 * time.Second, Law: MustLaw("exponential:10ms")},
		{Conns: 4, Duration: 2 * time.Second, Law: MustLaw("exponential:10ms")},
	} {
		if a, b := NewPlan(shape, 7).Digest(), NewPlan(shape, 7).Digest(); a != b {
			t.Errorf("%+v: got %s and %s; want one plan", shape, a, b)
		}
		if a, b := NewPlan(shape, 7).Digest(), NewPlan(shape, 8).Digest(); a == b {
			t.Errorf("%+v: got %s for two seeds; want two plans", shape, a)
		}
	}
}

func TestPlan_AnotherLawLeavesTheArrivals(t *testing.T) {
	a := NewPlan(Shape{Rate: 500, Duration: time.Second, Law: MustLaw("constant:1ms")}, 1)
	b := NewPlan(Shape{Rate: 500, Duration: time.Second, Law: MustLaw("exponential:9ms")}, 1)
	for i := range a.Arrivals {
		if a.Arrivals[i].At != b.Arrivals[i].At {
			t.Fatalf("arrival %d: got %v and %v; want the same moment", i, a.Arrivals[i].At, b.Arrivals[i].At)
		}
	}
}

func TestPlan_ArrivalsAreAPoissonProcess(t *testing.T) {
	const rate = 1000.0
	p := NewPlan(Shape{Rate: rate, Duration: 100 * time.Second}, 1)
	n := float64(len(p.Arrivals))
	if math.Abs(n/(rate*100)-1) > 0.02 {
		t.Errorf("got %v arrivals; want %v within 2%%", n, rate*100)
	}
	// Of exponential gaps the deviation is the mean.
	var sum, squares float64
	for i := 1; i < len(p.Arrivals); i++ {
		gap := (p.Arrivals[i].At - p.Arrivals[i-1].At).Seconds()
		sum += gap
		squares += gap * gap
	}
	mean := sum / (n - 1)
	if variation := math.Sqrt(squares/(n-1)-mean*mean) / mean; math.Abs(variation-1) > 0.02 {
		t.Errorf("got the coefficient of variation %v; want 1", variation)
	}
}

func TestPlan_LateConnectionsCarryNothingBeforeTheyAreOpen(t *testing.T) {
	p := NewPlan(Shape{Rate: 1000, Conns: 8, Late: 4, LateAt: time.Second, Duration: 2 * time.Second}, 1)
	used := make(map[int]bool)
	for _, a := range p.Arrivals {
		if a.At < time.Second && a.Conn >= 4 {
			t.Fatalf("got connection %d at %v; want none of the late ones before 1s", a.Conn, a.At)
		}
		used[a.Conn] = true
	}
	if len(used) != 8 {
		t.Errorf("got %d connections in use; want 8", len(used))
	}
}

func TestShape_ValidateSaysWhatIsWrong(t *testing.T) {
	for _, s := range []Shape{
		{Rate: -1, Duration: time.Second}, {Rate: 1e9, Duration: time.Second}, {Duration: time.Second},
		{Rate: 1}, {Rate: 1, Conns: 2, Late: 2, Duration: time.Second}, {Conns: maxConns + 1, Duration: time.Second},
	} {
		if s.Validate() == nil {
			t.Errorf("%+v: got no fault; want one", s)
		}
	}
}
