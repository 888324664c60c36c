package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/discovery"
)

const (
	// maxValue is the longest value that is read, in bytes.
	maxValue = 4096
	// maxWeight is the largest sum of weights that a host publishes.
	maxWeight = 1 << 20
)

// Entry is a listener that an lb publishes: where other hosts reach one of its pools.
type Entry struct {
	// Pool and Listener are of the key.
	Pool     string `json:"-"`
	Listener string `json:"-"`
	// Address is IP:PORT.
	Address string `json:"address"`
	// Weight is the sum of the weights of the backends that may be given new connections; 0 while the lb
	// stops.
	Weight int `json:"weight"`
	// Up is how many these are.
	Up int `json:"up"`
	// Connections is how many the pool has in all.
	Connections int64 `json:"connections"`
	// Draining says that the lb stops.
	Draining bool `json:"draining,omitempty"`
}

// Member is an lb of the cluster.
type Member struct {
	Host    string    `json:"-"` // of the key
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Sessions is how many it has.
	Sessions int64 `json:"sessions"`
}

// parseEntry reads the value of a key below pools/, of which rest is what follows that. The error says what
// is wrong with either. Whatever it returns without an error, lb may use.
func parseEntry(rest string, value []byte) (host string, e Entry, err error) {
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return "", e, fmt.Errorf("its key is not POOL/HOST/LISTENER")
	}
	for _, name := range parts {
		if !backends.ValidName(name) {
			return "", e, fmt.Errorf("%q is no name", name)
		}
	}
	if name := backendName(parts[1], parts[2]); !backends.ValidName(name) {
		return "", e, fmt.Errorf("host and listener are too long together")
	}
	if len(value) > maxValue {
		return "", e, fmt.Errorf("its value has %d bytes; at most %d are read", len(value), maxValue)
	}
	if err := json.Unmarshal(value, &e); err != nil {
		return "", e, fmt.Errorf("its value is no entry: %w", err)
	}
	switch {
	case CheckPublish(e.Address) != nil:
		return "", e, fmt.Errorf("address: %w", CheckPublish(e.Address))
	case e.Weight < 0 || e.Weight > maxWeight:
		return "", e, fmt.Errorf("weight: %d is not within 0..%d", e.Weight, maxWeight)
	case e.Up < 0 || e.Connections < 0:
		return "", e, fmt.Errorf("up and connections: below 0")
	}
	e.Pool, e.Listener = parts[0], parts[2]
	return parts[1], e, nil
}

// backendName is what the listener of a host is called as a backend.
func backendName(host, listener string) string { return host + "." + listener }

// backendsOf makes the entries of a pool, by host and listener, its backends.
func backendsOf(entries map[string]Entry) []discovery.Backend {
	most := 0
	for _, e := range entries {
		most = max(most, e.Weight)
	}
	var found []discovery.Backend
	for name, e := range entries {
		b := discovery.Backend{Name: name, Address: e.Address, At: netip.MustParseAddrPort(e.Address), Weight: e.Weight}
		if e.Draining {
			b.Weight = 0
		} else if most > backends.MaxWeight && e.Weight > 0 {
			b.Weight = max(1, e.Weight*backends.MaxWeight/most)
		}
		found = append(found, b)
	}
	return found
}
