package supervisor

import (
	"bytes"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// errUnhandled: a process would be ended by a signal that shall only tell it something.
var errUnhandled = errors.New("it has no handler for it, and would end")

// AnnounceDrain sends the pool's workers drain_signal, ahead of the Stop that will have them drain. It never
// blocks.
func (p *Pool) AnnounceDrain() {
	p.post(func() {
		for _, w := range p.workers {
			if w.state == up || w.state == silent {
				p.announceDrain(w)
			}
		}
	})
}

// announceDrain sends w drain_signal, once in its life. If it cannot, it says why in the reason of its drain.
func (p *Pool) announceDrain(w *worker) {
	if p.cfg.DrainSignal == "" || w.announced || w.process == nil {
		return
	}
	err := w.process.announce(signalNamed(p.cfg.DrainSignal))
	w.announced = err == nil
	if err != nil && w.state == draining {
		w.reason += "; drain_signal = \"" + p.cfg.DrainSignal + "\" was not sent: " + err.Error()
	}
}

// handles reports whether a signal does something else to a process than its default: it has a handler, is
// ignored, or is held back for sigwait(3) or a signalfd(2). See proc_pid_status(5). If lb cannot know, it
// reports true.
func handles(pid int, sig unix.Signal) bool {
	text, err := readProcFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return true
	}
	var mask uint64
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "SigBlk", "SigIgn", "SigCgt":
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
			if err != nil {
				return true
			}
			mask |= n
		}
	}
	return mask&(1<<(sig-1)) != 0
}
