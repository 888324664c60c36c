package bench

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Handoff returns a build of lb, the binary at path, that hands accepted sockets over to nginx workers of its
// own, as many as there are backends and serving the same. They are unchanged: they take the sockets through
// lb's preloaded library.
func Handoff(p Programs, name, path string, loops int) Contender {
	c := LB(name, path, nil)
	c.Kind, c.OwnsWorkers = KindHandoff, true
	c.Command = func(home, addr string, backends []Backend) (Command, error) {
		for slot := range backends {
			worker := filepath.Join(home, fmt.Sprintf("worker%d", slot))
			if _, err := nginxCommand(p, name, worker, backendConfig(worker, backends[slot].Root, addr+backlog)); err != nil {
				return Command{}, err
			}
		}
		return LB(name, path, func(home, addr string, backends []Backend) string {
			return handoffConfig(p, home, addr, loops, len(backends))
		}).Command(home, addr, backends)
	}
	return c
}

// handoffConfig is the configuration of lb with workers that take sockets. The variable NGINX has nginx
// inherit its listening socket, as in a change of its binary.
func handoffConfig(p Programs, home, addr string, loops, workers int) string {
	var b strings.Builder
	b.WriteString(lbConfig(home, addr, loops, ""))
	fmt.Fprintf(&b, `[pools.app]
handoff = "lb"
[pools.app.health]
interval = "2s"
[pools.app.workers]
command = [%[1]q, "-c", "%[2]s/worker{slot}/nginx.conf", "-e", "%[2]s/worker{slot}/error.log"]
count = %[3]d
env = { NGINX = "3;", LD_PRELOAD = %[4]q }
orphans = "stop"
`, p.Nginx, home, workers, p.Preload)
	return b.String()
}
