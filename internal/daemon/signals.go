package daemon

import (
	"os"
	"os/signal"
	"syscall"
)

// otherSignals are those that lb does something about, but for SIGTERM and SIGINT.
func otherSignals() []os.Signal {
	return []os.Signal{syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGUSR2}
}

// handledSignals are all that lb does something about, for package upgrade.
func handledSignals() []syscall.Signal {
	all := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}
	for _, sig := range otherSignals() {
		all = append(all, sig.(syscall.Signal))
	}
	return all
}

// signals is what lb has heard and has not attended to. Those that stop it have a channel of their own, so
// that however many others come, they are heard: what does not fit into a channel is lost.
type signals struct {
	stops  chan os.Signal // SIGTERM and SIGINT
	others chan os.Signal // and marks
}

func newSignals() signals {
	return signals{stops: make(chan os.Signal, 8), others: make(chan os.Signal, 64)}
}

// listen begins to receive the kernel's signals. It may be called again.
func (s signals) listen() {
	signal.Notify(s.stops, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(s.others, otherSignals()...)
}

// ignore ends listen; from then on they do what they do to every program.
func (s signals) ignore() {
	signal.Stop(s.stops)
	signal.Stop(s.others)
}

// deafen ends listen for the time of an exec, until somebody listens again; what came before is in the
// channels. What comes now and is only heard would be lost with this code. So SIGTERM and SIGINT end the
// process, as they are meant to. SIGHUP, which would end it as well, and SIGTTIN and SIGTTOU, which would
// stop it, are ignored, also by the new code until it listens.
func (s signals) deafen() {
	signal.Stop(s.stops) // waits until what was received is in the channel
	signal.Ignore(syscall.SIGHUP, syscall.SIGTTIN, syscall.SIGTTOU)
}

func (s signals) channel(sig os.Signal) chan os.Signal {
	if sig == syscall.SIGTERM || sig == syscall.SIGINT {
		return s.stops
	}
	return s.others
}

// tell is as if the kernel had sent it.
func (s signals) send(sig os.Signal) {
	select {
	case s.channel(sig) <- sig:
	default: // it is there often enough already
	}
}

// next waits for one.
func (s signals) next() os.Signal {
	for {
		select {
		case sig := <-s.stops:
			return sig
		case sig := <-s.others:
			if !marked(sig) {
				return sig
			}
		}
	}
}

// drain takes those that wait.
func (s signals) drain() (all []os.Signal) {
	for {
		select {
		case sig := <-s.stops:
			all = append(all, sig)
		case sig := <-s.others:
			if !marked(sig) {
				all = append(all, sig)
			}
		default:
			return all
		}
	}
}

// mark is no signal: once it is closed, whoever attends to signals has attended to all those before it.
type mark chan struct{}

func (mark) Signal()        {}
func (mark) String() string { return "mark" }

func marked(sig os.Signal) bool {
	m, ok := sig.(mark)
	if ok {
		close(m)
	}
	return ok
}
