package config

import (
	"strings"

	"github.com/273ebdf9/lb/supervisor"
)

// checkWorkers checks what lies between a pool's workers and the rest.
func (d *decoder) checkWorkers(c *Config, p *Pool) {
	path := join("pools", p.Name)
	if p.Workers == nil {
		if p.Health.Type == "notify" && len(p.Backends) > 0 {
			d.fault(join(join(path, "health"), "type"), `"notify" is for workers, [%s.workers]: only workers can send lb a heartbeat`, path)
		}
		return
	}
	workers := join(path, "workers")
	if p.Health.Type == "accept" && !p.HandsOff() && !d.isSet(join(workers, "kill_after")) {
		p.Workers.KillAfter = 0
	}
	if p.Health.Type == "notify" && len(p.Backends) > 0 {
		d.fault(join(join(path, "health"), "type"), `with "notify" the backends would always be down: only workers can tell lb a heartbeat; give the backends a pool of their own`)
	}
	if p.Balance == "first" && p.MaxConns == 0 && len(p.Backends) > 0 && !d.isFaulty(join(path, "max_conns")) {
		d.fault(join(path, "max_conns"), `missing; "first" fills one backend after the other, and workers have the pool's limit`)
	}
	if c.Admin.EffectiveRunDir() == "" && !d.isFaulty("admin.run_dir") && !d.isFaulty("admin.socket") {
		d.fault("admin.run_dir", "missing; %s needs it where admin.socket is off", workers)
	}
	if dir := c.Admin.EffectiveRunDir(); !d.textOnly && dir != "" && !d.isFaulty("admin.run_dir") && !d.isFaulty("admin.socket") {
		if err := supervisor.CheckRunDir(dir, p.Name); err != nil {
			d.fault(d.firstSet("admin", "run_dir", "socket"), "%v", err)
		}
	}
	if p.Name == "lock" || strings.HasSuffix(strings.TrimSuffix(p.Name, ".new"), ".json") {
		d.fault(path, "a pool with workers cannot have this name: it is that of a file in admin.run_dir")
	}
	for i, b := range p.Backends {
		if supervisor.IsBackendName(b.EffectiveName()) {
			d.fault(join(index(join(path, "backends"), i), "name"), "%q has the form of a worker's name; choose another", b.EffectiveName())
		}
	}
}
