// Package why names the cause of what is wrong with a backend, and what to do about it.
//
// A diagnosis is made of Facts by the rules of rules.go, of which the first that holds is the headline. The
// package asks nobody and keeps no state: what a caller may not know is not in the facts that it is given.
package why

import (
	"fmt"
	"strings"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// Setup is what the config asks for.
type Setup struct {
	// Health is the type of watching, Interval its interval, Fall how many failures take a backend down.
	Health   string
	Interval time.Duration
	Fall     int
	// Sent is what a probe sends, Wanted what it wants back; empty where there is nothing to say.
	Sent, Wanted string
	// SendProxy is the version of the PROXY header that lb sends, "v1" or "v2"; empty for none.
	SendProxy string
	// Configured says that the backend is in the config, MaxConns its limit there; 0 is none.
	Configured bool
	MaxConns   int
	// Unresolved says that the address is a host name, and that no address of it is known.
	Unresolved bool
	// NeverBeat says that the worker has sent no heartbeat since it was ready.
	NeverBeat bool
	// Place is how a worker is given its address: "{port}", "{socket}", or empty for descriptor 3.
	Place string
	// Ready is what tells that a worker is ready: "connect" or "notify"; empty where lb runs no workers.
	Ready        string
	StartTimeout time.Duration
}

// Listening is a socket that a process of a worker listens on.
type Listening struct {
	PID int
	// Address is "*:3000", "127.0.0.1:3000", "[::1]:3000" or "unix:/path".
	Address string
}

// Facts are what is known of one backend or slot at one moment.
type Facts struct {
	Now  time.Time
	Pool string
	// Backend is nil for a slot whose worker has none.
	Backend *api.BackendStatus
	// Slot is nil for a backend that lb runs no process for. Worker is the process that stands for the
	// backend: that of the slot, or the one that is to replace it.
	Slot   *api.SlotStatus
	Worker *api.WorkerStatus
	Setup  Setup
	Queue  api.QueueStatus
	// Listening are the sockets of the worker, where Looked says that they are known.
	Listening []Listening
	Looked    bool
	// Events are the last ones of the backend and its slot.
	Events []api.Event
}

// Diagnose applies the rules.
func Diagnose(f *Facts) api.Diagnosis {
	d := api.Diagnosis{Subject: f.subject(), Cause: api.CauseNone, Do: []string{}, Also: []string{}, Facts: f.list(), History: f.Events}
	if d.History == nil {
		d.History = []api.Event{}
	}
	for i := range rules {
		r := &rules[i]
		says := r.holds(f)
		switch {
		case says == "":
		case d.Cause == api.CauseNone:
			d.Cause, d.Headline, d.Do = r.cause, says, r.do(f)
		case !r.general:
			d.Also = append(d.Also, says)
		}
	}
	if d.Cause == api.CauseNone {
		d.Headline = f.fine()
	}
	return d
}

// Pool sums the diagnoses of a pool up: those with a cause come first.
func Pool(st *api.PoolStatus, all []api.Diagnosis) api.PoolDiagnosis {
	p := api.PoolDiagnosis{Pool: st.Name, Backends: []api.Diagnosis{}}
	for _, wrong := range []bool{true, false} {
		for _, d := range all {
			if (d.Cause != api.CauseNone) == wrong {
				p.Backends = append(p.Backends, d)
			}
		}
	}
	var says []string
	switch n := len(st.Backends); {
	case n == 0:
		says = append(says, "it has no backend: no client can be served")
	case st.Selectable == 0:
		says = append(says, fmt.Sprintf("none of its %d takes new connections: clients wait in the queue, or are refused", n))
	default:
		says = append(says, fmt.Sprintf("%d of %d take new connections", st.Selectable, n))
	}
	if q := st.Queue; q.Length > 0 {
		says = append(says, fmt.Sprintf("%d of %d wait in the queue", q.Length, q.Size))
	}
	if q := st.Queue; q.Rejected > 0 || q.Timeouts > 0 {
		says = append(says, fmt.Sprintf("%d found the queue full and %d waited in vain so far", q.Rejected, q.Timeouts))
	}
	if w := st.Workers; w != nil && w.Stale && !w.Restarting {
		says = append(says, "not all workers run the config's command, environment and directory: lb restart "+st.Name)
	}
	p.Headline = strings.Join(says, "; ")
	return p
}

// subject is POOL/BACKEND, or POOL/SLOT.
func (f *Facts) subject() string {
	if f.Backend != nil {
		return f.Pool + "/" + f.Backend.Name
	}
	return f.slotName()
}

// slotName is POOL/SLOT.
func (f *Facts) slotName() string { return fmt.Sprintf("%s/%d", f.Pool, f.Slot.Slot) }

// fine says that nothing is wrong.
func (f *Facts) fine() string {
	if b := f.Backend; b != nil {
		return fmt.Sprintf("nothing is wrong: %s for %s", b.Health, f.age(b.Since))
	}
	return fmt.Sprintf("nothing is wrong: %s for %s", f.Slot.State, f.age(f.Slot.Since))
}

func (f *Facts) age(t time.Time) string {
	d := f.Now.Sub(t)
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
