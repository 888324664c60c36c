package backends

// RampRuns reports whether the clock of slow starts runs.
func (p *Pool) RampRuns() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ramp.running
}

// ConfigNow returns the backend's configuration.
func (b *Backend) ConfigNow() BackendConfig { return *b.config.Load() }
