package admin

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// WorkersStatus is the workers of one pool at one moment.
type WorkersStatus struct {
	// Count is how many there shall be.
	Count int `json:"count"`
	// Restarting says that a restart is under way: Done of Total are replaced.
	Restarting bool `json:"restarting"`
	Done       int  `json:"done"`
	Total      int  `json:"total"`
	// Stale says that some run another command, environment or directory than the config has.
	Stale bool `json:"stale"`
	// Strays is how many are of something else than what last worked for all, as a restart failed half-way; a rollback takes
	// them back.
	Strays int `json:"strays,omitempty"`
	// CanRollback says that there is something to roll back to.
	CanRollback bool `json:"can_rollback"`
	// RecordError is why an lb that is started after this one was killed would not find all of them; empty: it would.
	RecordError string `json:"record_error,omitempty"`
	// Slots are the places for workers, in order; Retired are replaced workers that have not ended.
	Slots   []SlotStatus   `json:"slots"`
	Retired []WorkerStatus `json:"retired"`
	// OutputLines counts the lines that they wrote, OutputDropped those of them that came too fast and were dropped.
	OutputLines   uint64 `json:"output_lines"`
	OutputDropped uint64 `json:"output_dropped"`
	// Notifications counts the messages on their notify socket, by what became of them: "taken", or refused as
	// "unknown_sender", "garbage" or "too_long".
	Notifications map[string]uint64 `json:"notifications"`
}

// SlotStatus is one place for a worker, and the worker in it.
type SlotStatus struct {
	WorkerStatus
	// Restarts is how many workers this lb has started in the slot after the first.
	Restarts uint64 `json:"restarts"`
	// QuickDeaths is how many died soon after their start, in a row.
	QuickDeaths int `json:"quick_deaths"`
	// Next is the worker that is to replace this one.
	Next *WorkerStatus `json:"next,omitempty"`
	// LastExit is how the slot's last worker ended.
	LastExit *WorkerExit `json:"last_exit,omitempty"`
}

// WorkerStatus is one worker.
type WorkerStatus struct {
	Slot int `json:"slot"`
	// State is as docs/workers-states.md has it, "failed" (it died five times in a row, and waits), or "stopped".
	State string `json:"state"`
	// Since is when it came into State, Reason why.
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	// PID is 0 for one without a process.
	PID int `json:"pid"`
	// Started is when its process started, Up when it was first ready, Due when one that waits will be started.
	Started *time.Time `json:"started,omitempty"`
	Up      *time.Time `json:"up,omitempty"`
	Due     *time.Time `json:"due,omitempty"`
	// Text is what it says of itself, STATUS= of sd_notify.
	Text string `json:"text,omitempty"`
	// Backend is the name of the backend that it is; empty for none.
	Backend string   `json:"backend,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Command []string `json:"command,omitempty"`
}

// WorkerExit is how a worker ended.
type WorkerExit struct {
	Time   time.Time `json:"time"`
	PID    int       `json:"pid"`
	Reason string    `json:"reason"`
	// Lines are the last ones that it wrote.
	Lines []string `json:"lines"`
}

// RestartRequest is the body of POST …/restart and …/rollback; it may be absent.
type RestartRequest struct {
	// Slot is the one to restart; absent is all. A rollback is always of all.
	Slot *int `json:"slot,omitempty"`
	// Surge is how many successors are started at once, after the first; 0 is one, negative is all.
	Surge int `json:"surge,omitempty"`
	// Timeout bounds the whole restart, such as "5m"; empty is without end.
	Timeout string `json:"timeout,omitempty"`
	// NoWait answers when the restart has begun.
	NoWait bool `json:"no_wait,omitempty"`

	timeout time.Duration
}

// Bound is Timeout as a duration; 0 is none.
func (r *RestartRequest) Bound() time.Duration { return r.timeout }

// RestartStep is one step of a restart, a line of its answer. The last line is a step "done" or "failed" without a slot.
type RestartStep struct {
	// Step is "started", "replaced" or "failed" of the slot's successor; or of the whole restart "begun" (with no_wait),
	// "done" or "failed".
	Step string `json:"step"`
	Slot *int   `json:"slot,omitempty"`
	PID  int    `json:"pid,omitempty"`
	// Done of Total slots are replaced.
	Done  int `json:"done"`
	Total int `json:"total"`
	// Error is why it failed, with the last output of the worker that did.
	Error string `json:"error,omitempty"`
}

// ScaleRequest is the body of POST …/scale: one of the two.
type ScaleRequest struct {
	Count *int `json:"count,omitempty"`
	Delta *int `json:"delta,omitempty"`
}

// errNoWorkers is for a pool whose processes are somebody else's.
func errNoWorkers(pool string) *Error {
	return refuse(http.StatusNotFound, "lb runs no workers for pool %q; give it [pools.%s.workers]", pool, pool)
}

func (s *Sources) workers(p *backends.Pool) *WorkersStatus {
	if s.Workers == nil {
		return nil
	}
	st := s.Workers(p.Name)
	if st == nil {
		return nil
	}
	if st.Slots == nil {
		st.Slots = []SlotStatus{}
	}
	if st.Retired == nil {
		st.Retired = []WorkerStatus{}
	}
	return st
}

// findWorkers finds the workers of the pool that a request is about.
func (s *Server) findWorkers(r *http.Request) (*backends.Pool, *WorkersStatus, error) {
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

func parseSlot(pool string, st *WorkersStatus, text string) (int, error) {
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
	if s.Control.Scale == nil {
		return nil, errUnable
	}
	var body ScaleRequest
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
	if do == nil {
		return nil, errUnable
	}
	pool, slot, err := s.findSlot(r)
	if err != nil {
		return nil, err
	}
	return s.workersNow(r, do(r.Context(), pool, slot, by(r)))
}

func (s *Server) restart(w http.ResponseWriter, r *http.Request) { s.roll(w, r, s.Control.Restart) }

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) { s.roll(w, r, s.Control.Rollback) }

type rollFunc func(ctx context.Context, pool string, o RestartRequest, progress func(RestartStep), by string) error

// roll restarts, and answers with each step as JSON, one a line. What fails before the first step is a refusal; a caller
// who leaves ends the restart.
func (s *Server) roll(w http.ResponseWriter, r *http.Request, do rollFunc) {
	pool, body, err := s.rollAsked(r, do)
	if err != nil {
		s.fail(w, err)
		return
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{})       // its passing would end the request
	steps := make(chan RestartStep, 4096) // there are no more than two a slot, and so the supervisor never waits
	ended := make(chan error, 1)
	go func() {
		ended <- do(r.Context(), pool, body, func(step RestartStep) { steps <- step }, by(r))
	}()
	var last RestartStep
	begun := false
	write := func(step RestartStep) {
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
	end := RestartStep{Step: "done", Done: last.Done, Total: last.Total}
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

// rollAsked reads and checks a request for a restart.
func (s *Server) rollAsked(r *http.Request, do rollFunc) (pool string, body RestartRequest, err error) {
	if do == nil {
		return "", body, errUnable
	}
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
	body.timeout, err = duration("timeout", body.Timeout)
	return p.Name, body, err
}

// workerBackend is the name of the backend that stands for the worker of a slot; empty for none.
func (s *Server) workerBackend(p *backends.Pool, slot string) string {
	st := s.src.workers(p)
	if st == nil {
		return ""
	}
	i := slices.IndexFunc(st.Slots, func(x SlotStatus) bool { return strconv.Itoa(x.Slot) == slot })
	if i < 0 {
		return ""
	}
	return st.Slots[i].Backend
}
