package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/discovery"
	"github.com/273ebdf9/lb/internal/state"
)

// foundSuffix makes the path of the file that keeps what was discovered from that of the state file.
const foundSuffix = ".discovered"

// keepEvery is the least time between two writes of that file.
const keepEvery = time.Second

// keptPool is a pool in that file.
type keptPool struct {
	// Source is where it was found: a pool that looks elsewhere now has not found it.
	Source   string              `json:"source"`
	Backends []discovery.Backend `json:"backends"`
}

// keeper writes down what was discovered, so that lb can start while nothing can be looked up.
type keeper struct {
	d     *daemon
	awake chan struct{} // holds one: something has changed
}

func newKeeper(d *daemon) *keeper { return &keeper{d: d, awake: make(chan struct{}, 1)} }

// wake has run write soon.
func (k *keeper) wake() {
	select {
	case k.awake <- struct{}{}:
	default:
	}
}

// run writes the file after each change, at most once in keepEvery, until ctx is done.
func (k *keeper) run(ctx context.Context) {
	var written []byte
	for {
		select {
		case <-k.awake:
			written = k.write(written)
		case <-ctx.Done():
			select {
			case <-k.awake:
				k.write(written)
			default:
			}
			return
		}
		select {
		case <-time.After(keepEvery):
		case <-ctx.Done(): // once more, if something has changed
		}
	}
}

// write writes the file unless it has that text already, and returns the text.
func (k *keeper) write(written []byte) []byte {
	path := k.d.view.Load().cfg.Admin.StateFile
	if path == "" {
		return written
	}
	kept := map[string]keptPool{}
	k.d.discoveries.mu.Lock()
	for name, e := range k.d.discoveries.pools {
		kept[name] = keptPool{e.cfg.Discover, e.found}
	}
	k.d.discoveries.mu.Unlock()
	text, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		panic("BUG: lb: discovered backends that are no JSON: " + err.Error())
	}
	if bytes.Equal(text, written) {
		return written
	}
	if err := state.WriteFile(path+foundSuffix, text); err != nil {
		k.d.repeats.Log(slog.LevelError, "keep discovered", "what was discovered will not outlive a restart", "error", err)
		return nil
	}
	return text
}

// recallFound reads what an earlier lb has discovered, for the pools that still look there. It sets a file
// aside that cannot be used.
func (d *daemon) recallFound(cfg *config.Config) findings {
	path := cfg.Admin.StateFile
	if path == "" || !discovers(cfg) {
		return nil
	}
	path += foundSuffix
	data, err := state.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	kept := map[string]keptPool{}
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	found := findings{}
	for name, k := range kept {
		p := cfg.Pool(name)
		if p == nil || p.Discover != k.Source {
			continue
		}
		for i := range k.Backends {
			if err == nil {
				err = k.Backends[i].Check()
			}
		}
		found[name] = k.Backends[:min(len(k.Backends), p.DiscoverMax)]
	}
	if err == nil {
		return found
	}
	aside, failed := state.SetAside(path, time.Now())
	d.log.Warn("the file of discovered backends cannot be used: lb starts without it", "path", path, "error", err, "now", aside, "rename", failed)
	return nil
}

// discovers reports whether a pool of cfg discovers backends.
func discovers(cfg *config.Config) bool {
	for i := range cfg.Pools {
		if cfg.Pools[i].Discover != "" {
			return true
		}
	}
	return false
}
