package daemon

import (
	"context"
	"sync"
)

// background is the daemon's goroutines: probes, look-ups, the control API, whatever a signal asks for. They
// end soon after end is called.
type background struct {
	ctx     context.Context // done once they are to end
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newBackground() *background {
	b := &background{}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// run runs f on a goroutine of its own. While lb may be stopping already, daemon.runUnlessStopping is right.
func (b *background) run(f func()) { b.running.Go(f) }

// end tells the goroutines to end. The caller waits for them.
func (b *background) end() { b.cancel() }

// wait returns when all goroutines have ended.
func (b *background) wait() { b.running.Wait() }
