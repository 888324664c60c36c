package fleet

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	step        = 100 * time.Millisecond // of the timeline
	twentieth   = 20
	comeBack    = time.Second // within which clients whose connection broke come again
	warmUpParts = 5           // one of so many parts of the run is not counted
)

// simulation is a run under way.
type simulation struct {
	cfg  Config
	rnd  *rand.Rand
	now  time.Duration
	ends ends
	back []time.Duration // when clients come again, sorted

	weights  []int32
	seen     []int32 // the weights as the fronts see them: 0 for a backend that is away
	backends []backend
	fronts   []front
	exact    *view
	urn      urn
	mu       float64 // of the law of how long a connection takes
	mean     float64

	waits    histogram
	result   Result
	sumMax   float64
	moments  int
	counting bool
}

type backend struct {
	weight, places int32
	busy           int32
	queue          []waiting
	head           int
	epoch          int32 // connections of an earlier one are broken
	dead           bool
	published      int32
}

func (b *backend) conns() int32 { return b.busy + int32(len(b.queue)-b.head) }

type waiting struct {
	since time.Duration
	front int32
	epoch int32 // of the front
}

type front struct {
	*view
	epoch int32
	own   []int32 // its connections by backend; nil where it goes by no published counts
	then  []int32 // and at the backend's last publication
}

// Run runs cfg.
func Run(cfg Config) (*Result, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &simulation{cfg: cfg, rnd: rand.New(rand.NewPCG(cfg.Seed, 1)), result: Result{Config: cfg}}
	s.prepare()
	s.run()
	return s.finish(), nil
}

func (s *simulation) prepare() {
	c := &s.cfg
	sum := int32(0)
	for i := range c.Backends {
		w := int32(1)
		if i%3 == 2 {
			w = 2
		}
		s.weights = append(s.weights, w)
		sum += w
	}
	s.mean = c.Hold.Seconds()
	places := int32(math.Ceil(c.Rate * s.mean / c.Load / float64(sum)))
	for _, w := range s.weights {
		s.backends = append(s.backends, backend{weight: w, places: w * places})
	}
	s.mu = math.Log(s.mean) - c.Spread*c.Spread/2
	s.seen = append(s.seen, s.weights...)
	s.urn.fill(s.seen)
	if c.Policy == Exact {
		s.exact = s.newView()
	}
	for range c.Fronts {
		f := front{}
		switch c.Policy {
		case Exact, Random, RoundRobin:
		default:
			f.view = s.newView()
			if c.published() {
				f.own, f.then = make([]int32, c.Backends), make([]int32, c.Backends)
			}
		}
		if c.Policy == RoundRobin {
			f.view = s.newView() // its loads stay 0: it takes turns
		}
		s.fronts = append(s.fronts, f)
	}
}

// newView is the view of a front that has just begun.
func (s *simulation) newView() *view {
	unit := 1
	if s.cfg.Policy == Scaled || s.cfg.Policy == Shared {
		unit = s.cfg.Fronts
	}
	return newView(s.weights, s.shuffled(), unit)
}

// shuffled is an order of the backends that is a front's own, as nothing keeps fronts from starting alike.
func (s *simulation) shuffled() []int32 {
	order := make([]int32, s.cfg.Backends)
	for i, b := range s.rnd.Perm(len(order)) {
		order[i] = int32(b)
	}
	return order
}

// run goes from event to event until the time is over.
func (s *simulation) run() {
	c := &s.cfg
	warm := c.Time / warmUpParts
	arrival := s.nextArrival()
	sample, publish := step, time.Duration(math.MaxInt64)
	next := 0 // the backend that publishes next
	perHost := time.Duration(0)
	if c.published() {
		perHost = max(c.Age/time.Duration(c.Backends), 1)
		publish = perHost
	}
	plan := s.plan()
	for {
		at := min(arrival, sample, publish)
		if len(s.ends) > 0 {
			at = min(at, s.ends[0].at)
		}
		if len(s.back) > 0 {
			at = min(at, s.back[0])
		}
		if len(plan) > 0 {
			at = min(at, plan[0].at)
		}
		if at > c.Time {
			return
		}
		s.now, s.counting = at, at >= warm
		switch {
		case len(plan) > 0 && plan[0].at == at:
			plan[0].do()
			plan = plan[1:]
		case len(s.ends) > 0 && s.ends[0].at == at:
			s.ended(s.ends.pop())
		case publish == at:
			s.publish(int32(next))
			if next++; next == c.Backends {
				next = 0
			}
			publish += perHost
		case sample == at:
			s.sample()
			sample += step
		case len(s.back) > 0 && s.back[0] == at:
			s.back = s.back[1:]
			s.arrive()
		default:
			s.arrive()
			arrival = s.now + s.nextArrival()
		}
	}
}

// planned is something that happens at a set time.
type planned struct {
	at time.Duration
	do func()
}

func (s *simulation) plan() []planned {
	t := s.cfg.Time
	switch s.cfg.Event {
	case TenthDies:
		each := func(do func(b int32)) func() {
			return func() {
				for b := int32(0); int(b) < len(s.backends); b += 10 {
					do(b)
				}
				s.urn.fill(s.seen)
			}
		}
		return []planned{
			{t / 3, each(s.die)},
			{t/3 + s.cfg.Detect, each(func(b int32) { s.see(b, 0) })},
			{2 * t / 3, each(func(b int32) { s.backends[b].dead = false; s.see(b, s.weights[b]) })},
		}
	case FrontsRestart:
		return []planned{{t / 2, s.restart}}
	}
	return nil
}

// see has every front see the backend away, with weight 0, or back.
func (s *simulation) see(b, weight int32) {
	s.seen[b] = weight
	if s.exact != nil {
		s.exact.setWeight(b, weight)
	}
	for i := range s.fronts {
		if v := s.fronts[i].view; v != nil {
			v.setWeight(b, weight)
		}
	}
}

func (s *simulation) nextArrival() time.Duration {
	return max(time.Duration(s.rnd.ExpFloat64()/s.cfg.Rate*float64(time.Second)), 1)
}

func (s *simulation) duration() time.Duration {
	x := s.mean * s.rnd.ExpFloat64()
	if s.cfg.Spread > 0 {
		x = math.Exp(s.mu + s.cfg.Spread*s.rnd.NormFloat64())
	}
	return max(time.Duration(x*float64(time.Second)), 1)
}

// arrive has a client come to a front, which chooses a backend for it.
func (s *simulation) arrive() {
	s.result.Connections++
	fi := int32(s.rnd.IntN(len(s.fronts)))
	f := &s.fronts[fi]
	b := s.choose(f)
	for tries := 0; b >= 0 && s.backends[b].dead; tries++ {
		s.result.Retries++
		if b = s.urn.draw(s.rnd); tries == 10 {
			return // refused by so many: the client has an error
		}
	}
	if b < 0 {
		return
	}
	s.count(f, b, 1)
	x := &s.backends[b]
	w := waiting{s.now, fi, f.epoch}
	if x.busy < x.places {
		s.serve(b, w)
		return
	}
	x.queue = append(x.queue, w)
}

// choose is the policy.
func (s *simulation) choose(f *front) int32 {
	switch s.cfg.Policy {
	case Random:
		return s.urn.draw(s.rnd)
	case Exact:
		return s.exact.least()
	case TwoChoices, PublishedTwo:
		i, j := s.urn.draw(s.rnd), s.urn.draw(s.rnd)
		if i < 0 {
			return -1
		}
		b := f.lighter(i, j)
		f.picked(b)
		return b
	}
	return f.least()
}

// count has those who can know of it know that a connection of front f with b began (d 1) or ended (-1).
func (s *simulation) count(f *front, b, d int32) {
	switch {
	case s.exact != nil:
		s.exact.setLoad(b, s.exact.load[b]+d)
	case s.cfg.Policy == Local || s.cfg.Policy == TwoChoices:
		f.setLoad(b, f.load[b]+d)
	case f.own != nil:
		f.own[b] += d
		f.setLoad(b, s.estimate(f, b))
	}
}

// estimate is what a front that goes by published counts takes b's load for.
func (s *simulation) estimate(f *front, b int32) int32 {
	switch n := int32(len(s.fronts)); s.cfg.Policy {
	case Scaled:
		return s.backends[b].published + n*(f.own[b]-f.then[b])
	case Shared:
		return n*f.own[b] + s.backends[b].published
	}
	return s.backends[b].published + f.own[b] - f.then[b]
}

// serve begins to serve a connection on a free place of b.
func (s *simulation) serve(b int32, w waiting) {
	x := &s.backends[b]
	x.busy++
	s.ends.push(end{s.now + s.duration(), b, w.front, x.epoch, w.epoch})
	if s.counting {
		s.waits.add(s.now - w.since)
	}
}

// ended has a connection end, and the next one of the backend's queue begin.
func (s *simulation) ended(e end) {
	x := &s.backends[e.backend]
	if e.epoch != x.epoch {
		return // it broke when the backend died
	}
	f := &s.fronts[e.front]
	if e.frontEpoch == f.epoch {
		s.count(f, e.backend, -1)
		s.result.Served++
	}
	x.busy--
	for x.head < len(x.queue) && x.busy < x.places {
		w := x.queue[x.head]
		x.head++
		if w.epoch == s.fronts[w.front].epoch {
			s.serve(e.backend, w)
		}
	}
	if x.head == len(x.queue) {
		x.queue, x.head = x.queue[:0], 0
	}
}

// publish has the host of b publish its count, if it has changed by a twentieth.
func (s *simulation) publish(b int32) {
	x := &s.backends[b]
	if x.dead {
		return
	}
	n := x.conns()
	if d := n - x.published; d == 0 || (d < 0 && -d*twentieth < x.published) || (d > 0 && d*twentieth < x.published) {
		return
	}
	x.published = n
	if s.counting {
		s.result.Writes++
	}
	for i := range s.fronts {
		f := &s.fronts[i]
		if f.own == nil {
			return
		}
		f.then[b] = f.own[b]
		f.setLoad(b, s.estimate(f, b))
	}
}

// die kills b with all its connections. Their clients come again.
func (s *simulation) die(b int32) {
	x := &s.backends[b]
	n := int(x.conns())
	x.epoch++
	x.dead, x.busy, x.queue, x.head = true, 0, nil, 0
	x.published = 0
	if s.exact != nil {
		s.exact.setLoad(b, 0)
	}
	for i := range s.fronts {
		f := &s.fronts[i]
		if f.own != nil {
			f.own[b], f.then[b] = 0, 0
		}
		if f.view != nil && s.cfg.Policy != RoundRobin {
			f.setLoad(b, 0)
		}
	}
	s.broken(n)
}

// broken has n clients come again.
func (s *simulation) broken(n int) {
	s.result.Broken += int64(n)
	for range n {
		s.back = append(s.back, s.now+time.Duration(s.rnd.Int64N(int64(comeBack)))+1)
	}
	slices.Sort(s.back)
}

// restart ends all sessions of all fronts; the fronts know then what is published, and nothing of their own.
func (s *simulation) restart() {
	n := 0
	for b := range s.backends {
		x := &s.backends[b]
		n += int(x.conns())
		x.epoch++
		x.busy, x.queue, x.head = 0, nil, 0
		if s.exact != nil {
			s.exact.setLoad(int32(b), 0)
		}
	}
	for i := range s.fronts {
		f := &s.fronts[i]
		f.epoch++
		switch {
		case f.view == nil:
		case f.own != nil:
			clear(f.own)
			clear(f.then)
			f.view = s.newView()
			for b := range s.backends {
				f.setLoad(int32(b), s.backends[b].published)
			}
		default:
			f.view = s.newView()
		}
	}
	s.broken(n)
}

// sample notes the imbalance.
func (s *simulation) sample() {
	if !s.counting {
		return
	}
	most, sum, weight, queued := 0.0, 0, 0, 0
	for i := range s.backends {
		x := &s.backends[i]
		if x.dead {
			continue
		}
		n := int(x.conns())
		most = max(most, float64(n)/float64(x.weight))
		sum += n
		weight += int(x.weight)
		queued += len(x.queue) - x.head
	}
	if sum == 0 {
		return
	}
	imbalance := most * float64(weight) / float64(sum)
	s.sumMax += imbalance
	s.moments++
	s.result.WorstImbalance = max(s.result.WorstImbalance, imbalance)
	s.result.Timeline = append(s.result.Timeline, Moment{s.now, imbalance, queued})
}

func (s *simulation) finish() *Result {
	r := &s.result
	r.Imbalance = s.sumMax / float64(max(s.moments, 1))
	r.WaitP50, r.WaitP99, r.WaitMax = s.waits.quantile(0.5), s.waits.quantile(0.99), s.waits.most
	if s.waits.n > 0 {
		r.Waited = 1 - float64(s.waits.zero)/float64(s.waits.n)
	}
	r.Writes /= (s.cfg.Time - s.cfg.Time/warmUpParts).Seconds()
	return r
}
