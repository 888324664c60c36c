//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// etcdNode is a node of etcd, alone in its cluster.
type etcdNode struct {
	*process
	client, peer, dir string
}

// startEtcd starts etcd with the data in dir.
func startEtcd(t testing.TB, n *etcdNode) {
	t.Helper()
	cmd := exec.Command(program(t, "etcd"), "--name", "n1", "--data-dir", n.dir, "--log-level", "error",
		"--listen-client-urls", "http://"+n.client, "--advertise-client-urls", "http://"+n.client,
		"--listen-peer-urls", "http://"+n.peer, "--initial-advertise-peer-urls", "http://"+n.peer, "--initial-cluster", "n1=http://"+n.peer)
	n.process = startProcess(t, "etcd", cmd)
	eventually(t, patience, func() error {
		c, err := net.Dial("tcp", n.client)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func newEtcd(t testing.TB) *etcdNode {
	t.Helper()
	n := &etcdNode{client: freePort(t, "127.0.0.1"), peer: freePort(t, "127.0.0.1"), dir: tempDir(t)}
	startEtcd(t, n)
	return n
}

// ctl runs etcdctl.
func (n *etcdNode) ctl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(program(t, "etcdctl"), append([]string{"--endpoints", n.client}, args...)...)
	cmd.Env = append(cmd.Environ(), "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("etcdctl %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// clusterOptions is [cluster] for a host.
func (n *etcdNode) clusterOptions(host string) string {
	return fmt.Sprintf("[cluster]\nname = \"test\"\nhost = %q\nendpoints = [\"http://%s\"]\n", host, n.client)
}

// startHost starts an lb that publishes pool app, with one backend that says the host's name.
func startHost(t testing.TB, n *etcdNode, host string) *lb {
	t.Helper()
	config := onePool(t, greeter(t, host))
	config.Options = n.clusterOptions(host)
	config.Listeners[0].Options = fmt.Sprintf("publish = %q", config.Listeners[0].Bind[0])
	return startLB(t, config)
}

// greeter is a backend that says a word to each client and holds the connection until the client ends it.
func greeter(t testing.TB, word string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", word)
				c.Read(make([]byte, 1))
			}()
		}
	}()
	return l.Addr().String()
}

// wantBackends waits until a front has these backends, each as NAME:WEIGHT, that are up.
func wantBackends(t testing.TB, front *lb, when string, want ...string) {
	t.Helper()
	eventually(t, patience, func() error {
		s, err := front.readStatus(t)
		if err != nil {
			return err
		}
		var got []string
		for _, b := range s.Pools[0].Backends {
			if b.Health == "up" {
				got = append(got, fmt.Sprintf("%s:%d", b.Name, b.Weight))
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%s: got backends %q; want %q", when, got, want)
		}
		return nil
	})
}

// hostReached is the host that a connection through the front reaches. The connection stays open.
func hostReached(t testing.TB, front *lb) (string, net.Conn) {
	t.Helper()
	c, err := net.DialTimeout("tcp", front.addr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	word := make([]byte, 16)
	n, err := c.Read(word)
	if err != nil {
		t.Fatalf("a connection failed that one lb would have served: %v", err)
	}
	return strings.TrimSpace(string(word[:n])), c
}

// serves opens a connection through the front, and closes it.
func serves(t testing.TB, front *lb) (host string) {
	t.Helper()
	host, c := hostReached(t, front)
	c.Close()
	return host
}

// discovery is what lb status says of the front's discover.
func (l *lb) discovery(t testing.TB) (st struct {
	StaleSince time.Time `json:"stale_since"`
	Error      string
}) {
	t.Helper()
	_, answer, err := l.api("GET", "/v1/pools/app", "")
	if err != nil {
		t.Fatal(err)
	}
	body := struct{ Discovery any }{&st}
	if err := json.Unmarshal(answer, &body); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	return st
}

func waitStale(t testing.TB, l *lb, want bool) {
	t.Helper()
	eventually(t, patience, func() error {
		if st := l.discovery(t); st.StaleSince.IsZero() == want {
			return fmt.Errorf("got %+v; want stale %v", st, want)
		}
		return nil
	})
}

// One walk through what a cluster goes through, so that lbs and etcd start once.
func TestCluster_FrontsFollowTheHostsAndOutliveEtcd(t *testing.T) {
	t.Parallel()
	etcd := newEtcd(t)
	h1, h2 := startHost(t, etcd, "h1"), startHost(t, etcd, "h2")
	config := lbConfig{
		StateFile: tempDir(t) + "/state",
		Options:   etcd.clusterOptions("front"),
		Listeners: []lbListener{{Name: "web", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "app"}},
		Pools:     []lbPool{{Name: "app", Options: `discover = "etcd"`, Health: "interval = \"100ms\""}},
	}
	front := startLB(t, config)
	both := []string{"h1.web:100", "h2.web:100"}
	wantBackends(t, front, "at the start", both...)
	seen := map[string]bool{}
	var open []net.Conn
	for range 4 {
		word, c := hostReached(t, front)
		seen[word], open = true, append(open, c)
	}
	if !seen["h1"] || !seen["h2"] {
		t.Errorf("got connections to %v; want both hosts", seen)
	}

	// What a host's operator sets is what the front sees.
	if status, answer, err := h2.api("PUT", "/v1/pools/app/backends/w1/weight", `{"weight":40}`); err != nil || status != 200 {
		t.Fatalf("cannot set a weight: %d %s %v", status, answer, err)
	}
	wantBackends(t, front, "another weight", "h1.web:100", "h2.web:40")

	// Hostile writers change nothing, and are named once each.
	for i, kv := range [][2]string{
		{"app/h1/web", "garbage"}, {"app/h3/web", `{"address":"unix:/etc/passwd","weight":1}`}, {"app/h4/\x1b[2J", "{}"},
		{"app/h5/web", strings.Repeat("x", 100000)}, {"app/h6/web", `{"address":"10.0.0.1:80","weight":"much"}`}, {"app/h7", `{}`},
	} {
		etcd.ctl(t, "put", "/lb/test/pools/"+kv[0], kv[1])
		eventually(t, patience, func() error {
			_, answer, err := front.api("GET", "/v1/events", "")
			if n := bytes.Count(answer, []byte("does not use")); err != nil || n != i+1 {
				return fmt.Errorf("got %d events, error %v; want %d", n, err, i+1)
			}
			return nil
		})
	}
	etcd.ctl(t, "put", "/lb/other/pools/app/h9/web", `{"address":"127.0.0.1:9","weight":100}`)
	wantBackends(t, front, "after hostile writers", "h1.web:100", "h2.web:40")

	// etcd is emptied by mistake: the hosts write again what they are.
	etcd.ctl(t, "del", "--prefix", "/lb/")
	eventually(t, patience, func() error {
		if keys := etcd.ctl(t, "get", "--prefix", "--keys-only", "/lb/test/pools/app/"); strings.Count(keys, "/web") != 2 {
			return fmt.Errorf("got keys %q", keys)
		}
		return nil
	})
	wantBackends(t, front, "after etcd was emptied", "h1.web:100", "h2.web:40")
	serves(t, front)

	// An upgrade in place keeps all.
	if status, answer, err := front.api("POST", "/v1/upgrade", "{}"); err != nil || status != 200 {
		t.Fatalf("cannot upgrade: %d %s %v", status, answer, err)
	}
	wantBackends(t, front, "after an upgrade", "h1.web:100", "h2.web:40")

	// etcd stands still, as without a quorum; then it goes, and lb starts without it.
	etcd.signal(t, syscall.SIGSTOP)
	waitStale(t, front, true)
	serves(t, front)
	etcd.signal(t, syscall.SIGCONT)
	waitStale(t, front, false)
	wantBackends(t, front, "after etcd stood still", "h1.web:100", "h2.web:40")
	etcd.kill()
	waitStale(t, front, true)
	wantBackends(t, front, "while etcd is away", "h1.web:100", "h2.web:40")
	serves(t, front)
	second := config
	second.Listeners = []lbListener{{Name: "web", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "app"}}
	known, err := os.ReadFile(config.StateFile + ".discovered")
	if err != nil {
		t.Fatal(err)
	}
	second.StateFile = strings.TrimSuffix(writeFile(t, tempDir(t), "state.discovered", string(known), 0o600), ".discovered")
	late := startLB(t, second)
	wantBackends(t, late, "started without etcd", "h1.web:100", "h2.web:40")
	serves(t, late)
	startEtcd(t, etcd)
	waitStale(t, front, false)
	waitStale(t, late, false)
	wantBackends(t, front, "once etcd is back", "h1.web:100", "h2.web:40")
	for i, c := range open {
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that was opened first, %d: got %v; want it open", i, err)
		}
	}
	for _, c := range open {
		c.Close()
	}

	// A host that leaves drains first; one that is killed goes with its lease, and no connection fails
	// meanwhile.
	h1.signal(t, syscall.SIGTERM)
	h1.waitExit(t, patience)
	wantBackends(t, front, "a host has left", "h2.web:40")
	h2.kill()
	h2.ended = true
	startHost(t, etcd, "h3")
	eventually(t, 2*patience, func() error {
		s, err := front.readStatus(t)
		if err != nil {
			return err
		}
		if len(s.Pools[0].Backends) != 1 || s.Pools[0].Backends[0].Name != "h3.web" {
			return fmt.Errorf("got %+v; want h3.web alone, once the lease of h2 is over", s.Pools[0].Backends)
		}
		return nil
	})
	if word := serves(t, front); word != "h3" {
		t.Errorf("got a connection to %s; want h3", word)
	}
}
