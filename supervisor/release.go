package supervisor

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
)

// Release is what a worker is made from: the part of a Config that only another process can take on. It is
// plain data, and never changed once made.
type Release struct {
	Command []string          `json:"command"`
	Env     map[string]string `json:"env,omitempty"`
	Dir     string            `json:"dir,omitempty"`
	// instead of Dir: where it led when this release last worked
	Pin          string `json:"pin,omitempty"`
	User         string `json:"user,omitempty"`
	Group        string `json:"group,omitempty"`
	Umask        string `json:"umask,omitempty"`
	Nice         int    `json:"nice,omitempty"`
	RlimitNofile uint64 `json:"rlimit_nofile,omitempty"`
	Handoff      string `json:"handoff,omitempty"`

	text string // what key gives, once it was asked for; the pool's goroutine's
}

// release returns the part of c that only another process can take on.
func (c *Config) release() *Release {
	return &Release{
		Command: slices.Clone(c.Command), Env: maps.Clone(c.Env), Dir: c.Dir, User: c.User, Group: c.Group, Umask: c.Umask,
		Nice: c.Nice, RlimitNofile: c.RlimitNofile, Handoff: c.Handoff,
	}
}

// config returns a Config with the release's part, for its methods.
func (r *Release) config() *Config {
	return &Config{Command: r.Command, Env: r.Env, User: r.User, Group: r.Group, Handoff: r.Handoff}
}

// pinned returns r with dir as its directory, instead of the one in the config; empty: the one in the config
// again.
func (r *Release) pinned(dir string) *Release {
	if r.Pin == dir {
		return r
	}
	c := *r
	c.Pin, c.text = dir, ""
	return &c
}

// follow returns the directory that a worker starts in, with links followed; empty for lb's own.
func (r *Release) follow() (string, error) {
	switch {
	case r.Pin != "":
		return r.Pin, nil
	case r.Dir == "":
		return "", nil
	}
	dir, err := filepath.EvalSymlinks(r.Dir)
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// same reports whether two releases make the same worker.
func (r *Release) same(o *Release) bool { return r == o || r.key() == o.key() }

func (r *Release) key() string {
	if r.text == "" {
		text, err := json.Marshal(r)
		if err != nil {
			panic("BUG: supervisor: a release that is no JSON: " + err.Error())
		}
		r.text = string(text)
	}
	return r.text
}
