package supervisor

import (
	"fmt"
	"slices"
	"time"
)

// drainLook is how often the connections of draining workers are counted.
const drainLook = 50 * time.Millisecond

// lookSoon runs look after drainLook.
func (p *Pool) lookSoon() {
	if p.looking {
		return
	}
	p.looking = true
	time.AfterFunc(drainLook, func() { p.post(p.look) })
}

// look lets those stop that have no connections left. Two looks must agree: the front may still be hearing of
// it.
func (p *Pool) look() {
	p.looking = false
	for _, w := range slices.Clone(p.workers) {
		if w.state != draining {
			continue
		}
		n := 0
		if p.Hooks.Sessions != nil && w.end != nil {
			n = p.Hooks.Sessions(w.end.backend)
		}
		if n > 0 {
			w.quiet = 0
		} else {
			w.quiet++
		}
		if w.quiet >= 2 {
			p.fire(w, drained, "no connections left")
		} else {
			p.lookSoon()
		}
	}
}

// boundDraining stops the oldest of more than max_draining.
func (p *Pool) boundDraining() {
	if p.cfg.MaxDraining == 0 {
		return
	}
	n := 0
	var oldest *worker
	for _, w := range p.workers {
		if w.state == draining {
			n++
			if oldest == nil || w.since.Before(oldest.since) {
				oldest = w
			}
		}
	}
	if n > p.cfg.MaxDraining {
		p.fire(oldest, drained, fmt.Sprintf("more than %d drain (max_draining)", p.cfg.MaxDraining))
	}
}
