//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// upgraded is the answer of POST /v1/upgrade.
type upgraded struct {
	From, To   string
	Sessions   int
	Standstill float64 `json:"standstill_seconds"`
	PID        int
	Warnings   []string
	Error      string // of a refusal
}

// apiClient is a client of lb's control API, with a connection of its own for each request.
func (l *lb) apiClient() *http.Client {
	return &http.Client{Timeout: 3 * patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", l.socket)
		},
	}}
}

// api asks lb's control API.
func (l *lb) api(method, path, body string) (status int, answer []byte, err error) {
	req, err := http.NewRequest(method, "http://lb"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := l.apiClient().Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// askUpgrade asks lb to go on as the binary, "" for its own.
func (l *lb) askUpgrade(binary string) (status int, u upgraded, err error) {
	body, _ := json.Marshal(map[string]string{"binary": binary})
	status, answer, err := l.api("POST", "/v1/upgrade", string(body))
	if err == nil {
		err = json.Unmarshal(answer, &u)
	}
	return status, u, err
}

// upgrade has lb go on as the binary, "" for its own; the process must stay.
func (l *lb) upgrade(t testing.TB, binary string) upgraded {
	t.Helper()
	status, u, err := l.askUpgrade(binary)
	if err != nil || status != http.StatusOK {
		t.Fatalf("upgrade: got status %d, %q, %v; want it done", status, u.Error, err)
	}
	if u.PID != l.pid() {
		t.Fatalf("pid after an upgrade: got %d; want %d as before", u.PID, l.pid())
	}
	return u
}

// threads is how many threads a process has.
func (p *process) threads(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid()))
	if err != nil {
		t.Fatalf("cannot count the threads of %s: %v", p.name, err)
	}
	return len(entries)
}

// counters are the metrics that never go down, by name and labels; but those of Go's runtime, which is a new
// one.
func (l *lb) counters(t testing.TB) map[string]float64 {
	t.Helper()
	status, text, err := l.api("GET", "/metrics", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("metrics: got status %d, %v; want them", status, err)
	}
	counters := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		name, _, _ := strings.Cut(line[:at], "{")
		if strings.HasPrefix(name, "go_") || !strings.HasSuffix(name, "_total") && !strings.HasSuffix(name, "_count") && !strings.HasSuffix(name, "_bucket") {
			continue
		}
		if counters[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
			t.Fatalf("metrics: cannot read %q: %v", line, err)
		}
	}
	return counters
}

// wantMonotone fails the test for each counter that has gone down or away.
func wantMonotone(t testing.TB, before, after map[string]float64) {
	t.Helper()
	for name, value := range before {
		if now, ok := after[name]; !ok || now < value {
			t.Errorf("counter %s: got %v (there: %v); want at least %v, as before", name, now, ok, value)
		}
	}
}

// quantiles are the median and the greatest of some durations.
func quantiles(all []time.Duration) (median, most time.Duration) {
	slices.Sort(all)
	return all[len(all)/2].Round(10 * time.Microsecond), all[len(all)-1].Round(10 * time.Microsecond)
}

// again does something over and over on a goroutine until stop, and keeps the first errors.
type again struct {
	what string
	quit chan struct{}
	all  sync.WaitGroup

	mu     sync.Mutex
	done   int
	failed []error
}

func startAgain(t testing.TB, what string, do func() error) *again {
	a := &again{what: what, quit: make(chan struct{})}
	a.all.Go(func() {
		for {
			select {
			case <-a.quit:
				return
			default:
			}
			err := do()
			a.mu.Lock()
			if a.done++; err != nil {
				a.failed = append(a.failed, err)
			}
			a.mu.Unlock()
		}
	})
	t.Cleanup(a.end)
	return a
}

func (a *again) end() {
	select {
	case <-a.quit:
	default:
		close(a.quit)
	}
	a.all.Wait()
}

// wantAllGood ends it.
func (a *again) wantAllGood(t testing.TB) {
	t.Helper()
	a.end()
	t.Logf("%s: %d times", a.what, a.done)
	if a.done == 0 {
		t.Errorf("%s: got it never done; want it done", a.what)
	}
	for _, err := range a.failed[:min(len(a.failed), 3)] {
		t.Errorf("%s: %v", a.what, err)
	}
	if n := len(a.failed); n > 0 {
		t.Errorf("%s: got %d of %d that failed; want none", a.what, n, a.done)
	}
}

// output runs a program to its end, off the test's goroutine.
func output(stdin io.Reader, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &out
	cmd.WaitDelay = time.Second
	dieWithParent(cmd)
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(name), err, out.String()[:min(out.Len(), 500)])
	}
	return out.String(), err
}

// shell is an interactive session of ssh, whose remote command is cat.
type shell struct {
	*process
	in  io.WriteCloser
	out io.Reader
}

func (s *sshd) shell(t testing.TB, front string) *shell {
	t.Helper()
	args := s.client(t, front)
	host, _, _ := strings.Cut(front, ":")
	cmd := exec.Command(args[0], append(args[1:], host, "cat")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	p := startProcess(t, "ssh", cmd)
	w.Close()
	t.Cleanup(func() { r.Close() })
	return &shell{process: p, in: in, out: r}
}

// answers says whether what is typed comes back.
func (s *shell) answers(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(s.in, line); err != nil {
		t.Fatalf("ssh: cannot type: %v", err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(s.out, got); err != nil || string(got) != line {
		t.Fatalf("ssh: got %q, %v; want %q", got, err, line)
	}
}

// mixed is an lb with a backend of every kind, and workers of its own.
type mixed struct {
	*lb
	web, files, pg, redis, ssh, lines string // addresses
	sshd                              *sshd
	store                             *redis
	sum                               string // of the file that is downloaded
}

func startMixed(t *testing.T) *mixed {
	t.Helper()
	m := &mixed{sshd: startSSHD(t), store: startRedis(t)}
	files, pg := startNginx(t, "files", nil), startPostgres(t)
	line := socketPath(tempDir(t), "w1")
	startLines(t, "w1", line)
	const size = 100 << 20
	data, _ := io.ReadAll(noise(size, 3))
	if err := os.WriteFile(filepath.Join(files.root, "large"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	m.sum = mustChecksum(t, bytes.NewReader(data))
	config := workersPool(t, heartbeats, fmt.Sprintf("command = [%q]\ncount = 3\n", sampleWorker(t)))
	m.web = config.Listeners[0].Bind[0]
	for name, p := range map[string]struct {
		bind    *string
		address string
	}{"files": {&m.files, files.unix}, "pg": {&m.pg, pg.unix}, "redis": {&m.redis, m.store.tcp}, "ssh": {&m.ssh, m.sshd.tcp}, "lines": {&m.lines, line}} {
		*p.bind = freePort(t, "127.0.0.1")
		config.Listeners = append(config.Listeners, lbListener{Name: name, Bind: []string{*p.bind}, Pool: name})
		pool := lbPool{Name: name, Backends: []lbBackend{{Name: name, Address: p.address}}}
		if name == "pg" {
			pool.Options = pg.owner(t)
		}
		config.Pools = append(config.Pools, pool)
	}
	m.lb = startLB(t, config)
	m.waitUp(t, 3)
	host, port, _ := strings.Cut(m.pg, ":")
	mustRun(t, 3*patience, program(t, "pgbench"), "-h", host, "-p", port, "-U", "postgres", "-i", "-q", "-s", "1", "postgres")
	return m
}

// download fetches the large file at a limited speed, and compares its checksum.
func (m *mixed) download(rate string) error {
	r, w := io.Pipe()
	cmd := exec.Command("curl", "-sS", "--fail", "--limit-rate", rate, "http://"+m.files+"/large")
	cmd.Stdout = w
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("curl: %w: %s", err, &complaint)
		}
		w.CloseWithError(err)
	}()
	sum, err := checksum(r)
	if err == nil && sum != m.sum {
		err = errors.New("the checksum differs")
	}
	return err
}

// bench runs pgbench, whose every transaction must be there.
func (m *mixed) bench(t testing.TB, args ...string) func() error {
	path := program(t, "pgbench")
	host, port, _ := strings.Cut(m.pg, ":")
	args = append([]string{"-h", host, "-p", port, "-U", "postgres", "-n"}, append(args, "postgres")...)
	return func() error {
		out, err := output(nil, path, args...)
		if err == nil && (strings.Contains(out, "error") || !strings.Contains(out, "number of failed transactions: 0 ")) {
			err = fmt.Errorf("pgbench: %s", out)
		}
		return err
	}
}

// increments sends many commands at once, and compares the last answer with how many there were in all.
func (m *mixed) increments(t testing.TB) func() error {
	path := program(t, "redis-cli")
	host, port, _ := strings.Cut(m.redis, ":")
	const n = 20000
	text := strings.Repeat("INCR counter\r\n", n)
	total := 0
	return func() error {
		total += n
		out, err := output(strings.NewReader(text), path, "-h", host, "-p", port, "--pipe")
		if want := fmt.Sprintf("errors: 0, replies: %d", n); err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("redis-cli --pipe: %s", out)
		}
		if err == nil {
			out, err = output(nil, path, "-h", host, "-p", port, "get", "counter")
			if err == nil && strings.TrimSpace(out) != strconv.Itoa(total) {
				err = fmt.Errorf("increments: got %s; want %d", out, total)
			}
		}
		return err
	}
}

func TestUpgrade_HundredUnderLoadBreakNothing(t *testing.T) {
	m := startMixed(t)
	workers := m.waitUp(t, 3).pids()
	idle := m.sshd.shell(t, m.ssh)
	idle.answers(t, "before\n")
	held := dial(t, m.lines)
	if _, err := askOn(held); err != nil {
		t.Fatal(err)
	}
	m.upgrade(t, "") // the first one moves the descriptors
	m.waitActive(t, 2)
	fds, rss, threads := settledFDs(t, m.lb), m.rss(t), m.threads(t)
	before := m.counters(t)

	keepAlive := startWrk(t, "http://"+m.web+"/", "-c", "16")
	anew := startLoad(t, m.lines, 2)
	tasks := []*again{
		startAgain(t, "downloads of 100 MiB", func() error { return m.download("15M") }),
		startAgain(t, "other downloads", func() error { return m.download("40M") }),
		startAgain(t, "pgbench", m.bench(t, "-c", "2", "-t", "100")),
		startAgain(t, "pgbench with a connection each", m.bench(t, "-C", "-t", "20")),
		startAgain(t, "redis pipelines", m.increments(t)),
	}
	const n = 100
	start := time.Now()
	var standstills []time.Duration
	for range n {
		u := m.upgrade(t, "")
		standstills = append(standstills, time.Duration(u.Standstill*float64(time.Second)))
		if err := accepts(m.lines); err != nil {
			t.Error(err)
		}
	}
	median, most := quantiles(standstills)
	t.Logf("%d upgrades in %v, standstill %v median, %v at most", n, time.Since(start).Round(time.Millisecond), median, most)
	stopWrk(t, keepAlive)
	anew.end()
	anew.wantNoError(t)
	t.Logf("new connections: %d", anew.count("w1"))
	for _, task := range tasks {
		task.wantAllGood(t)
	}
	idle.answers(t, "after\n")
	if _, err := askOn(held); err != nil {
		t.Errorf("session that was held: %v", err)
	}
	wantMonotone(t, before, m.counters(t))
	if got := m.waitUp(t, 3).pids(); !slices.Equal(got, workers) {
		t.Errorf("pids of the workers: got %v; want %v as before", got, workers)
	}
	m.waitActive(t, 2)
	m.upgrade(t, "") // the pipes that are kept for the next session are not carried over
	eventually(t, patience, func() error {
		if now := m.fds(t); now > fds {
			return fmt.Errorf("descriptors of lb: got %d; want the %d from before", now, fds)
		}
		return nil
	})
	t.Logf("memory of lb: %d KiB before, %d KiB after; threads: %d, %d", rss, m.rss(t), threads, m.threads(t))
	if now := m.rss(t); now > rss+16<<10 {
		t.Errorf("memory of lb: got %d KiB; want about the %d KiB from before", now, rss)
	}
	if now := m.threads(t); now > threads+6 {
		t.Errorf("threads of lb: got %d; want about the %d from before", now, threads)
	}
	idle.in.Close()
}

// mustRead reads what cannot fail.
func mustRead(r io.Reader) []byte {
	b, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return b
}
