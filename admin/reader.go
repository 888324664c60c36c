package admin

import (
	"slices"
	"strings"

	"github.com/273ebdf9/lb/admin/api"
)

// What workers wrote, what they answered to probes, and what they were started with may hold secrets: it is
// of the class AccessOperate, on whichever way it comes. Who may only read gets the same answers without it.

// forReader returns an answer without the words of workers.
func forReader(v any) any {
	switch v := v.(type) {
	case *api.Status:
		c := *v
		c.Pools = slices.Clone(v.Pools)
		for i := range c.Pools {
			c.Pools[i] = poolForReader(c.Pools[i])
		}
		return &c
	case api.PoolStatus:
		return poolForReader(v)
	case *api.PoolStatus:
		c := poolForReader(*v)
		return &c
	case api.BackendStatus:
		return backendForReader(v)
	case *api.BackendStatus:
		c := backendForReader(*v)
		return &c
	case *api.WorkersStatus:
		return workersForReader(v)
	}
	return v
}

func poolForReader(p api.PoolStatus) api.PoolStatus {
	p.Backends = slices.Clone(p.Backends)
	for i := range p.Backends {
		p.Backends[i] = backendForReader(p.Backends[i])
	}
	p.Workers = workersForReader(p.Workers)
	return p
}

func backendForReader(b api.BackendStatus) api.BackendStatus {
	b.Reason = unquoted(b.Reason)
	if b.LastProbe != nil {
		probe := *b.LastProbe
		probe.Error = unquoted(probe.Error)
		b.LastProbe = &probe
	}
	return b
}

func workersForReader(w *api.WorkersStatus) *api.WorkersStatus {
	if w == nil {
		return nil
	}
	c := *w
	c.RecordError = unquoted(c.RecordError)
	c.Slots, c.Retired = slices.Clone(w.Slots), slices.Clone(w.Retired)
	for i := range c.Slots {
		s := &c.Slots[i]
		s.WorkerStatus = workerForReader(s.WorkerStatus)
		if s.Next != nil {
			next := workerForReader(*s.Next)
			s.Next = &next
		}
		if s.LastExit != nil {
			exit := *s.LastExit
			exit.Reason, exit.Fault, exit.Lines = unquoted(exit.Reason), "", []string{}
			s.LastExit = &exit
		}
	}
	for i := range c.Retired {
		c.Retired[i] = workerForReader(c.Retired[i])
	}
	return &c
}

func workerForReader(w api.WorkerStatus) api.WorkerStatus {
	w.Text, w.Command, w.Dir, w.Reason = "", nil, "", unquoted(w.Reason)
	return w
}

// eventForReader leaves what happened, and takes away why: a failed restart says there what the worker wrote.
func eventForReader(e api.Event) api.Event {
	e.Text, _, _ = strings.Cut(e.Text, ": ")
	e.Text = unquoted(e.Text)
	return e
}

// unquoted cuts a reason before what it quotes: bytes of an answer, a path, a command.
func unquoted(reason string) string {
	before, _, found := strings.Cut(reason, `"`)
	if !found {
		return reason
	}
	return strings.TrimRight(before, " (") + " …"
}
