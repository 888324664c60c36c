package why

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/273ebdf9/lb/admin/api"
)

// list is the facts as a reader sees them.
func (f *Facts) list() []api.Fact {
	facts := []api.Fact{}
	add := func(name, format string, args ...any) {
		facts = append(facts, api.Fact{Name: name, Text: fmt.Sprintf(format, args...)})
	}
	if b := f.Backend; b != nil {
		add("address", "%s", b.Address)
		state := b.Health + " for " + f.age(b.Since)
		if b.Admin != "ready" {
			state = b.Admin + ", " + state
		}
		if b.Reason != "" {
			state += ": " + b.Reason
		}
		add("state", "%s", state)
		f.listProbe(add)
		f.listLimits(add)
	}
	if f.Slot != nil {
		f.listWorker(add)
	}
	return facts
}

type addFact func(name, format string, args ...any)

func (f *Facts) listProbe(add addFact) {
	p := f.Backend.LastProbe
	if p == nil {
		add("last probe", "none yet (health type %q)", f.Setup.Health)
		return
	}
	outcome := "ok"
	if !p.OK {
		outcome = "failed"
	}
	add("last probe", "%s, %s, %s ago", p.Type, outcome, f.age(p.Time))
	if p.Type == "notify" || p.Type == "none" {
		if p.Error != "" {
			add("seen", "%s", p.Error)
		}
		return
	}
	if f.Setup.Sent != "" {
		add("sent", "%s", f.Setup.Sent)
	}
	if f.Setup.Wanted != "" {
		add("wanted", "%s", f.Setup.Wanted)
	}
	if p.Error != "" {
		add("got", "%s", p.Error)
	}
}

func (f *Facts) listLimits(add addFact) {
	b := f.Backend
	limit := "no limit"
	if b.MaxConns > 0 {
		limit = "max_conns " + strconv.Itoa(b.MaxConns)
	}
	if f.Setup.Configured && b.MaxConns != f.Setup.MaxConns {
		limit += fmt.Sprintf(" (config %d)", f.Setup.MaxConns)
	}
	add("connections", "%d active, %s; %d so far", b.Active, limit, b.Connections)
	if b.Weight != b.ConfiguredWeight {
		add("weight", "%d now, %d in the config", b.Weight, b.ConfiguredWeight)
	}
	if q := b.AcceptQueue; q != nil && q.Waiting > 0 {
		add("accept queue", "%d of %d wait for the process to accept them", q.Waiting, q.Limit)
	}
	var failed []string
	for _, reason := range []string{"refused", "saturated", "timeout", "unreachable", "resource", "other"} {
		if n := b.ConnectErrors[reason]; n > 0 {
			failed = append(failed, fmt.Sprintf("%d %s", n, reason))
		}
	}
	if failed != nil {
		add("failed connects", "%s", strings.Join(failed, ", "))
	}
}

func (f *Facts) listWorker(add addFact) {
	w := f.Worker
	text := w.State
	if !w.Since.IsZero() {
		text += " for " + f.age(w.Since)
	}
	if w.PID > 0 {
		text += ", pid " + strconv.Itoa(w.PID)
	}
	if w.Reason != "" {
		text += ": " + w.Reason
	}
	add("worker", "%s", text)
	if w.Due != nil {
		add("next start", "in %s", w.Due.Sub(f.Now).Round(100_000_000))
	}
	if len(w.Command) > 0 {
		add("command", "%q", w.Command)
	}
	if w.Text != "" {
		add("it says", "%s", w.Text)
	}
	if f.Looked {
		var all []string
		for _, l := range f.Listening {
			all = append(all, fmt.Sprintf("pid %d on %s", l.PID, l.Address))
		}
		if all == nil {
			all = []string{"nowhere"}
		}
		add("listens", "%s", strings.Join(all, ", "))
	}
	if s := f.Slot; s.QuickDeaths > 0 {
		add("quick deaths", "%d in a row", s.QuickDeaths)
	}
	if e := f.Slot.LastExit; e != nil {
		add("last exit", "%s ago, pid %d: %s", f.age(e.Time), e.PID, e.Reason)
		if words := lastWords(e); words != "" {
			add("last words", "%s", words)
		}
	}
}

// lastWords is the line that says why a worker ended: the first of its crash, or the last one that it wrote.
func lastWords(e *api.WorkerExit) string {
	if e.Fault != "" {
		return e.Fault
	}
	for i := len(e.Lines) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(e.Lines[i]); line != "" {
			return line
		}
	}
	return ""
}
