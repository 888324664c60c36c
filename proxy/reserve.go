package proxy

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// fdsPerLoop is what a loop needs of its own: its epoll set, its inbox, its ring, and the pipes that it
// keeps.
const fdsPerLoop = 5 + 2*maxIdlePipes

// defaultReserve is how many descriptors are left to the rest of the process until Reserve says how many.
const defaultReserve = 128

// SessionLimit returns how many sessions fit into RLIMIT_NOFILE, of which it also returns the soft limit,
// when the rest of the process needs reserved descriptors: two a session. The error says that there is no
// room for any.
func SessionLimit(cfg *Config, reserved int) (sessions int64, nofile uint64, err error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, 0, fmt.Errorf("cannot read RLIMIT_NOFILE: %w", err)
	}
	own := int64(reserved) + int64(loops(cfg))*fdsPerLoop
	n := (int64(min(lim.Cur, 1<<30)) - own) / 2
	if n < 1 {
		return 0, lim.Cur, fmt.Errorf("cannot hold a single session: RLIMIT_NOFILE is %d, and lb needs %d descriptors for itself; raise it (ulimit -n, LimitNOFILE=)", lim.Cur, own)
	}
	return n, lim.Cur, nil
}

// loops returns how many event loops a config asks for.
func loops(cfg *Config) int {
	if cfg.Loops == 0 {
		return runtime.NumCPU()
	}
	return cfg.Loops
}

// Reserve leaves n descriptors to the rest of the process, and returns how many sessions there may be from
// now on: as many as fit into RLIMIT_NOFILE, and no more than Config.MaxSessions. Sessions above a lower
// limit stay. On an error nothing has changed.
func (p *Proxy) Reserve(n int) (sessions int64, err error) {
	limit, _, err := SessionLimit(&p.cfg, n)
	if err != nil {
		return 0, err
	}
	if p.cfg.MaxSessions > 0 {
		limit = min(limit, int64(p.cfg.MaxSessions))
	}
	p.maxSessions.Store(limit)
	p.wakeForRoom()
	return limit, nil
}
