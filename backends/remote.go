package backends

import (
	"fmt"
	"path/filepath"
	"strings"
)

// CheckRemote returns an error if a caller who may change the pool over HTTP, and nothing else on this host,
// may not add a backend at that address. The caller may name any address of TCP, but a Unix socket only
// beside one that the pool has already, in a directory that is made for such sockets: root's lb may open what
// the caller may not, a container engine's socket for one, in /run.
func (p *Pool) CheckRemote(a Address) error {
	const instead = "add it over the control socket (lb add), or to the config"
	if !a.IsUnix() {
		return nil
	}
	if a.Path[0] == '@' {
		return fmt.Errorf("over HTTP no abstract Unix socket can be added, as it has no directory that tells whose it is: %s", instead)
	}
	dir := filepath.Dir(filepath.Clean(a.Path))
	if strings.Count(dir, "/") < 2 || dir == "/var/run" || dir == "/var/tmp" || dir == "/dev/shm" {
		return fmt.Errorf("over HTTP no Unix socket can be added from %s, which sockets of other services are in: %s", dir, instead)
	}
	for _, b := range p.Backends() {
		if b.Address.IsUnix() && b.Address.Path[0] != '@' && filepath.Dir(filepath.Clean(b.Address.Path)) == dir {
			return nil
		}
	}
	return fmt.Errorf("over HTTP a Unix socket can be added only from a directory from which pool %q has a backend, and %s is none: %s", p.Name, dir, instead)
}
