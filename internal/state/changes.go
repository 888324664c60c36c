package state

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// Kinds of the state file.
const (
	kindBackend  Kind = 1
	kindSplit    Kind = 2
	kindListener Kind = 3
	kindWorkers  Kind = 4 | Optional // an lb that does not know it starts the number of the config
)

// Changes are what the operator changed while lb ran: each value with the one that the config had then, so
// that a config that has changed since can be told from one that has not. The zero value is no changes.
type Changes struct {
	Backends  []Backend
	Splits    []Split
	Listeners []Listener
	Workers   []Workers
}

// Int is a number that was changed.
type Int struct {
	Changed    bool
	Configured int // the config's when it was changed
	Value      int
}

// Backend is one backend of which something was changed.
type Backend struct {
	Pool, Name string
	// Address tells it from another that the config gives its name to.
	Address  string
	Weight   Int
	MaxConns Int
	// Admin is the admin state: "drain" or "maint"; empty for ready.
	Admin string
	// Added says that it was added while lb ran: the config does not know it. Own is how.
	Added bool
	// Removed says that it was removed while lb ran. Own is how the config had it.
	Removed bool
	Own     Own
}

// Own is how a backend was configured that was added or removed.
type Own struct {
	Weight, MaxConns int
	Backup           bool
}

// Empty reports whether nothing of the backend is changed.
func (b *Backend) Empty() bool {
	return !b.Added && !b.Removed && !b.Weight.Changed && !b.MaxConns.Changed && b.Admin == ""
}

// Split are the changed weights of one listener's split, by pool.
type Split struct {
	Listener string
	Weights  map[string]Int
}

// Listener is a listener whose limit was changed.
type Listener struct {
	Name     string
	MaxConns Int
}

// Workers is a pool whose number of workers was changed, or of which slots were stopped by hand.
type Workers struct {
	Pool    string
	Count   Int
	Stopped []int // slots, in order
}

// Empty reports whether nothing of the workers is changed.
func (w *Workers) Empty() bool { return !w.Count.Changed && len(w.Stopped) == 0 }

// Empty reports whether there are no changes.
func (c *Changes) Empty() bool {
	return len(c.Backends)+len(c.Splits)+len(c.Listeners)+len(c.Workers) == 0
}

// Backend returns the entry of a backend; nil when there is none. It is valid until the next change of c.
func (c *Changes) Backend(pool, name string) *Backend {
	for i := range c.Backends {
		if b := &c.Backends[i]; b.Pool == pool && b.Name == name {
			return b
		}
	}
	return nil
}

// Split returns the entry of a listener's split; nil when there is none.
func (c *Changes) Split(listener string) *Split {
	for i := range c.Splits {
		if c.Splits[i].Listener == listener {
			return &c.Splits[i]
		}
	}
	return nil
}

// Listener returns the entry of a listener; nil when there is none.
func (c *Changes) Listener(name string) *Listener {
	for i := range c.Listeners {
		if c.Listeners[i].Name == name {
			return &c.Listeners[i]
		}
	}
	return nil
}

// WorkersOf returns the entry of a pool's workers; nil when there is none.
func (c *Changes) WorkersOf(pool string) *Workers {
	for i := range c.Workers {
		if c.Workers[i].Pool == pool {
			return &c.Workers[i]
		}
	}
	return nil
}

// Clone is a copy that shares nothing with c.
func (c *Changes) Clone() Changes {
	d := Changes{slices.Clone(c.Backends), slices.Clone(c.Splits), slices.Clone(c.Listeners), slices.Clone(c.Workers)}
	for i := range d.Splits {
		d.Splits[i].Weights = maps.Clone(d.Splits[i].Weights)
	}
	for i := range d.Workers {
		d.Workers[i].Stopped = slices.Clone(d.Workers[i].Stopped)
	}
	return d
}

// Marshal is the state that Unmarshal reads. Equal changes give equal bytes.
func (c *Changes) Marshal() []byte {
	w := NewWriter(PurposeChanges)
	for _, b := range c.Backends {
		var e Encoder
		e.String(b.Pool)
		e.String(b.Name)
		e.String(b.Address)
		e.number(b.Weight)
		e.number(b.MaxConns)
		e.String(b.Admin)
		e.Bool(b.Added)
		e.Bool(b.Removed)
		e.Int(int64(b.Own.Weight))
		e.Int(int64(b.Own.MaxConns))
		e.Bool(b.Own.Backup)
		w.Record(kindBackend, e.Bytes())
	}
	for _, s := range c.Splits {
		var e Encoder
		e.String(s.Listener)
		e.Uint(uint64(len(s.Weights)))
		for _, pool := range slices.Sorted(maps.Keys(s.Weights)) {
			e.String(pool)
			e.number(s.Weights[pool])
		}
		w.Record(kindSplit, e.Bytes())
	}
	for _, l := range c.Listeners {
		var e Encoder
		e.String(l.Name)
		e.number(l.MaxConns)
		w.Record(kindListener, e.Bytes())
	}
	for _, x := range c.Workers {
		var e Encoder
		e.String(x.Pool)
		e.number(x.Count)
		e.Uint(uint64(len(x.Stopped)))
		for _, slot := range x.Stopped {
			e.Int(int64(slot))
		}
		w.Record(kindWorkers, e.Bytes())
	}
	return w.Bytes()
}

// Unmarshal reads what Marshal wrote. Errors are those of Read; it says nothing of whether the changes fit a
// config.
func Unmarshal(data []byte) (Changes, error) {
	records, err := Read(data, PurposeChanges)
	if err != nil {
		return Changes{}, err
	}
	var c Changes
	for i, r := range records {
		d := r.Decoder()
		switch r.Kind {
		case kindBackend:
			c.Backends = append(c.Backends, readBackend(d))
		case kindSplit:
			c.Splits = append(c.Splits, readSplit(d))
		case kindListener:
			c.Listeners = append(c.Listeners, Listener{Name: d.String(), MaxConns: d.number()})
		case kindWorkers:
			c.Workers = append(c.Workers, readWorkers(d))
		default:
			if err := r.Unknown(); err != nil {
				return Changes{}, err
			}
		}
		if err := d.Err(); err != nil {
			return Changes{}, fmt.Errorf("record %d: %w", i, err)
		}
	}
	return c, nil
}

func readBackend(d *Decoder) Backend {
	return Backend{
		Pool: d.String(), Name: d.String(), Address: d.String(),
		Weight: d.number(), MaxConns: d.number(), Admin: d.String(),
		Added: d.Bool(), Removed: d.Bool(),
		Own: Own{Weight: d.int(), MaxConns: d.int(), Backup: d.Bool()},
	}
}

func readSplit(d *Decoder) Split {
	s := Split{Listener: d.String(), Weights: map[string]Int{}}
	for n := d.Uint(); n > 0 && d.More(); n-- {
		pool := d.String()
		s.Weights[pool] = d.number()
	}
	return s
}

func readWorkers(d *Decoder) Workers {
	w := Workers{Pool: d.String(), Count: d.number()}
	for n := d.Uint(); n > 0 && d.More(); n-- {
		w.Stopped = append(w.Stopped, d.int())
	}
	return w
}

func (e *Encoder) number(n Int) {
	e.Bool(n.Changed)
	if n.Changed {
		e.Int(int64(n.Configured))
		e.Int(int64(n.Value))
	}
}

func (d *Decoder) number() Int {
	n := Int{Changed: d.Bool()}
	if n.Changed {
		n.Configured, n.Value = d.int(), d.int()
	}
	return n
}

// int reads a number of the config, which fits 32 bits.
func (d *Decoder) int() int {
	n := d.Int()
	if n < math.MinInt32 || n > math.MaxInt32 {
		d.fail("a number that no config has")
		return 0
	}
	return int(n)
}
