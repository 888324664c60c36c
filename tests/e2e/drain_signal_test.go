//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keepers are HTTP clients that keep their connections, and open another one only when an answer says that
// this one closes. Any other end of a connection is a failure. Unlike net/http's they try nothing again.
type keepers struct {
	stop, told, done, failed atomic.Int64
	all                      sync.WaitGroup
}

// startKeepers starts n of them, which dial as asked, and have header in their requests.
func startKeepers(t testing.TB, n int, header string, dial func() (net.Conn, error)) *keepers {
	k := new(keepers)
	for range n {
		k.all.Go(func() {
			for k.stop.Load() == 0 {
				if err := k.keep(header, dial); err != nil && k.failed.Add(1) <= 3 {
					t.Errorf("a client that keeps its connection: %v", err)
				}
			}
		})
	}
	t.Cleanup(func() { k.end() })
	return k
}

// keep asks over one connection until it is told to leave, or the load ends.
func (k *keepers) keep(header string, dial func() (net.Conn, error)) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for n := 0; k.stop.Load() == 0; n++ {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: lb\r\n"+header+"\r\n"); err != nil {
			return fmt.Errorf("request %d: %w", n, err)
		}
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("answer %d: %w", n, err)
		}
		text, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), "hello") {
			return fmt.Errorf("answer %d: got status %d, %q, %w; want a greeting", n, answer.StatusCode, text, err)
		}
		k.done.Add(1)
		if answer.Close {
			k.told.Add(1)
			return nil
		}
	}
	return nil
}

func (k *keepers) end() {
	k.stop.Store(1)
	k.all.Wait()
}

// many waits until the clients have had n more answers.
func (k *keepers) many(t testing.TB, n int64) {
	t.Helper()
	for until := k.done.Load() + n; ; {
		done := k.done.Load()
		if done >= until {
			return
		}
		eventually(t, patience, func() error {
			if k.done.Load() == done {
				return fmt.Errorf("answers: got %d; want %d", done, until)
			}
			return nil
		})
	}
}

func (k *keepers) wantNoFailure(t testing.TB) {
	t.Helper()
	k.end()
	if failed := k.failed.Load(); failed > 0 {
		t.Errorf("kept connections that failed: got %d; want 0 of %d answers", failed, k.done.Load())
	}
	t.Logf("%d answers, %d of them with Connection: close, %d failed", k.done.Load(), k.told.Load(), k.failed.Load())
}

// An app that answers drain_signal with Connection: close loses none of the connections that clients keep,
// though lb relays bytes and knows nothing of HTTP; and its restart does not wait for stop_timeout.
func TestDrainSignal_KeptConnectionsSeeNoErrorThroughARestart(t *testing.T) {
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	for name, worker := range map[string]struct{ program, dir, arguments string }{
		"Node":     {"node", "node", `"app.js", "{socket}"`},
		"Go":       {"", "go", ``},
		"gunicorn": {"gunicorn", "python", `"wsgi:app"`},
		"uvicorn":  {"uvicorn", "python", `"--fd", "3", "--log-level", "warning", "wsgi:asgi"`},
		"puma":     {"puma", "ruby", `"--bind-to-activated-sockets", "only", "--environment", "production", "--threads", "4:4", "config.ru"`},
	} {
		t.Run(name, func(t *testing.T) {
			command := ""
			if worker.program == "" {
				command = sampleWorker(t)
			} else {
				command = program(t, worker.program)
			}
			l := startLB(t, workersPool(t, "", fmt.Sprintf("command = [%q, %s]\ndir = %q\ncount = 1\ndrain_signal = \"SIGUSR2\"\nstop_timeout = \"1m\"\n",
				command, worker.arguments, filepath.Join(examples, worker.dir))))
			before := l.waitUp(t, 1)
			load := startKeepers(t, 8, "", func() (net.Conn, error) { return net.DialTimeout("tcp", l.addr(), patience) })
			load.many(t, 200)
			began := time.Now()
			l.mustCommand(t, "restart", "app")
			after := l.waitUp(t, 1) // nobody drains any more
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("restart and drain: took %v; want less than half of stop_timeout", took)
			}
			if after.Slots[0].PID == before.Slots[0].PID {
				t.Errorf("pid of the worker: got %d, as before; want another", after.Slots[0].PID)
			}
			load.many(t, 200)
			load.wantNoFailure(t)
			if load.told.Load() < 8 {
				t.Errorf("answers with Connection: close: got %d; want one for each of 8 clients at least", load.told.Load())
			}
		})
	}
}
