package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// ErrBusy means that a worker has not come to the connection that it is probed with, and took others
// meanwhile.
var ErrBusy = errors.New("it takes connections, and has not come to this one yet")

// Probe gives b's worker a connection of lb's own, and returns lb's end of it once the worker has taken it.
// The error is ctx's, ErrBusy in place of the deadline's where the worker took others while Probe waited, or
// ErrNoChannel. A worker that has not taken the one before is given no second one. Whatever comes of it, the
// worker keeps what it was given: how long it may take for a client is for handoff_timeout to say.
func (p *Proxy) Probe(ctx context.Context, b *backends.Backend) (*os.File, error) {
	ch := channelOf(b)
	if ch == nil {
		return nil, ErrNoChannel
	}
	for start := p.since(); ; {
		near, h, err := ch.giveProbe()
		if err != nil {
			return nil, err
		}
		select {
		case <-h.done:
			switch {
			case near >= 0 && !h.lost:
				return os.NewFile(uintptr(near), "probe"), nil
			case near >= 0: // taken back with all that the worker had not taken
				closeFD(near)
			}
			if ctx.Err() == nil {
				continue
			}
			return nil, ctx.Err()
		case <-ctx.Done():
		}
		if near >= 0 {
			closeFD(near)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && ch.tookSince(start) {
			return nil, ErrBusy
		}
		return nil, ctx.Err()
	}
}

// giveProbe gives the worker a connection of lb's own, whose other end is near; -1 if one is on its way
// already, which is h then.
func (ch *Channel) giveProbe() (near int32, h *handed, err error) {
	near, far, err := loopbackPair()
	if err != nil {
		return -1, nil, fmt.Errorf("cannot make a connection to probe with: %w", err)
	}
	h = &handed{done: make(chan struct{}), since: ch.p.since()}
	if h.cookie, err = cookieOf(far); err == nil {
		ch.mu.Lock()
		if before := ch.probe; before != nil {
			ch.mu.Unlock()
			closeFD(near)
			closeFD(far)
			return -1, before, nil
		}
		ch.probe = h
		ch.mu.Unlock()
		if _, errno := ch.give(h, far, h.since); errno != 0 {
			ch.mu.Lock()
			ch.probe = nil
			ch.mu.Unlock()
			err = fmt.Errorf("%w: %w", ErrNoChannel, errno)
		}
	}
	if err != nil {
		closeFD(near)
		closeFD(far)
		return -1, nil, err
	}
	return near, h, nil
}

// tookSince reports whether the worker has taken a connection after that moment.
func (ch *Channel) tookSince(start time.Duration) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.tookAt > start
}
