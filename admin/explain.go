package admin

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/admin/why"
	"github.com/273ebdf9/lb/backends"
)

// historyEvents is how many changes a diagnosis shows.
const historyEvents = 12

// explain is reply for a diagnosis. words says whether the caller may know what workers wrote: who may not
// gets a diagnosis that is made without.
func (s *Server) explain(answer func(r *http.Request, words bool) (any, error)) http.HandlerFunc {
	return s.reply(func(r *http.Request) (any, error) {
		return answer(r, CallerFrom(r.Context()).Access() >= AccessOperate)
	})
}

func (s *Server) whyBackend(r *http.Request, words bool) (any, error) {
	p, err := s.findPool(r.PathValue("pool"))
	if err != nil {
		return nil, err
	}
	name := r.PathValue("backend")
	st := s.poolKnown(p, words)
	b, err := s.findBackend(p.Name, name)
	if err != nil {
		slot := slotNamed(st.Workers, name)
		if slot == nil {
			return nil, err
		}
		return why.Diagnose(s.facts(p, &st, nil, slot, words)), nil
	}
	return why.Diagnose(s.facts(p, &st, backendNamed(&st, b.Name), slotOf(st.Workers, b.Name), words)), nil
}

func (s *Server) whyPool(r *http.Request, words bool) (any, error) {
	p, err := s.findPool(r.PathValue("pool"))
	if err != nil {
		return nil, err
	}
	st := s.poolKnown(p, words)
	all := []api.Diagnosis{}
	for i := range st.Backends {
		b := &st.Backends[i]
		all = append(all, why.Diagnose(s.facts(p, &st, b, slotOf(st.Workers, b.Name), words)))
	}
	if st.Workers != nil {
		for i := range st.Workers.Slots {
			if slot := &st.Workers.Slots[i]; backendNamed(&st, slot.Backend) == nil {
				all = append(all, why.Diagnose(s.facts(p, &st, nil, slot, words)))
			}
		}
	}
	return why.Pool(&st, all), nil
}

// poolKnown is the status of a pool as the caller may know it.
func (s *Server) poolKnown(p *backends.Pool, words bool) api.PoolStatus {
	st := s.src.pool(p)
	if !words {
		st = poolForReader(st)
	}
	return st
}

// backendNamed finds a backend; nil for none.
func backendNamed(st *api.PoolStatus, name string) *api.BackendStatus {
	i := slices.IndexFunc(st.Backends, func(b api.BackendStatus) bool { return b.Name == name })
	if i < 0 {
		return nil
	}
	return &st.Backends[i]
}

// slotOf finds the slot whose worker, or the one that is to replace it, is a backend; nil for none.
func slotOf(st *api.WorkersStatus, backend string) *api.SlotStatus {
	if st == nil {
		return nil
	}
	i := slices.IndexFunc(st.Slots, func(s api.SlotStatus) bool {
		return s.Backend == backend || s.Next != nil && s.Next.Backend == backend
	})
	if i < 0 {
		return nil
	}
	return &st.Slots[i]
}

// slotNamed finds a slot by its number, or by the name of a backend that its worker was; nil for none.
func slotNamed(st *api.WorkersStatus, name string) *api.SlotStatus {
	if st == nil {
		return nil
	}
	number, _, _ := strings.Cut(name, ".")
	i := slices.IndexFunc(st.Slots, func(s api.SlotStatus) bool { return strconv.Itoa(s.Slot) == number })
	if i < 0 {
		return nil
	}
	return &st.Slots[i]
}

// facts collects what is known of a backend, of the slot of its worker, or of both.
func (s *Server) facts(p *backends.Pool, st *api.PoolStatus, b *api.BackendStatus, slot *api.SlotStatus, words bool) *why.Facts {
	f := &why.Facts{Now: time.Now(), Pool: p.Name, Backend: b, Slot: slot, Queue: st.Queue}
	if slot != nil {
		f.Worker = &slot.WorkerStatus
		if b != nil && slot.Next != nil && slot.Next.Backend == b.Name {
			f.Worker = slot.Next
		}
		if f.Worker.PID > 0 && s.src.Listening != nil {
			f.Listening, f.Looked = s.src.Listening(f.Worker.PID)
		}
	}
	if s.src.Setup != nil {
		var backend *backends.Backend
		if b != nil {
			backend = p.Get(b.Name)
		}
		f.Setup = s.src.Setup(p, backend)
		if !words { // what a probe sends may be a password
			f.Setup.Sent, f.Setup.Wanted = unquoted(f.Setup.Sent), unquoted(f.Setup.Wanted)
		}
	}
	f.Events = s.eventsOf(f, words)
	return f
}

// eventsOf are the last events of a backend and its slot.
func (s *Server) eventsOf(f *why.Facts, words bool) []api.Event {
	var subjects []string
	if f.Backend != nil {
		subjects = append(subjects, f.Pool+"/"+f.Backend.Name)
	}
	if f.Slot != nil {
		subjects = append(subjects, f.Pool+"/"+strconv.Itoa(f.Slot.Slot))
	}
	var events []api.Event
	for _, e := range s.Events() {
		if slices.Contains(subjects, e.Subject) {
			if !words {
				e = eventForReader(e)
			}
			events = append(events, e)
		}
	}
	return events[max(0, len(events)-historyEvents):]
}
