package backends

import "time"

// noteLocked adds a change to those that emit will emit.
func (p *Pool) noteLocked(b *Backend, field, from, to, reason string, lasted time.Duration) {
	if p.OnChange == nil {
		return
	}
	left, total := p.Selectable()
	p.changes = append(p.changes, Change{
		Time: time.Now(), Pool: p.Name, Backend: b.Name,
		Field: field, From: from, To: to, Reason: reason, Lasted: lasted,
		Left: left, Total: total,
	})
}

// emit calls OnChange for what has been noted, in order. One goroutine at a time does it for all, so that the
// last call for a backend says how the backend is.
func (p *Pool) emit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.emitting {
		return
	}
	p.emitting = true
	for len(p.changes) > 0 {
		batch := p.changes
		p.changes = nil
		p.mu.Unlock()
		for _, c := range batch {
			p.OnChange(c)
		}
		p.mu.Lock()
	}
	p.emitting = false
}
