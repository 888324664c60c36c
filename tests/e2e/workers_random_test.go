//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Whatever is done to workers, nothing of those that have ended is left: no process or zombie, descriptor,
// file or directory. Many pools are played with at once, each at random by the seed that is logged.
func TestWorkers_AThousandRandomCommandsLeaveNothing(t *testing.T) {
	const (
		pools, wanted = 24, 1000
		budget        = 40 * time.Second
	)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var config lbConfig
	for i := range pools {
		name := "p" + strconv.Itoa(i)
		config.Listeners = append(config.Listeners, lbListener{Name: name, Bind: []string{freePort(t, "127.0.0.1")}, Pool: name})
		// It takes what it is handed, and is ready when it says so; each third pool's cannot start, now and
		// then.
		command := `["socat", "UNIX-LISTEN:{socket},fork", "EXEC:cat"]`
		if i%3 == 2 {
			command = `["sh", "-c", "[ $(($$ % 5)) -gt 0 ] || exit 3; exec socat UNIX-LISTEN:{socket},fork EXEC:cat"]`
		}
		config.Pools = append(config.Pools, lbPool{Name: name, Health: "type = \"none\"\n", Options: fmt.Sprintf(
			"[pools.%s.workers]\ncommand = %s\ncount = 1\nstop_timeout = \"100ms\"\nkill_timeout = \"500ms\"\nstart_timeout = \"5s\"\n", name, command)})
	}
	dir := tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", config.toml(l.socket), 0o644)
	l = l.restart(t)
	api := newControl(t, l.socket)
	settle := func() {
		t.Helper()
		for i := range pools {
			name := "p" + strconv.Itoa(i)
			eventually(t, patience, func() error {
				s := api.workers(name)
				if len(s.Slots) != 1 { // refused while a restart is under way
					api.ask(context.Background(), name+"/scale", `{"count":1}`)
				}
				for j := range s.Slots {
					if s.Slots[j].State == "stopped" || s.Slots[j].State == "failed" || s.Slots[j].State == "waiting" {
						api.ask(context.Background(), fmt.Sprintf("%s/workers/%d/start", name, j), "")
					}
				}
				if s = api.workers(name); len(s.Slots) != 1 || s.Slots[0].State != "up" || len(s.Retired) > 0 || s.Restarting {
					return fmt.Errorf("%s: got %+v; want one worker, up", name, s)
				}
				return nil
			})
		}
	}
	settle()
	before := l.fds(t)

	var commands, done, deaths atomic.Int64
	var players sync.WaitGroup
	end := time.Now().Add(budget - 10*time.Second) // the rest is for the looks before and after
	for i := range pools {
		players.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			name := "p" + strconv.Itoa(i)
			for time.Now().Before(end) && done.Load() < wanted {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(50+random.IntN(1500))*time.Millisecond)
				slot := random.IntN(2)
				ask := func(path, body string) {
					if api.ask(ctx, name+path, body) {
						done.Add(1)
					}
				}
				switch random.IntN(8) {
				case 0:
					ask("/scale", fmt.Sprintf(`{"count":%d}`, random.IntN(4)))
				case 1:
					ask("/restart", fmt.Sprintf(`{"surge":%d}`, random.IntN(3)-1))
				case 2:
					ask("/restart", fmt.Sprintf(`{"slot":%d,"no_wait":true}`, slot))
				case 3:
					ask(fmt.Sprintf("/workers/%d/stop", slot), "")
				case 4:
					ask(fmt.Sprintf("/workers/%d/start", slot), "")
				case 5:
					ask("/rollback", "{}")
				default:
					if s := api.workers(name); len(s.Slots) > 0 {
						if pid := s.Slots[random.IntN(len(s.Slots))].PID; pid > 1 {
							syscall.Kill(pid, []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSTOP}[random.IntN(3)])
							deaths.Add(1)
							done.Add(1)
						}
					}
				}
				commands.Add(1)
				cancel()
			}
		})
	}
	began := time.Now()
	players.Wait()
	t.Logf("%d commands in %v, %d of them done and not refused or cut off; %d signals", commands.Load(), time.Since(began).Round(time.Second), done.Load(), deaths.Load())
	if n := done.Load(); n < wanted {
		t.Errorf("commands that were done: got %d; want %d", n, wanted)
	}

	settle()
	starts := 0
	pids := map[int]bool{}
	for i := range pools {
		s := api.workers("p" + strconv.Itoa(i))
		starts += s.Slots[0].Restarts
		pids[s.Slots[0].PID] = true
	}
	t.Logf("the first slots alone had %d starts", starts)
	eventually(t, patience, func() error {
		var wrong []string
		children := l.children(t)
		for pid, state := range children {
			if !pids[pid] || state == "Z" {
				wrong = append(wrong, fmt.Sprint(pid, state))
			}
		}
		if len(wrong) > 0 || len(children) != pools {
			return fmt.Errorf("children: got %d, %q too many; want the %d workers", len(children), wrong, pools)
		}
		if n := l.fds(t); n > before+2 { // a connection of the API
			return fmt.Errorf("descriptors: got %d; want %d as before", n, before)
		}
		return nil
	})
	run := filepath.Join(filepath.Dir(l.socket), "workers")
	for i := range pools {
		files, err := filepath.Glob(fmt.Sprintf("%s/p%d/*", run, i))
		if err != nil || len(files) != 2 { // its worker's socket, and the notify socket
			t.Errorf("files of pool p%d: got %q; want two sockets", i, files)
		}
	}
	l.signal(t, syscall.SIGTERM)
	if code, _ := l.waitExit(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
	if left, _ := filepath.Glob(run + "/p*"); len(left) > 0 {
		t.Errorf("run-time directory: got %q left; want nothing", left)
	}
	if n := workerProcesses(t, l.socket); n != 0 {
		t.Errorf("processes: got %d left; want none", n)
	}
}

// control is lb's control API, as a program uses it.
type control struct {
	t    testing.TB
	http http.Client
}

func newControl(t testing.TB, socket string) *control {
	c := &control{t: t}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// ask posts to a pool's path and says whether it was done; a command that is refused or cut off is not.
func (c *control) ask(ctx context.Context, path, body string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lb/v1/pools/"+path, strings.NewReader(body))
	if err != nil {
		c.t.Error(err)
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			c.t.Errorf("POST %s: %v", path, err)
		}
		return false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusInternalServerError && !strings.Contains(string(text), "worker") {
		c.t.Errorf("POST %s: got %d %s", path, resp.StatusCode, text)
	}
	return err == nil && resp.StatusCode == http.StatusOK
}

func (c *control) workers(pool string) (s workersStatus) {
	resp, err := c.http.Get("http://lb/v1/pools/" + pool + "/workers")
	if err == nil {
		err = errors.Join(json.NewDecoder(resp.Body).Decode(&s), resp.Body.Close())
	}
	if err != nil {
		c.t.Errorf("workers of %s: %v", pool, err)
	}
	return s
}

// children are lb's own, with their states as /proc has them: Z is a zombie.
func (p *process) children(t testing.TB) map[int]string {
	t.Helper()
	all := map[int]string{}
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		s := string(text)
		fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(p.pid()) {
			all[pid] = fields[0]
		}
	}
	return all
}
