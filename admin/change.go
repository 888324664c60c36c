package admin

import (
	"cmp"
	"log/slog"
	"net/http"
	"slices"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// by is who asks, for the event log.
func by(r *http.Request) string { return CallerFrom(r.Context()).String() }

// changed makes the answer of a Control function. Its refusals are conflicts unless they say otherwise.
func changed(v any, err error) (any, error) {
	if err == nil {
		return v, nil
	}
	if refusal := asRefusal(err); refusal.Status != http.StatusInternalServerError {
		return nil, refusal
	}
	return nil, refuse(http.StatusConflict, "%v", err)
}

// errUnable is the refusal of a Server without a Control.
var errUnable = refuse(http.StatusNotImplemented, "this lb cannot do that")

// changedBackend shows a backend as it is after a change. One that has gone since has only its name.
func (s *Server) changedBackend(p *backends.Pool, name string, warnings []string, err error) (any, error) {
	if err != nil {
		return changed(nil, err)
	}
	st := api.BackendStatus{Name: name}
	if b := p.Get(name); b != nil {
		st = s.backendNow(b)
	}
	st.Warnings = warnings
	return st, nil
}

// backendNow is the status of a backend with what only the Server knows.
func (s *Server) backendNow(b *backends.Backend) api.BackendStatus {
	st := s.src.backend(b)
	st.Share = share(b, offeredWeight(b.Pool()))
	s.rates.ofBackend(&s.src, b, &st)
	p := api.PoolStatus{Backends: []api.BackendStatus{st}}
	s.history.fill(b.Pool(), &p)
	return p.Backends[0]
}

func (s *Server) getBackend(r *http.Request) (any, error) {
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	return s.backendNow(b), nil
}

func (s *Server) setWeight(r *http.Request) (any, error) {
	var body api.WeightChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	if (body.Percent == nil) == (body.Weight == nil) {
		return nil, refuse(http.StatusBadRequest, `write either "weight" or "percent"`)
	}
	warnings, err := s.Control.SetWeight(b, body, by(r))
	return s.changedBackend(b.Pool(), b.Name, warnings, err)
}

func (s *Server) setAdmin(r *http.Request) (any, error) {
	var body api.AdminChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	to, err := backends.ParseAdminState(body.State)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "state: %v", err)
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	warnings, err := s.Control.SetAdmin(b, to, by(r))
	return s.changedBackend(b.Pool(), b.Name, warnings, err)
}

func (s *Server) setMaxConns(r *http.Request) (any, error) {
	n, err := readMaxConns(r)
	if err != nil {
		return nil, err
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	warnings, err := s.Control.SetMaxConns(b, n, by(r))
	return s.changedBackend(b.Pool(), b.Name, warnings, err)
}

func readMaxConns(r *http.Request) (int, error) {
	var body api.MaxConnsChange
	if err := readBody(r, &body); err != nil {
		return 0, err
	}
	if body.MaxConns == nil {
		return 0, refuse(http.StatusBadRequest, "max_conns: missing; write 0 for no limit")
	}
	return *body.MaxConns, nil
}

func (s *Server) addBackend(r *http.Request) (any, error) {
	var body api.NewBackend
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	p, err := s.findPool(r.PathValue("pool"))
	if err != nil {
		return nil, err
	}
	name := cmp.Or(body.Name, body.Address)
	if address, err := backends.ParseAddress(body.Address); err == nil && !CallerFrom(r.Context()).Local {
		if err := p.CheckRemote(address); err != nil {
			return nil, refuse(http.StatusForbidden, "address: %v", err)
		}
	}
	if p.Get(name) != nil {
		return nil, refuse(http.StatusConflict, "pool %q has a backend %q already; choose another name, or remove that one first", p.Name, name)
	}
	warnings, err := s.Control.AddBackend(p, body, by(r))
	return s.changedBackend(p, name, warnings, err)
}

func (s *Server) removeBackend(r *http.Request) (any, error) {
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	warnings, err := s.Control.RemoveBackend(b, by(r))
	st := s.poolNow(b.Pool())
	st.Warnings = warnings
	return changed(st, err)
}

// poolNow is the status of a pool with what only the Server knows.
func (s *Server) poolNow(p *backends.Pool) api.PoolStatus {
	st := s.src.pool(p)
	s.rates.ofPool(&s.src, p, &st)
	s.history.fill(p, &st)
	return st
}

func (s *Server) getPool(r *http.Request) (any, error) {
	p, err := s.findPool(r.PathValue("pool"))
	if err != nil {
		return nil, err
	}
	return s.poolNow(p), nil
}

func (s *Server) getListener(r *http.Request) (any, error) {
	l, err := s.findListener(r.PathValue("listener"))
	if err != nil {
		return nil, err
	}
	s.rates.ofListener(&s.src, &l)
	return l, nil
}

func (s *Server) setSplit(r *http.Request) (any, error) {
	var body api.SplitChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if len(body.Weights) == 0 {
		return nil, refuse(http.StatusBadRequest, "weights: missing; write a weight for each pool to change")
	}
	l, err := s.findListener(r.PathValue("listener"))
	if err != nil {
		return nil, err
	}
	for _, pool := range sortedKeys(body.Weights) {
		if _, err := s.findPool(pool); err != nil {
			return nil, err
		}
	}
	weights, warnings, err := s.Control.SetSplit(l.Name, body.Weights, by(r))
	return changed(api.SplitResult{SplitChange: api.SplitChange{Weights: weights}, Warned: api.Warned{Warnings: warnings}}, err)
}

func (s *Server) setListenerMaxConns(r *http.Request) (any, error) {
	n, err := readMaxConns(r)
	if err != nil {
		return nil, err
	}
	l, err := s.findListener(r.PathValue("listener"))
	if err != nil {
		return nil, err
	}
	warnings, err := s.Control.SetListenerMaxConns(l.Name, n, by(r))
	return changed(api.MaxConnsResult{MaxConnsChange: api.MaxConnsChange{MaxConns: &n}, Warned: api.Warned{Warnings: warnings}}, err)
}

func (s *Server) reload(r *http.Request) (any, error) {
	var body api.ReloadRequest
	if err := readBodyIfAny(r, &body); err != nil {
		return nil, err
	}
	result, err := s.Control.Reload(r.Context(), body.DryRun, by(r))
	for _, list := range []*[]string{&result.Changes, &result.Warnings} {
		if *list == nil {
			*list = []string{}
		}
	}
	return changed(result, err)
}

func (s *Server) stop(r *http.Request) (any, error) {
	var body api.StopRequest
	if err := readBodyIfAny(r, &body); err != nil {
		return nil, err
	}
	s.Control.Stop(body.Now, by(r))
	return api.StopResult{Stopping: true, PID: s.src.process().PID}, nil
}

func (s *Server) setLogLevel(r *http.Request) (any, error) {
	var body api.LogLevelChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	var level slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, body.Level) || level.UnmarshalText([]byte(body.Level)) != nil {
		return nil, refuse(http.StatusBadRequest, `level: unknown level %q; write "debug", "info", "warn" or "error"`, body.Level)
	}
	s.Control.SetLogLevel(level, by(r))
	return body, nil
}
