package proxy

// Settle returns when every loop has dealt with what had reached it before the call.
func (p *Proxy) Settle() {
	for range 3 {
		// a loop looks at the message that ends the wait before or after the other events of its round
		p.onLoops(func(*loop) {})
	}
}

// HoldLoops keeps every loop from doing anything until release is called.
func (p *Proxy) HoldLoops() (release func()) {
	held, free := make(chan struct{}), make(chan struct{})
	for _, l := range p.loops {
		l.post(message{do: func(*loop) { held <- struct{}{}; <-free }})
	}
	for range p.loops {
		<-held
	}
	return func() { close(free) }
}

// SessionFDs are the descriptors of both ends of every session, the client's first; -1 where there is none.
func (p *Proxy) SessionFDs() (fds [][2]int) {
	p.onLoops(func(l *loop) {
		l.table.each(func(s *session) {
			fds = append(fds, [2]int{int(s.ends[client].fd), int(s.ends[backend].fd)})
		})
	})
	return fds
}

// LiveSources is how many client addresses the listener counts connections of now.
func (ln *Listener) LiveSources() (n int) {
	for _, s := range ln.settings.Load().sources.Export(0) {
		if s.Conns > 0 {
			n++
		}
	}
	return n
}
