package backends

import (
	"time"
)

// Series is what a metric of a backend counts: one backend, or all backends that were one slot of workers
// after another. A deploy gives a slot another backend, and its series goes on.
type Series struct {
	// Name is the backend's, or the slot's.
	Name string
	// Current is the backend that takes connections; where none does, the youngest.
	Current *Backend
	// Active is how many slots they have given out, those of backends that were removed included.
	Active int64
	// Totals is what they have carried, those that are gone included.
	Totals Totals
}

// Totals are the counters of one or several backends at one moment.
type Totals struct {
	Connections, BytesIn, BytesOut          uint64
	ConnectErrors                           [NumConnectErrors]uint64
	ConnectTime, FirstByteTime, SessionTime HistogramSnapshot
}

func (t *Totals) add(b *Backend) {
	t.Connections += b.Counters.Connections.Load()
	t.BytesIn += b.Counters.BytesIn.Load()
	t.BytesOut += b.Counters.BytesOut.Load()
	for i := range t.ConnectErrors {
		t.ConnectErrors[i] += b.ConnectErrors[i].Load()
	}
	t.ConnectTime.add(&b.ConnectTime)
	t.FirstByteTime.add(&b.FirstByteTime)
	t.SessionTime.add(&b.SessionTime)
}

func (s *HistogramSnapshot) add(h *Histogram) {
	for i := range s.Counts {
		s.Counts[i] += h.counts[i].Load()
	}
	s.Sum += time.Duration(h.sum.Load())
}

// SetSeries has the backends of the pool counted by what seriesOf returns for their names: the same for those
// that follow one another, or empty for a backend that stands for itself.
func (p *Pool) SetSeries(seriesOf func(backend string) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seriesOf = seriesOf
}

// seriesLocked returns the name of b's series, and whether others may follow b in it.
func (p *Pool) seriesLocked(b *Backend) (name string, shared bool) {
	if p.seriesOf != nil {
		if name := p.seriesOf(b.Name); name != "" {
			return name, true
		}
	}
	return b.Name, false
}

// rememberLocked adds what b has carried, which is gone, to its series.
func (p *Pool) rememberLocked(b *Backend) {
	name, shared := p.seriesLocked(b)
	if !shared || b.remembered {
		return
	}
	b.remembered = true
	if p.past == nil {
		p.past = map[string]*Totals{}
	}
	if p.past[name] == nil {
		p.past[name] = new(Totals)
	}
	p.past[name].add(b)
}

// SeriesOf returns the name of the series that counts b.
func (p *Pool) SeriesOf(b *Backend) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, _ := p.seriesLocked(b)
	return name
}

// Series returns the series of the members, in the members' order.
func (p *Pool) Series() []Series {
	all, of := p.seriesMembers()
	for i := range all { // without the mutex, which every connection takes
		s := &all[i]
		for _, b := range of[i] {
			s.Active += b.Active()
			s.Totals.add(b)
		}
	}
	return all
}

// seriesMembers returns the series, with what is gone in their totals, and the backends of each.
func (p *Pool) seriesMembers() (all []Series, of [][]*Backend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	members := p.Backends()
	all, of = make([]Series, 0, len(members)), make([][]*Backend, 0, len(members))
	places := map[string]int{} // of those that are shared
	for _, b := range members {
		name, shared := p.seriesLocked(b)
		i, known := places[name]
		if !shared || !known {
			i = len(all)
			all, of = append(all, Series{Name: name}), append(of, nil)
		}
		if shared && !known {
			places[name] = i
			if past := p.past[name]; past != nil {
				all[i].Totals = *past
			}
		}
		s := &all[i]
		if s.Current == nil || b.Selectable() || !s.Current.Selectable() && b.ID > s.Current.ID {
			s.Current = b
		}
		of[i] = append(of[i], b)
	}
	for _, b := range p.departed {
		if name, shared := p.seriesLocked(b); shared {
			if i, ok := places[name]; ok {
				of[i] = append(of[i], b)
			}
		}
	}
	return all, of
}

func clonePast(past map[string]*Totals) map[string]*Totals {
	all := make(map[string]*Totals, len(past))
	for name, t := range past {
		if t != nil {
			own := *t
			all[name] = &own
		}
	}
	return all
}
