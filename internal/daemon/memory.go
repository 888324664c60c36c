package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/273ebdf9/lb/internal/state"
)

// memory is the operator's changes that hold beside the config, and the state file that keeps them beyond the
// end of lb. Safe for concurrent use.
type memory struct {
	mu      sync.Mutex
	path    string        // guarded by mu: of the state file; "" for none
	changes state.Changes // guarded by mu; its slices are replaced, never changed in place
}

// recall reads what an earlier lb remembered. It sets aside a file that it cannot use, and returns no
// changes: lb starts without them. What is not a file at all is a fault of the config.
func recall(path string, log *slog.Logger) (state.Changes, error) {
	if path == "" {
		return state.Changes{}, nil
	}
	data, err := state.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return state.Changes{}, nil
	case errors.Is(err, state.ErrNotRegular):
		return state.Changes{}, fmt.Errorf("cannot use admin.state_file: %w; name a file, which lb makes if it is missing", err)
	}
	var changes state.Changes
	if err == nil {
		changes, err = state.Unmarshal(data)
	}
	if err == nil {
		return changes, nil
	}
	aside, failed := state.SetAside(path, time.Now())
	if failed != nil {
		log.Error("the state file cannot be used, nor set aside: lb starts without what it remembers", "path", path, "error", err, "rename", failed)
	} else {
		log.Warn("the state file cannot be used: lb starts without what it remembers, and has set the file aside", "path", path, "error", err, "now", aside)
	}
	return state.Changes{}, nil
}

// save writes the state file, if there is one. A change that cannot be saved holds nevertheless; the warnings
// are for the operator who made it.
func (m *memory) save(log *slog.Logger) (warnings []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.path == "" {
		return nil
	}
	data := m.changes.Marshal()
	if old, err := state.ReadFile(m.path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := state.WriteFile(m.path, data); err != nil {
		log.Error("what was changed at run time will not outlive a restart", "error", err)
		return []string{fmt.Sprintf("what was changed at run time will not outlive a restart: %v", err)}
	}
	return nil
}

// all returns all changes. The caller does not change them in place.
func (m *memory) all() state.Changes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// replace has the memory hold these changes, and save them at path.
func (m *memory) replace(changes state.Changes, path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes, m.path = changes, path
}

func (m *memory) putBackend(b state.Backend) {
	m.mu.Lock()
	defer m.mu.Unlock()
	put(&m.changes.Backends, b, func(x state.Backend) bool { return x.Pool == b.Pool && x.Name == b.Name }, !b.Empty())
}

func (m *memory) putSplit(s state.Split) {
	m.mu.Lock()
	defer m.mu.Unlock()
	put(&m.changes.Splits, s, func(x state.Split) bool { return x.Listener == s.Listener }, len(s.Weights) > 0)
}

func (m *memory) putListener(l state.Listener) {
	m.mu.Lock()
	defer m.mu.Unlock()
	put(&m.changes.Listeners, l, func(x state.Listener) bool { return x.Name == l.Name }, l.MaxConns.Changed)
}

func (m *memory) putWorkers(w state.Workers) {
	m.mu.Lock()
	defer m.mu.Unlock()
	put(&m.changes.Workers, w, func(x state.Workers) bool { return x.Pool == w.Pool }, !w.Empty())
}

// put replaces what is remembered of one thing by item, or forgets it.
func put[T any](items *[]T, item T, same func(T) bool, says bool) {
	*items = slices.DeleteFunc(slices.Clone(*items), same)
	if says {
		*items = append(*items, item)
	}
}
