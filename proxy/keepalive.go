package proxy

// Sessions that began together would all be probed by the kernel in the same moment, which loses some of the
// probes on a loopback device, again and again, and takes healthy sessions for dead.

import (
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// spreadKeepalive gives the session times of its own for its keepalive probes: half to the whole of
// keepalive, and three quarters to five quarters of keepalive_interval. Only sessions that live for a while
// pay for it.
func (s *session) spreadKeepalive() {
	if s.phase != phaseRelaying {
		return
	}
	set := s.listener.settings.Load()
	for e, cfg := range []*backends.TCPConfig{client: &set.cfg.TCPConfig, backend: &s.pool.Config().TCPConfig} {
		if s.isUnix(e) || cfg.Keepalive <= 0 {
			continue
		}
		fd := int(s.ends[e].fd)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, between(cfg.Keepalive/2, cfg.Keepalive))
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, between(cfg.KeepaliveInterval*3/4, cfg.KeepaliveInterval*5/4))
	}
}

// between returns a random time from least to most in whole seconds, at least 1.
func between(least, most time.Duration) int {
	from, to := int((least+time.Second-1)/time.Second), int(most/time.Second)
	return max(from+rand.IntN(max(to-from+1, 1)), 1)
}
