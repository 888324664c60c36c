package config

import (
	"reflect"
	"slices"
	"strings"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/cluster"
	"github.com/273ebdf9/lb/discovery"
)

// check finds the faults of a decoded config: those that the Config types find in themselves, and those
// between them.
func (d *decoder) check(c *Config) {
	d.validate("", reflect.ValueOf(c).Elem())
	users := d.checkListeners(c)
	d.checkBinds(c)
	for i := range c.Pools {
		d.checkPool(c, &c.Pools[i], users[c.Pools[i].Name])
		d.checkWorkers(c, &c.Pools[i])
		d.checkHandoff(&c.Pools[i], users[c.Pools[i].Name])
	}
	if !d.textOnly { // what runs cannot be refused any more
		d.checkLoops(c, textual)
	}
}

// validate adds the faults that v and every struct in it find in themselves. A fault at a key that has one
// already is left out: the key still has its default, and what is wrong with that is not the writer's.
func (d *decoder) validate(path string, v reflect.Value) {
	walk(path, v, func(path string, x any) {
		if c, ok := x.(interface{ Validate() error }); ok {
			validate := c.Validate
			if text, ok := c.(interface{ ValidateText() error }); ok && d.textOnly {
				validate = text.ValidateText
			}
			for _, f := range slices.DeleteFunc(relativeFaults(path, validate()), func(f Fault) bool { return d.isFaulty(f.Path) }) {
				d.fault(f.Path, "%s", f.Message)
			}
		}
	})
}

// walk calls visit with a pointer to v and to every struct in it that is a table of the config.
func walk(path string, v reflect.Value, visit func(path string, x any)) {
	visit(path, v.Addr().Interface())
	for _, f := range fieldsOf(v.Type()) {
		if _, ok := tableType(f); !ok {
			continue
		}
		value, key := v.FieldByIndex(f.Index), join(path, f.key)
		switch {
		case f.named:
			for i := range value.Len() {
				walk(join(key, value.Index(i).FieldByName("Name").String()), value.Index(i), visit)
			}
		case f.Type.Kind() == reflect.Slice:
			for i := range value.Len() {
				walk(index(key, i), value.Index(i), visit)
			}
		case f.Type.Kind() == reflect.Pointer:
			if !value.IsNil() {
				walk(key, value.Elem(), visit)
			}
		default:
			walk(key, value, visit)
		}
	}
}

// relativeFaults are the errors of a Validate, each of which begins with its key relative to path.
func relativeFaults(path string, err error) []Fault {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var faults []Fault
		for _, e := range joined.Unwrap() {
			faults = append(faults, relativeFaults(path, e)...)
		}
		return faults
	}
	key, message, ok := strings.Cut(err.Error(), ": ")
	if !ok {
		return []Fault{{Path: path, Message: oneLine(err.Error())}}
	}
	return []Fault{{Path: strings.TrimPrefix(path+"."+key, "."), Message: oneLine(message)}}
}

func (d *decoder) checkName(path, noun, name string) {
	if !backends.ValidName(name) {
		d.fault(path, "%s cannot name a %s; write 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first",
			brief(name), noun)
	}
}

// poolsOf are the pools that a listener sends connections to, by the path of the key that says so.
func poolsOf(l *Listener) map[string]string {
	path := join("listeners", l.Name)
	pools := map[string]string{}
	if l.Pool != "" {
		pools[join(path, "pool")] = l.Pool
	}
	for name := range l.Split {
		pools[join(join(path, "split"), name)] = name
	}
	return pools
}

// checkListeners finds listeners without a pool. It returns the listeners that use each pool.
func (d *decoder) checkListeners(c *Config) (users map[string][]*Listener) {
	if len(c.Listeners) == 0 && !d.isFaulty("listeners") {
		d.fault("listeners", "missing; add a [listeners.NAME] with bind and pool")
	}
	var pools []string
	exists := map[string]bool{}
	for i := range c.Pools {
		pools = append(pools, c.Pools[i].Name)
		exists[c.Pools[i].Name] = true
	}
	users = map[string][]*Listener{}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		for path, pool := range poolsOf(l) {
			switch near := nearest(pool, pools); {
			case exists[pool]:
				users[pool] = append(users[pool], l)
			case d.isFaulty(path), len(pools) == 0 && d.isFaulty("pools"):
			case near != "":
				d.fault(path, "there is no pool %s; did you mean %q?", brief(pool), near)
			default:
				d.fault(path, "there is no pool %s; add [%s] or name another", brief(pool), join("pools", pool))
			}
		}
		d.checkName(join("listeners", l.Name), "listener", l.Name)
		d.checkPublish(c, l)
	}
	return users
}

// checkPool checks a pool that the listeners use.
func (d *decoder) checkPool(c *Config, p *Pool, users []*Listener) {
	path := join("pools", p.Name)
	if len(p.Backends) == 0 && p.Workers == nil && p.Discover == "" && !d.isFaulty(join(path, "backends")) && !d.isFaulty(join(path, "discover")) {
		d.fault(join(path, "backends"), "missing; add a [[%s.backends]] with an address, or [%s.workers] with a command", path, path)
	}
	d.checkDiscovery(c, p)
	if len(users) == 0 {
		d.warn(path, "no listener uses this pool")
	}
	if p.IdleTimeout > 0 && p.IdleTimeout < p.ConnectTimeout {
		d.warn(d.firstSet(path, "idle_timeout", "connect_timeout"), "idle_timeout %s is below connect_timeout %s",
			formatDuration(p.IdleTimeout), formatDuration(p.ConnectTimeout))
	}
	if p.Health.Type != "none" && p.Health.Type != "notify" && p.Health.Timeout > p.Health.Interval {
		d.warn(d.firstSet(join(path, "health"), "timeout", "interval"), "timeout %s is above interval %s",
			formatDuration(p.Health.Timeout), formatDuration(p.Health.Interval))
	}
	d.checkLiveness(p)
	d.checkAddresses(p)
	d.checkName(path, "pool", p.Name)
}

// checkPublish checks what a listener shows to other hosts.
func (d *decoder) checkPublish(c *Config, l *Listener) {
	path := join(join("listeners", l.Name), "publish")
	if l.Publish == "" || d.isFaulty(path) {
		return
	}
	p := c.Pool(l.Pool)
	switch err := cluster.CheckPublish(l.Publish); {
	case err != nil:
		d.fault(path, "%v", err)
	case c.Cluster == nil && !d.isFaulty("cluster"):
		d.fault(path, "it needs the cluster that lb belongs to; add [cluster] with its name and endpoints")
	case len(l.Split) > 0:
		d.fault(path, "a listener with a split has no pool to publish; give it one pool")
	case p != nil && p.Discover == discovery.Etcd:
		d.fault(path, "pool %q has what others publish (discover = \"etcd\"); publish what lb reaches without the cluster", p.Name)
	}
}

// checkDiscovery checks where a pool finds more backends, and what does not go with backends that come and
// go.
func (d *decoder) checkDiscovery(c *Config, p *Pool) {
	path := join("pools", p.Name)
	for _, f := range relativeFaults(path, p.PoolConfig.Check()) {
		if !d.isFaulty(f.Path) {
			d.fault(f.Path, "%s", f.Message)
		}
	}
	if p.Discover == "" {
		return
	}
	if p.Discover == discovery.Etcd && c.Cluster == nil && !d.isFaulty("cluster") {
		d.fault(join(path, "discover"), "\"etcd\" needs the cluster that lb belongs to; add [cluster] with its name and endpoints")
	}
	switch {
	case p.Health.Type == "notify":
		d.fault(join(join(path, "health"), "type"), `with "notify" discovered backends would always be down: only workers can tell lb a heartbeat; leave discover out, or name another type`)
	case p.HandsOff():
		d.fault(join(path, "discover"), "lb hands sockets to its own workers only (handoff = %q); leave discover out, or write handoff = \"off\"", p.Handoff)
	case p.Balance == "first" && p.MaxConns == 0 && !d.isFaulty(join(path, "max_conns")):
		d.fault(join(path, "max_conns"), `missing; "first" fills one backend after the other, and discovered ones have the pool's limit`)
	}
}

// noConnect returns what to use instead of "connect".
const noConnect = `use "http", "send-expect", or for workers "notify"`

// checkLiveness warns of a pool whose backends could hang unseen.
func (d *decoder) checkLiveness(p *Pool) {
	if p.Health.Type == "connect" {
		d.warn(join(join(join("pools", p.Name), "health"), "type"),
			`"connect" does not see a backend that hangs, as the kernel answers for it; leave the key out for "accept", or %s`, noConnect)
	}
}

// checkAddresses warns of a backend that is there twice, which takes a double share.
func (d *decoder) checkAddresses(p *Pool) {
	path := func(i int) string { return join(index(join(join("pools", p.Name), "backends"), i), "address") }
	first := map[backends.Address]int{}
	for i, b := range p.Backends {
		a, err := backends.ParseAddress(b.Address)
		if err != nil {
			continue
		}
		if other, ok := first[normal(a)]; ok {
			d.warn(path(i), "%s is the address of backends[%d] too", a, other)
			continue
		}
		first[normal(a)] = i
	}
}

// firstSet is the path of the first of two keys of a table, or of the second where only that is in the file.
func (d *decoder) firstSet(table, first, second string) string {
	if path := join(table, second); !d.isSet(join(table, first)) && d.isSet(path) {
		return path
	}
	return join(table, first)
}
