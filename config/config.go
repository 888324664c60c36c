// Package config reads lb's configuration: strict TOML into a checked Config.
//
// What the keys are, their defaults and their checks belong to the packages that they configure, as their
// Config types, DefaultConfig and Validate; this package puts them together, and adds what no single one can
// check. Every fault of a file is found in one go, with its line, its TOML path and what to write instead.
// The package starts no goroutine, and never changes or watches a file.
package config

import (
	"context"
	_ "embed"
	"fmt"
	"reflect"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/cluster"
	"github.com/273ebdf9/lb/discovery"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

//go:generate go run ./internal/reference ../docs/config.md lb.schema.json

// Schema is the JSON Schema (draft 2020-12) of a config file, for editors. It must not be changed.
//
//go:embed lb.schema.json
var Schema []byte

// Config is a whole configuration. Load and Parse return only checked ones.
//
// A key or table is added where it belongs: a field with a toml tag in one of the Config types here or of the
// packages. A new Config type is also added to newDefaults. Absent tables have their defaults; a pointer to a
// struct is an optional table, nil when absent.
type Config struct {
	// Proxy is how lb carries connections.
	Proxy proxy.Config `toml:"proxy"`
	// Admin is how lb is controlled and observed.
	Admin admin.Config `toml:"admin"`
	// Log is what lb writes about itself and its sessions.
	Log logs.Config `toml:"log"`
	// Cluster is the cluster of lbs on several hosts that this one belongs to (docs/fleet.md). Without this
	// table it belongs to none, and connects to no etcd. It takes a restart to change it.
	Cluster *cluster.Config `toml:"cluster"`
	// Listeners are the addresses that clients connect to, one table for each listener, in the order of the
	// file. At least one.
	Listeners []Listener `toml:"listeners,named"`
	// Pools are the sets of backends that connections go to, one table for each pool, in the order of the
	// file.
	Pools []Pool `toml:"pools,named"`

	// Source is the text that it was read from.
	Source []byte `toml:"-"`
	// Warnings are what is legal and probably wrong, in the order of the file.
	Warnings []Fault `toml:"-"`
}

// Listener is one [listeners.NAME].
type Listener struct {
	Name string `toml:"-"`
	proxy.ListenerConfig
	cluster.PublishConfig
}

// Pool is one [pools.NAME]. Its Backends and its Config.Backends are one slice.
type Pool struct {
	Name string `toml:"-"`
	backends.Config
	discovery.PoolConfig
	// Health is how lb finds out which of the pool's backends are alive.
	Health health.Config `toml:"health"`
	// Workers are the processes that lb starts and watches itself, as backends of the pool. Without this
	// table it runs none.
	Workers *supervisor.Config `toml:"workers"`
	// Backends are the places that the pool sends connections to, one table for each, in order. A pool needs
	// these, workers, or discover; it may have all of them.
	Backends []backends.BackendConfig `toml:"backends"`
}

// newDefaults has the defaults of every Config type.
func newDefaults() defaultsByType {
	return byType(
		proxy.DefaultConfig(),
		proxy.DefaultListenerConfig(),
		cluster.DefaultConfig(),
		cluster.DefaultPublishConfig(),
		proxy.DefaultAccessConfig(),
		admin.DefaultConfig(),
		logs.DefaultConfig(),
		backends.DefaultConfig(),
		backends.DefaultBackendConfig(),
		backends.DefaultTCPConfig(),
		discovery.DefaultPoolConfig(),
		health.DefaultConfig(),
		supervisor.DefaultConfig(),
		supervisor.DefaultConfig().Recycle,
	)
}

// Load reads the file at path, at most 1 MiB, and does as Parse does. It also finds the backends that are lb
// itself by a name or a symbolic link of this host, and warns of a file that others may write to. The error
// is of the operating system when the file cannot be read, and an *Error that lists every fault when it is
// not a valid config.
func Load(path string) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	d := c.onHost()
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	defer cancel()
	d.checkLoops(c, newHost(ctx))
	d.checkWriters(path)
	if faults := named(path, d.faults); len(faults) > 0 {
		return nil, &Error{Faults: faults}
	}
	c.Warnings = append(c.Warnings, named(path, d.warnings)...)
	return c, nil
}

// onHost returns what collects faults that lie between the config and this host.
func (c *Config) onHost() *decoder {
	at, _ := locate(string(c.Source))
	return &decoder{at: at, faulty: map[string]bool{}}
}

// named returns the faults in the order of the file, with its name in them.
func named(file string, faults []Fault) []Fault {
	sortFaults(faults)
	for i := range faults {
		faults[i].File = file
	}
	return faults
}

// Parse reads a config. The name stands for it in faults, as the path does for Load. The error is an *Error
// that lists every fault; of faults in the syntax there is only the first.
func Parse(name string, data []byte) (*Config, error) { return parseNamed(name, data, false) }

// ParseRunning is Parse for a config that runs already: it does not ask whether the host still has the users
// and groups that it names.
func ParseRunning(name string, data []byte) (*Config, error) { return parseNamed(name, data, true) }

func parseNamed(name string, data []byte, textOnly bool) (*Config, error) {
	c, faults := parse(data, textOnly)
	for i := range faults {
		faults[i].File = name
	}
	if len(faults) > 0 {
		return nil, &Error{Faults: faults}
	}
	for i := range c.Warnings {
		c.Warnings[i].File = name
	}
	c.Source = data
	return c, nil
}

func parse(data []byte, textOnly bool) (*Config, []Fault) {
	if f, ok := checkText(data); !ok {
		return nil, []Fault{f}
	}
	text := string(data)
	at, tooDeep := locate(text)
	if tooDeep > 0 {
		return nil, []Fault{{Line: tooDeep, Message: fmt.Sprintf("nested more than %d deep; no key of lb is", maxDepth)}}
	}
	var raw map[string]any
	if err := decodeTOML(text, &raw); err != nil {
		return nil, []Fault{syntaxFault(text, err)}
	}

	c := &Config{}
	d := decoder{defaults: newDefaults(), tables: Tables(), at: at, faulty: map[string]bool{}, textOnly: textOnly}
	d.defaults.set(reflect.ValueOf(c).Elem())
	d.value("", raw, reflect.ValueOf(c).Elem())
	for i := range c.Pools {
		c.Pools[i].Config.Backends = c.Pools[i].Backends
	}
	d.check(c)
	sortFaults(d.faults)
	sortFaults(d.warnings)
	c.Warnings = d.warnings
	return c, d.faults
}

// Pool is the pool of that name, or nil.
func (c *Config) Pool(name string) *Pool {
	for i := range c.Pools {
		if c.Pools[i].Name == name {
			return &c.Pools[i]
		}
	}
	return nil
}

// Listener is the listener of that name, or nil.
func (c *Config) Listener(name string) *Listener {
	for i := range c.Listeners {
		if c.Listeners[i].Name == name {
			return &c.Listeners[i]
		}
	}
	return nil
}

// defaultsByType has the default of each Config type.
type defaultsByType map[reflect.Type]reflect.Value

func byType(defaults ...any) defaultsByType {
	m := defaultsByType{}
	for _, v := range defaults {
		m[reflect.TypeOf(v)] = reflect.ValueOf(v)
	}
	return m
}

// set sets v to its default, and so do the structs inside of a struct that has none of its own.
func (m defaultsByType) set(v reflect.Value) {
	if def, ok := m[v.Type()]; ok {
		v.Set(def)
		return
	}
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				m.set(v.Field(i))
			}
		}
	}
}
