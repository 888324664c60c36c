package backends

import "time"

const (
	// slowStartFloor is the part of its weight, in units of 1/WeightScale, with which a backend starts: not
	// 0, so that it gets connections at low load too.
	slowStartFloor = WeightScale / 100
	// A slow start goes in a hundred steps, and these bound how long each of them takes.
	minRampStep = 10 * time.Millisecond
	maxRampStep = time.Second
)

// ramp is the clock of slow starts. It runs only while a member starts slowly.
type ramp struct {
	timer   *time.Timer // made at the first slow start
	running bool
}

// fullWeight returns the effective weight of b outside of a slow start.
func (b *Backend) fullWeight() int64 { return int64(b.weight.Load()) * WeightScale }

// riseLocked notes that b has come up at now, and begins its slow start.
//
// Only a backend that joins others which have been up for long begins slowly. What was there before the
// pool's first connection has all of its weight when it comes up for the first time; and where all have just
// come up, no other backend is there to carry what a slow one would not take.
func (p *Pool) riseLocked(b *Backend, now time.Time) {
	first := !b.rose
	b.rose, b.rampFrom = true, time.Time{}
	if first && b.original {
		b.upSince = time.Time{}
	} else {
		b.upSince = now
		if p.Config().SlowStart > 0 && p.seasonedLocked(b.backup.Load(), now) {
			b.rampFrom = now
		}
	}
	p.weighLocked(b, now)
}

// endRampLocked ends b's slow start.
func (p *Pool) endRampLocked(b *Backend) {
	b.rampFrom = time.Time{}
	p.weighLocked(b, time.Now())
}

// seasonedLocked reports whether a selectable member, of the backups or of the others, has its full weight
// and has been up for as long as a slow start takes.
func (p *Pool) seasonedLocked(backup bool, now time.Time) bool {
	slow := p.Config().SlowStart
	for _, b := range p.Backends() {
		if b.backup.Load() == backup && b.Selectable() && b.rampFrom.IsZero() && now.Sub(b.upSince) >= slow {
			return true
		}
	}
	return false
}

// weighLocked works out b's effective weight.
func (p *Pool) weighLocked(b *Backend, now time.Time) {
	weight := b.fullWeight()
	if slow := p.Config().SlowStart; !b.rampFrom.IsZero() && slow > 0 {
		part := int64(WeightScale * min(float64(now.Sub(b.rampFrom))/float64(slow), 1))
		weight = weight * max(part, slowStartFloor) / WeightScale
	}
	if b.effective.Swap(weight) != weight {
		p.policy.Update(b)
	}
}

// rampLocked updates the weights of the members that start slowly, and keeps the clock running while there
// are any.
func (p *Pool) rampLocked(now time.Time) {
	slow := p.Config().SlowStart
	seasoned := [2]bool{p.seasonedLocked(false, now), p.seasonedLocked(true, now)}
	ramping := false
	for _, b := range p.Backends() {
		if b.rampFrom.IsZero() {
			continue
		}
		class := 0
		if b.backup.Load() {
			class = 1
		}
		if now.Sub(b.rampFrom) >= slow || !seasoned[class] {
			p.endRampLocked(b)
			continue
		}
		p.weighLocked(b, now)
		ramping = true
	}
	if !ramping || p.ramp.running {
		return
	}
	p.ramp.running = true
	step := min(max(slow/100, minRampStep), maxRampStep)
	if p.ramp.timer == nil {
		p.ramp.timer = time.AfterFunc(step, p.rampStep)
	} else {
		p.ramp.timer.Reset(step)
	}
}

// rampStep is called by the clock.
func (p *Pool) rampStep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ramp.running = false
	p.rampLocked(time.Now())
}
