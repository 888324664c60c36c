package admin

import (
	"net/http"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// by is who asks, for the event log.
func by(r *http.Request) string { return PeerFrom(r.Context()).String() }

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

// errUnable is for a nil function of Control.
var errUnable = refuse(http.StatusNotImplemented, "this lb cannot do that")

// changedBackend shows a backend as it is after a change, or as the change said it is where it has gone since.
func (s *Server) changedBackend(pool, backend string, said api.BackendStatus, err error) (any, error) {
	var advice api.Advice
	if err := advised(&advice, err); err != nil {
		return changed(nil, err)
	}
	if b, err := s.findBackend(pool, backend); err == nil {
		said = s.backendNow(b)
	}
	said.Warnings = append(said.Warnings, advice.Warnings...)
	return said, nil
}

// backendNow is the status of a backend with what only the Server knows.
func (s *Server) backendNow(b *backends.Backend) api.BackendStatus {
	st := s.src.backend(b)
	st.Share = share(b, offeredWeight(b.Pool()))
	s.rates.ofBackend(&s.src, b, &st)
	return st
}

func (s *Server) getBackend(r *http.Request) (any, error) {
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	return s.backendNow(b), nil
}

func (s *Server) setWeight(r *http.Request) (any, error) {
	if s.Control.SetWeight == nil {
		return nil, errUnable
	}
	var body api.WeightChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	var value int
	percent := body.Percent != nil
	switch {
	case percent == (body.Weight != nil):
		return nil, refuse(http.StatusBadRequest, `write either "weight" or "percent"`)
	case percent:
		value = *body.Percent
		// Percent of a weight of 0 is 0; the bound is for the others.
		if n := int64(value) * int64(max(b.ConfiguredWeight(), 1)) / 100; value < 0 || n > backends.MaxWeight {
			return nil, refuse(http.StatusBadRequest, "percent: %d%% of the configured weight %d is not within 0..%d", value, b.ConfiguredWeight(), backends.MaxWeight)
		}
	default:
		value = *body.Weight
		if value < 0 || value > backends.MaxWeight {
			return nil, refuse(http.StatusBadRequest, "weight: %d is not within 0..%d", value, backends.MaxWeight)
		}
	}
	st, err := s.Control.SetWeight(b.Pool().Name, b.Name, value, percent, by(r))
	return s.changedBackend(b.Pool().Name, b.Name, st, err)
}

func (s *Server) setAdmin(r *http.Request) (any, error) {
	if s.Control.SetAdmin == nil {
		return nil, errUnable
	}
	var body api.AdminChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if _, err := backends.ParseAdminState(body.State); err != nil {
		return nil, refuse(http.StatusBadRequest, "state: %v", err)
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	st, err := s.Control.SetAdmin(b.Pool().Name, b.Name, body.State, by(r))
	return s.changedBackend(b.Pool().Name, b.Name, st, err)
}

func (s *Server) setMaxConns(r *http.Request) (any, error) {
	if s.Control.SetMaxConns == nil {
		return nil, errUnable
	}
	n, err := readMaxConns(r)
	if err != nil {
		return nil, err
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	st, err := s.Control.SetMaxConns(b.Pool().Name, b.Name, n, by(r))
	return s.changedBackend(b.Pool().Name, b.Name, st, err)
}

func readMaxConns(r *http.Request) (int, error) {
	var body api.MaxConnsChange
	if err := readBody(r, &body); err != nil {
		return 0, err
	}
	if body.MaxConns == nil {
		return 0, refuse(http.StatusBadRequest, "max_conns: missing; write 0 for no limit")
	}
	return *body.MaxConns, checkMaxConns(*body.MaxConns)
}

// maxMaxConns is the largest max_conns, as package backends has it.
const maxMaxConns = 1<<31 - 1

func checkMaxConns(n int) error {
	if n < 0 || n > maxMaxConns {
		return refuse(http.StatusBadRequest, "max_conns: %d is not within 0..%d; write 0 for no limit", n, maxMaxConns)
	}
	return nil
}

func (s *Server) addBackend(r *http.Request) (any, error) {
	if s.Control.AddBackend == nil {
		return nil, errUnable
	}
	var body api.NewBackend
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	p, err := s.findPool(r.PathValue("pool"))
	if err != nil {
		return nil, err
	}
	if body.Name != "" && !backends.ValidName(body.Name) {
		return nil, refuse(http.StatusBadRequest, "name: %q must be 1 to 64 letters, digits, dots, dashes or underscores, and start with a letter or digit", body.Name)
	}
	if body.Address == "" {
		return nil, refuse(http.StatusBadRequest, "address: missing; write unix:/path, unix:@name, host:port or [v6]:port")
	}
	if _, err := backends.ParseAddress(body.Address); err != nil {
		return nil, refuse(http.StatusBadRequest, "address: %v", err)
	}
	if w := body.Weight; w != nil && (*w < 0 || *w > backends.MaxWeight) {
		return nil, refuse(http.StatusBadRequest, "weight: %d is not within 0..%d", *w, backends.MaxWeight)
	}
	if err := checkMaxConns(body.MaxConns); err != nil {
		return nil, err
	}
	name := body.Name
	if name == "" {
		name = body.Address
	}
	if p.Get(name) != nil {
		return nil, refuse(http.StatusConflict, "pool %q has a backend %q already; choose another name, or remove that one first", p.Name, name)
	}
	st, err := s.Control.AddBackend(p.Name, body, by(r))
	return s.changedBackend(p.Name, name, st, err)
}

func (s *Server) removeBackend(r *http.Request) (any, error) {
	if s.Control.RemoveBackend == nil {
		return nil, errUnable
	}
	b, err := s.findBackend(r.PathValue("pool"), r.PathValue("backend"))
	if err != nil {
		return nil, err
	}
	var advice api.Advice
	if err := advised(&advice, s.Control.RemoveBackend(b.Pool().Name, b.Name, by(r))); err != nil {
		return changed(nil, err)
	}
	st := s.poolNow(b.Pool())
	st.Advice = advice
	return st, nil
}

// poolNow is the status of a pool with what only the Server knows.
func (s *Server) poolNow(p *backends.Pool) api.PoolStatus {
	st := s.src.pool(p)
	s.rates.ofPool(&s.src, p, &st)
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
	if s.Control.SetSplit == nil {
		return nil, errUnable
	}
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
		if n := body.Weights[pool]; n < 0 || n > backends.MaxWeight {
			return nil, refuse(http.StatusBadRequest, "weights.%s: %d is not within 0..%d", pool, n, backends.MaxWeight)
		}
	}
	weights, err := s.Control.SetSplit(l.Name, body.Weights, by(r))
	result := &api.SplitResult{SplitChange: api.SplitChange{Weights: weights}}
	err = advised(result, err)
	return changed(result, err)
}

func (s *Server) setListenerMaxConns(r *http.Request) (any, error) {
	if s.Control.SetListenerMaxConns == nil {
		return nil, errUnable
	}
	n, err := readMaxConns(r)
	if err != nil {
		return nil, err
	}
	l, err := s.findListener(r.PathValue("listener"))
	if err != nil {
		return nil, err
	}
	result := &api.MaxConnsResult{MaxConnsChange: api.MaxConnsChange{MaxConns: &n}}
	err = advised(result, s.Control.SetListenerMaxConns(l.Name, n, by(r)))
	return changed(result, err)
}

func (s *Server) reload(r *http.Request) (any, error) {
	if s.Control.Reload == nil {
		return nil, errUnable
	}
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
	if s.Control.Stop == nil {
		return nil, errUnable
	}
	var body api.StopRequest
	if err := readBodyIfAny(r, &body); err != nil {
		return nil, err
	}
	return changed(api.StopResult{Stopping: true, PID: s.src.process().PID}, s.Control.Stop(body.Now, by(r)))
}

func (s *Server) setLogLevel(r *http.Request) (any, error) {
	if s.Control.SetLogLevel == nil {
		return nil, errUnable
	}
	var body api.LogLevelChange
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	switch body.Level {
	case "debug", "info", "warn", "error":
	default:
		return nil, refuse(http.StatusBadRequest, `level: unknown level %q; write "debug", "info", "warn" or "error"`, body.Level)
	}
	return changed(body, s.Control.SetLogLevel(body.Level, by(r)))
}
