package admin

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// errNoWorkers is for a pool whose processes are somebody else's.
func errNoWorkers(pool string) *api.Error {
	return refuse(http.StatusNotFound, "lb runs no workers for pool %q; give it [pools.%s.workers]", pool, pool)
}

func (s *Sources) workers(p *backends.Pool) *api.WorkersStatus {
	if s.Workers == nil {
		return nil
	}
	st := s.Workers(p.Name)
	if st == nil {
		return nil
	}
	if st.Slots == nil {
		st.Slots = []api.SlotStatus{}
	}
	if st.Retired == nil {
		st.Retired = []api.WorkerStatus{}
	}
	return st
}

// findWorkers finds the workers of the pool that a request is about.
func (s *Server) findWorkers(r *http.Request) (*backends.Pool, *api.WorkersStatus, error) {
	p, err := s.findPool(r.PathValue("pool"))
	if err != nil {
		return nil, nil, err
	}
	st := s.src.workers(p)
	if st == nil {
		return nil, nil, errNoWorkers(p.Name)
	}
	return p, st, nil
}

// findSlot finds the slot that a request is about.
func (s *Server) findSlot(r *http.Request) (pool string, slot int, err error) {
	p, st, err := s.findWorkers(r)
	if err != nil {
		return "", 0, err
	}
	slot, err = parseSlot(p.Name, st, r.PathValue("slot"))
	return p.Name, slot, err
}

func parseSlot(pool string, st *api.WorkersStatus, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n >= len(st.Slots) {
		return 0, refuse(http.StatusNotFound, "pool %q has no slot %q; it has %d, from 0 on", pool, text, len(st.Slots))
	}
	return n, nil
}

func (s *Server) getWorkers(r *http.Request) (any, error) {
	_, st, err := s.findWorkers(r)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// workersNow is the answer of a change of workers.
func (s *Server) workersNow(r *http.Request, err error) (any, error) {
	if err != nil {
		return changed(nil, err)
	}
	return s.getWorkers(r)
}

func (s *Server) scale(r *http.Request) (any, error) {
	var body api.ScaleRequest
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	p, st, err := s.findWorkers(r)
	if err != nil {
		return nil, err
	}
	var count int
	switch {
	case (body.Count == nil) == (body.Delta == nil):
		return nil, refuse(http.StatusBadRequest, `write either "count" or "delta"`)
	case body.Count != nil:
		count = *body.Count
	default:
		count = st.Count + *body.Delta
	}
	if count < 0 {
		return nil, refuse(http.StatusBadRequest, "%d workers are fewer than none", count)
	}
	return s.workersNow(r, s.Control.Scale(r.Context(), p.Name, count, by(r)))
}

func (s *Server) stopWorker(r *http.Request) (any, error)  { return s.ofSlot(r, s.Control.StopWorker) }
func (s *Server) startWorker(r *http.Request) (any, error) { return s.ofSlot(r, s.Control.StartWorker) }

func (s *Server) ofSlot(r *http.Request, do func(ctx context.Context, pool string, slot int, by string) error) (any, error) {
	pool, slot, err := s.findSlot(r)
	if err != nil {
		return nil, err
	}
	return s.workersNow(r, do(r.Context(), pool, slot, by(r)))
}

func (s *Server) restart(w http.ResponseWriter, r *http.Request) { s.rollout(w, r, s.Control.Restart) }

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) {
	s.rollout(w, r, s.Control.Rollback)
}

type rolloutFunc func(ctx context.Context, pool string, o api.RestartRequest, progress func(api.RestartStep), by string) (warnings []string, err error)

// rollout restarts, and answers with each step as JSON, one a line. What fails before the first step is a
// refusal; a caller who leaves ends the restart.
func (s *Server) rollout(w http.ResponseWriter, r *http.Request, do rolloutFunc) {
	pool, body, err := s.rolloutAsked(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // its passing would end the request
	// there are no more than two a slot, and so the supervisor never waits
	steps := make(chan api.RestartStep, 4096)
	ended := make(chan error, 1)
	var warnings []string // read after ended
	go func() {
		var err error
		warnings, err = do(r.Context(), pool, body, func(step api.RestartStep) { steps <- step }, by(r))
		ended <- err
	}()
	var last api.RestartStep
	begun := false
	write := func(step api.RestartStep) {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", ndjson)
		}
		rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		enc := newEncoder(w)
		enc.Encode(step) // an error is that of a caller who left, which ends the context
		rc.Flush()
		last = step
	}
	for {
		select {
		case step := <-steps:
			write(step)
			continue
		case err = <-ended:
		}
		break
	}
	for len(steps) > 0 {
		write(<-steps)
	}
	end := api.RestartStep{Step: "done", Done: last.Done, Total: last.Total, Warned: api.Warned{Warnings: warnings}}
	switch {
	case err != nil && !begun:
		_, err = changed(nil, err)
		s.fail(w, err)
		return
	case err != nil:
		end.Step, end.Error = "failed", err.Error()
	case body.NoWait:
		end.Step = "begun"
	}
	write(end)
}

// rolloutAsked reads and checks a request for a restart.
func (s *Server) rolloutAsked(r *http.Request) (pool string, body api.RestartRequest, err error) {
	if err := readBodyIfAny(r, &body); err != nil {
		return "", body, err
	}
	p, st, err := s.findWorkers(r)
	if err != nil {
		return "", body, err
	}
	if body.Slot != nil {
		if _, err := parseSlot(p.Name, st, strconv.Itoa(*body.Slot)); err != nil {
			return "", body, err
		}
	}
	_, err = duration("timeout", body.Timeout)
	return p.Name, body, err
}

// workerBackend is the name of the backend that stands for the worker of a slot; empty for none.
func (s *Server) workerBackend(p *backends.Pool, slot string) string {
	st := s.src.workers(p)
	if st == nil {
		return ""
	}
	i := slices.IndexFunc(st.Slots, func(x api.SlotStatus) bool { return strconv.Itoa(x.Slot) == slot })
	if i < 0 {
		return ""
	}
	return st.Slots[i].Backend
}
