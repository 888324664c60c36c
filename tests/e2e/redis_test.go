//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
)

func TestRedis_Benchmark(t *testing.T) {
	server := startRedis(t)
	_, direct := splitAddress(server.unix)
	for kind, address := range map[string]string{"unix": server.unix, "tcp": server.tcp} {
		t.Run(kind, func(t *testing.T) {
			l := startLB(t, onePool(t, address))
			_, port, _ := strings.Cut(l.addr(), ":")
			for _, c := range []struct {
				name string
				n    int // of requests of each kind
				args []string
			}{
				{"plain", 20000, []string{"-c", "50"}},
				{"pipelined", 160000, []string{"-c", "50", "-P", "16"}},
				{"large values", 2000, []string{"-c", "20", "-d", "100000"}},
				{"a connection for each request", 2000, []string{"-c", "20", "-k", "0"}},
			} {
				t.Run(c.name, func(t *testing.T) {
					mustRun(t, patience, program(t, "redis-cli"), "-s", direct, "flushall")
					args := []string{"-h", "127.0.0.1", "-p", port, "-q", "-t", "set,get,incr,lpush,lpop", "-n", strconv.Itoa(c.n)}
					r := mustRun(t, 3*patience, program(t, "redis-benchmark"), append(args, c.args...)...)
					for _, bad := range []string{"rror", "ERR"} {
						if strings.Contains(r.stdout+r.stderr, bad) {
							t.Fatalf("redis-benchmark: got %q; want no error", r.stdout+r.stderr)
						}
					}
					for _, command := range []string{"SET", "GET", "INCR", "LPUSH", "LPOP"} {
						if !strings.Contains(r.stdout, command) {
							t.Errorf("redis-benchmark: got no result of %s in %q; want one", command, r.stdout)
						}
					}
					// Redis has counted each INCR, and holds what LPUSH put in and LPOP did not take.
					count := mustRun(t, patience, program(t, "redis-cli"), "-s", direct, "get", "counter:__rand_int__").stdout
					if got := strings.TrimSpace(count); got != strconv.Itoa(c.n) {
						t.Errorf("increments that arrived: got %s; want %d", got, c.n)
					}
					length := mustRun(t, patience, program(t, "redis-cli"), "-s", direct, "llen", "mylist").stdout
					if got := strings.TrimSpace(length); got != "0" {
						t.Errorf("length of the list after as many LPOP as LPUSH: got %s; want 0", got)
					}
				})
			}
			t.Run("mass insertion", func(t *testing.T) {
				const n = 200000
				var commands strings.Builder
				for i := range n {
					fmt.Fprintf(&commands, "RPUSH mass %d\r\n", i)
				}
				through := []string{"-h", "127.0.0.1", "-p", port}
				r := run(t, 2*patience, strings.NewReader(commands.String()), program(t, "redis-cli"), append(through, "--pipe")...)
				if want := fmt.Sprintf("errors: 0, replies: %d", n); r.code != 0 || !strings.Contains(r.stdout, want) {
					t.Errorf("redis-cli --pipe: got exit code %d and %q; want 0 and %q", r.code, r.stdout+r.stderr, want)
				}
				var want strings.Builder
				for i := range n {
					fmt.Fprintln(&want, i)
				}
				got := mustRun(t, 2*patience, program(t, "redis-cli"), append(through, "--raw", "lrange", "mass", "0", "-1")...).stdout
				if got != want.String() {
					t.Errorf("list of %d numbers: got %d bytes unlike the %d wanted", n, len(got), want.Len())
				}
			})
			t.Run("one huge value", func(t *testing.T) {
				value, _ := io.ReadAll(noise(64<<20, 5))
				through := []string{"-h", "127.0.0.1", "-p", port}
				r := run(t, 2*patience, bytes.NewReader(value), program(t, "redis-cli"), append(through, "-x", "set", "huge")...)
				if r.code != 0 || r.stdout != "OK\n" {
					t.Errorf("redis-cli set: got exit code %d and %q; want 0 and OK", r.code, r.stdout+r.stderr)
				}
				got := mustRun(t, 2*patience, program(t, "redis-cli"), append(through, "--raw", "get", "huge")...).stdout
				if got != string(value)+"\n" {
					t.Errorf("value: got %d bytes unlike the %d wanted", len(got)-1, len(value))
				}
			})
		})
	}
}
