package daemon

import (
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// deferredSignals are the signals that came while everything was frozen.
type deferredSignals struct {
	mu        sync.Mutex
	deferring bool
	deaf      bool // see deafen
	signals   []os.Signal
	waiting   []os.Signal // of goroutines that wait for the end of an upgrade
}

// maxDeferred is how many signals wait of which there are some already.
const maxDeferred = 32

// add keeps a signal for later, if they are held now.
func (h *deferredSignals) add(sig os.Signal) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Once is enough for the others; those that scale count, within reason.
	if h.deferring && (len(h.signals) < maxDeferred || !slices.Contains(h.signals, sig)) {
		h.signals = append(h.signals, sig)
	}
	return h.deferring
}

// deferSignals has signals wait, for this code or for the next.
func (d *daemon) deferSignals() {
	d.upgrades.deferred.mu.Lock()
	defer d.upgrades.deferred.mu.Unlock()
	d.upgrades.deferred.deferring = true
}

// releaseSignals has this code do what they ask for.
func (d *daemon) releaseSignals() {
	d.upgrades.deferred.mu.Lock()
	defer d.upgrades.deferred.mu.Unlock()
	d.upgrades.deferred.deferring = false
	if d.upgrades.deferred.deaf {
		d.upgrades.deferred.deaf = false
		d.signals.listen()
	}
	for _, sig := range d.upgrades.deferred.signals {
		d.signals.send(sig)
	}
	d.upgrades.deferred.signals = nil
}

// missedSignals are those that the next code is to hear. From now on no more are heard; see deafen.
func (d *daemon) missedSignals() (all []syscall.Signal) {
	d.signals.deafen()
	attended := make(mark)
	late := time.NewTimer(flushPatience) // one that is attended to now may wait for what is frozen
	defer late.Stop()
	select {
	case d.signals.others <- attended:
		select {
		case <-attended:
		case <-late.C:
		}
	case <-late.C:
	}
	d.upgrades.deferred.mu.Lock()
	defer d.upgrades.deferred.mu.Unlock()
	d.upgrades.deferred.deaf = true
	for _, sig := range slices.Concat(d.upgrades.deferred.signals, d.upgrades.deferred.waiting, d.signals.drain()) {
		all = append(all, sig.(syscall.Signal))
	}
	return all
}

// unheard takes the signals that came while an exec was tried: releaseSignals has this code do what they ask
// for.
func (d *daemon) unheard(signals []syscall.Signal) {
	d.upgrades.deferred.mu.Lock()
	defer d.upgrades.deferred.mu.Unlock()
	for _, sig := range signals {
		d.upgrades.deferred.signals = append(d.upgrades.deferred.signals, sig)
	}
}

// afterUpgrade does what a signal asks for while no upgrade is under way, in this code or in the next: do
// says whether it was refused because one is.
func (d *daemon) afterUpgrade(sig os.Signal, do func() error) {
	d.upgrades.deferred.mu.Lock()
	d.upgrades.deferred.waiting = append(d.upgrades.deferred.waiting, sig)
	d.upgrades.deferred.mu.Unlock()
	for d.upgrades.gate.await(d.background.ctx) == nil && errors.Is(do(), errUpgrading) {
	}
	d.upgrades.deferred.mu.Lock()
	defer d.upgrades.deferred.mu.Unlock()
	at := slices.Index(d.upgrades.deferred.waiting, sig)
	d.upgrades.deferred.waiting = slices.Delete(d.upgrades.deferred.waiting, at, at+1)
}
