package admin

import (
	"net/http"
	"strconv"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

const (
	// defaultSessions and mostSessions are how many sessions are listed when nobody says how many, and at
	// most.
	defaultSessions = 1000
	mostSessions    = 100000
	// maxOver is the longest time to spread the closing of sessions over.
	maxOver = 24 * time.Hour
)

// filter checks a choice of sessions.
func (s *Server) filter(id, pool, backend, older string) (f api.SessionFilter, err error) {
	f = api.SessionFilter{ID: id, Pool: pool, Backend: backend}
	switch {
	case backend != "" && pool == "":
		return f, refuse(http.StatusBadRequest, "backend: of which pool? write pool too")
	case backend != "":
		_, err = s.findBackend(pool, backend)
	case pool != "":
		_, err = s.findPool(pool)
	}
	if err != nil {
		return f, err
	}
	f.Older, err = duration("older", older)
	return f, err
}

// duration reads a duration that may be absent.
func duration(key, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, refuse(http.StatusBadRequest, `%s: %q is no duration; write one such as "30s" or "10m"`, key, text)
	}
	return d, nil
}

func (s *Server) listSessions(r *http.Request) (any, error) {
	if s.src.Sessions == nil {
		return nil, errUnable
	}
	q := r.URL.Query()
	limit := defaultSessions
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > mostSessions {
			return nil, refuse(http.StatusBadRequest, "limit: %q is not within 1..%d", v, mostSessions)
		}
		limit = n
	}
	f, err := s.filter(q.Get("id"), q.Get("pool"), q.Get("backend"), q.Get("older"))
	if err != nil {
		return nil, err
	}
	list, total := s.src.Sessions(f, limit)
	if list == nil {
		list = []api.SessionStatus{}
	}
	return api.SessionList{Sessions: list, Total: total}, nil
}

func (s *Server) killSessions(w http.ResponseWriter, r *http.Request) {
	v, err := s.kill(http.NewResponseController(w), r)
	if err != nil {
		s.fail(w, err)
		return
	}
	writeJSON(w, http.StatusOK, v)
}

func (s *Server) kill(rc *http.ResponseController, r *http.Request) (any, error) {
	var body api.KillRequest
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if body.ID == "" && body.Pool == "" {
		return nil, refuse(http.StatusBadRequest, "which sessions? write id, or pool and backend")
	}
	f, err := s.filter(body.ID, body.Pool, body.Backend, body.Older)
	if err != nil {
		return nil, err
	}
	over, err := duration("over", body.Over)
	if err != nil {
		return nil, err
	}
	if over > maxOver {
		return nil, refuse(http.StatusBadRequest, "over: %v is more than %v", over, maxOver)
	}
	unhurried(rc, over)
	n, err := s.Control.Kill(r.Context(), f, over, by(r))
	if err == nil && n == 0 && f.ID != "" {
		return nil, refuse(http.StatusNotFound, "there is no session %q; lb conns lists them", f.ID)
	}
	return changed(api.KillResult{Killed: n}, err)
}
