package backends

// SetWindow limits how many connections may be on their way to b and not taken by it yet: so many are given
// to it, and no more until it has taken one (Taken). It is as a backlog is: a backend whose window is full is
// busy, not gone. 0, which is the default, is no limit, and then Taken is not called. Set it before b is
// selectable; a change from 0 or to 0 later is not counted right.
func (p *Pool) SetWindow(b *Backend, n int) {
	p.mu.Lock()
	b.window.Store(int32(n))
	p.policy.Update(b)
	p.settleAndUnlock()
}

// Window is the limit that SetWindow has set.
func (b *Backend) Window() int { return int(b.window.Load()) }

// Untaken is how many connections b was given that it has not taken yet.
func (b *Backend) Untaken() int64 { return b.untaken.Load() }

func (b *Backend) windowFull() bool {
	window := b.window.Load()
	return window > 0 && b.untaken.Load() >= int64(window)
}

// Taken reports that b has taken a connection whose slot Acquire reserved. The slot stays held until Release.
// It is safe for concurrent use, and locks only where the window was full.
func (p *Pool) Taken(b *Backend) {
	left := b.untaken.Add(-1)
	if left < 0 {
		panic("BUG: backends: more connections taken than given")
	}
	// A Take under way has updated the policy by what it saw: with one place less, or with the one that is
	// free now.
	if left+1 < int64(b.window.Load()) {
		return
	}
	p.mu.Lock()
	p.roomAndUnlock(b)
}

// ReleaseUntaken is Release for a connection that b has not taken. Where b has no window they are the same.
func (p *Pool) ReleaseUntaken(b *Backend) {
	if b.window.Load() > 0 && b.untaken.Add(-1) < 0 {
		panic("BUG: backends: more connections taken than given")
	}
	p.Release(b)
}
