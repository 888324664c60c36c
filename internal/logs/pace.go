package logs

import (
	"sync"
	"time"
)

const (
	// paceShare is the part of one CPU that all paced work may cost, as a divisor.
	paceShare = 4
	// paceBurst is how much of it may be saved up, paceDebt how far it may be overdrawn.
	paceBurst = 250 * time.Millisecond
	paceDebt  = time.Second
)

// Pace bounds what the output of all workers costs together: the zero value allows a quarter of one CPU.
// Those who ask take turns in the order in which they do, so that each gets as much as the others. Safe for
// concurrent use.
type Pace struct {
	mu   sync.Mutex
	next time.Time // when what was allowed so far is worked off
}

// Spend notes work that cost so much, and returns how long to wait before the next.
func (p *Pace) Spend(cost time.Duration) (wait time.Duration) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if earliest := now.Add(-paceBurst * paceShare); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(cost * paceShare)
	if latest := now.Add(paceDebt); p.next.After(latest) {
		p.next = latest
	}
	return max(p.next.Sub(now), 0)
}
