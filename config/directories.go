package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/supervisor"
)

// MissingDirectories warns of directories, and programs of workers, that this config needs and this host has not, in the order of the file: it asks
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
			d.needForWorkers(join(join("pools", p.Name), "workers"), p.Workers)
		}
	}
	sortFaults(d.warnings)
	for i := range d.warnings {
		d.warnings[i].File = file
	}
	return d.warnings
}

// needForWorkers warns of what keeps workers from starting, though lb itself starts without it.
func (d *decoder) needForWorkers(path string, w *supervisor.Config) {
	if log := filepath.Dir(w.Log); filepath.IsAbs(w.Log) && !strings.Contains(log, "{") && !isDirectory(log) {
		d.warn(join(path, "log"), "there is no directory %s on this host, without which what the workers write is lost; make it (mkdir -p), or name another", strconv.Quote(log))
	}
	if w.Dir != "" && !isDirectory(w.Dir) {
		d.warn(join(path, "dir"), "there is no directory %s on this host, without which no worker starts; make it (mkdir -p), or name another", strconv.Quote(w.Dir))
	}
	program := w.Command[0]
	if !filepath.IsAbs(program) || strings.Contains(program, "{") { // others are looked for in the worker's PATH or directory
		return
	}
	if _, err := exec.LookPath(program); err != nil {
		d.warn(join(path, "command"), "there is no program %s on this host that may be run, without which no worker starts; put it there, or name another", strconv.Quote(program))
	}
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
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
		if isDirectory(one) {
			return
		}
	}
	d.warn(path, "there is no directory %s on this host, without which lb cannot start; make it (mkdir -p), or name another", strconv.Quote(need))
}
