package config

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/273ebdf9/lb/backends"
)

// MissingDirectories warns of directories that this config needs and this host has not, in the order of the file: it asks
// the file system, which Parse does not. File is the config's name in the warnings.
func (c *Config) MissingDirectories(file string) []Fault {
	at, _ := locate(string(c.Source))
	d := decoder{at: at, faulty: map[string]bool{}}
	d.needDirectory("log.output", c.Log.Output, 0)
	d.needDirectory("log.access", c.Log.Access, 0)
	d.needDirectory("admin.state_file", c.Admin.StateFile, 0)
	d.needDirectory("admin.socket", c.Admin.Socket, 1)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		for j, bind := range l.Bind {
			if a, err := backends.ParseAddress(bind); err == nil && a.IsUnix() {
				d.needDirectory(index(join(join("listeners", l.Name), "bind"), j), a.Path, 0)
			}
		}
	}
	for i := range c.Pools {
		if p := &c.Pools[i]; p.Workers != nil {
			d.needDirectory(join(join(join("pools", p.Name), "workers"), "log"), p.Workers.Log, 0)
		}
	}
	sortFaults(d.warnings)
	for i := range d.warnings {
		d.warnings[i].File = file
	}
	return d.warnings
}

// needDirectory warns if there is no directory for a file; made is how many of the last directories lb makes itself. What
// is no absolute path is a word, or an abstract socket.
func (d *decoder) needDirectory(path, file string, made int) {
	dir := filepath.Dir(file)
	if !filepath.IsAbs(file) || strings.Contains(dir, "{") {
		return
	}
	need := dir
	for range made {
		need = filepath.Dir(need)
	}
	for _, one := range []string{dir, need} {
		if info, err := os.Stat(one); err == nil && info.IsDir() {
			return
		}
	}
	d.warn(path, "there is no directory %s on this host, without which lb cannot start; make it (mkdir -p), or name another", strconv.Quote(need))
}
