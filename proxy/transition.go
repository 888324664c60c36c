package proxy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// ListenerSpec is what a listener shall be. Either Pool or Split is set.
type ListenerSpec struct {
	Name   string
	Config ListenerConfig // valid
	Pool   *backends.Pool
	Split  *backends.Split
}

// Transition is a change of the listeners that is prepared: everything that can fail has been done, and
// nothing is different yet. It ends with Commit or Abort, one of them, once.
type Transition struct {
	p      *Proxy
	next   []*Listener
	change []change
	opened []*socket // that are new
	closed []*socket // that nobody wants any more
	found  BindAddresses

	v4, v4Before map[uint16]bool // the ports that listeners have IPv4 addresses on, from now on and until now
}

// change is what becomes of one listener.
type change struct {
	ln       *Listener
	settings *settings
	sockets  []*socket
	watch    []*socket // of sockets, those that the loops do not watch yet
}

// Prepare makes ready for the listeners to be what specs say, all of them: it opens the sockets that are not
// open. A socket is kept where a listener of the same name has the same bind address, unless its file is
// gone: then no client reaches it any more, and it is made anew. On an error nothing has changed. No other
// Prepare may run until the Transition has ended.
//
// found are the addresses that LookUpBinds found. Prepare looks up the names that it lacks.
func (p *Proxy) Prepare(specs []ListenerSpec, found BindAddresses) (*Transition, error) {
	found = maps.Clone(found)
	if found == nil {
		found = BindAddresses{}
	}
	for i := range specs {
		for _, bind := range specs[i].Config.Bind {
			p.lookUpBind(bind, found)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, ErrStopped
	}
	t := &Transition{p: p, found: found}
	kept := map[*socket]bool{}
	if err := t.noteFamilies(specs); err != nil {
		return nil, err
	}
	for i := range specs {
		if err := t.add(&specs[i], kept); err != nil {
			t.Abort()
			return nil, err
		}
	}
	for _, ln := range p.listeners {
		for _, s := range *ln.sockets.Load() {
			if !kept[s] {
				t.closed = append(t.closed, s)
			}
		}
	}
	for _, c := range t.change {
		for _, s := range c.sockets {
			if port := portOf(s.fd); port != 0 {
				p.handed.listens(port, c.ln)
			}
		}
	}
	p.setEndPorts()
	return t, nil
}

// add prepares one listener.
func (t *Transition) add(spec *ListenerSpec, kept map[*socket]bool) error {
	ln := &Listener{Name: spec.Name}
	var old *settings
	var have []*socket
	if i := slices.IndexFunc(t.p.listeners, func(ln *Listener) bool { return ln.Name == spec.Name }); i >= 0 {
		ln = t.p.listeners[i]
		old, have = ln.settings.Load(), *ln.sockets.Load()
	}
	set, err := newSettings(spec, old, t.p)
	if err != nil {
		return err
	}
	c := change{ln: ln, settings: set}
	for _, bind := range spec.Config.Bind {
		if i := slices.IndexFunc(have, func(s *socket) bool { return s.bind == bind && !kept[s] && !s.lost() }); i >= 0 {
			kept[have[i]] = true
			c.sockets = append(c.sockets, have[i])
			continue
		}
		if s := t.p.socketAt(bind); s != nil {
			// another listener's, which has it no more: a bind address is there once
			kept[s] = true
			c.sockets = append(c.sockets, s)
			c.watch = append(c.watch, s)
			continue
		}
		s := t.p.takeInherited(spec.Name, bind)
		if s == nil {
			s = t.p.takeActivated(spec.Name, bind, &spec.Config)
		}
		if s == nil {
			if s, err = openSocket(bind, &spec.Config, t.found, leavesIPv4(bind, t.v4)); err != nil {
				err = t.p.blameActivated(spec.Name, bind, err)
				return fmt.Errorf("cannot open listener %q: %w", spec.Name, err)
			}
		}
		t.opened = append(t.opened, s)
		c.sockets = append(c.sockets, s)
		c.watch = append(c.watch, s)
	}
	t.next = append(t.next, ln)
	t.change = append(t.change, c)
	return nil
}

// Commit makes the change. New connections see it at once; sessions go on as they are. What waits in the
// queue of a socket that goes is accepted first.
func (t *Transition) Commit() {
	p := t.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		for _, s := range t.opened {
			s.close()
		}
		return
	}
	for _, c := range t.change {
		c.settings.begin()
		c.ln.settings.Store(c.settings)
		c.ln.sockets.Store(&c.sockets)
		for _, s := range c.sockets {
			if !slices.Contains(t.opened, s) {
				s.configure(&c.settings.cfg)
			}
		}
	}
	for _, c := range t.change {
		for _, s := range c.watch {
			for _, l := range p.loops {
				l.call(func(l *loop) { l.watch(c.ln, s) })
			}
		}
	}
	p.listeners = t.next
	p.closeSockets(t.closed)
}

// socketAt finds an open socket by its bind address; nil if there is none. Port 0 is another port each time,
// so nobody has that. The caller holds mu.
func (p *Proxy) socketAt(bind string) *socket {
	if a, err := backends.ParseAddress(bind); err == nil && !a.IsUnix() && a.Port == 0 {
		return nil
	}
	for _, ln := range p.listeners {
		for _, s := range *ln.sockets.Load() {
			if s.bind == bind && !s.lost() {
				return s
			}
		}
	}
	return nil
}

// Abort closes what Prepare opened. What it inherited stays open: the process before may want it back.
func (t *Transition) Abort() {
	for _, s := range t.opened {
		if !s.inherited {
			s.close()
		}
	}
}

// closeSockets accepts what waits and closes. The caller holds mu.
func (p *Proxy) closeSockets(sockets []*socket) {
	for _, s := range sockets {
		for _, l := range p.loops {
			l.call(func(l *loop) { l.unwatch(s) })
		}
		s.close()
	}
}
