//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// benchReport is what `lb bench --json` prints, as far as the tests look.
type benchReport struct {
	Seed  uint64
	Rows  []benchRow
	Cells []struct {
		Case, Contender, Digest, Broken string
	}
	Verdicts []struct {
		Case, Outcome string
		Texts         []string
	}
}

type benchRow struct {
	Case, Contender    string
	Requests, Answered int
	Shares             []float64
	AfterOf            int     `json:"after_detection"`
	After              int     `json:"failed_after_detection"`
	BalancerCPU        float64 `json:"balancer_cpu_us"`
	WorkerCPU          float64 `json:"worker_cpu_us"`
}

func (r benchReport) row(t testing.TB, kase, contender string) benchRow {
	t.Helper()
	for _, row := range r.Rows {
		if row.Case == kase && row.Contender == contender {
			return row
		}
	}
	t.Fatalf("report: got no row %s of %s in %+v; want it", kase, contender, r.Rows)
	return benchRow{}
}

// benchCommand is an lb bench whose temporary files go to a folder of its own.
func benchCommand(t testing.TB, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(lbBinary(t), append([]string{"bench", "--workers", "4"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	return cmd
}

// wantNothingLeft looks for files in the folder and for processes that know it.
func wantNothingLeft(t testing.TB, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("temporary files: got %v, %v; want none", left, err)
	}
	eventually(t, patience, func() error {
		files, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			return err
		}
		for _, file := range files {
			if env, err := os.ReadFile(file); err == nil && strings.Contains(string(env), "TMPDIR="+dir+"\x00") {
				return fmt.Errorf("processes: got %s; want none", file)
			}
		}
		return nil
	})
}

func TestBench_ComparesReportsAndLeavesNothing(t *testing.T) {
	dir, page := tempDir(t), filepath.Join(tempDir(t), "report.html")
	cmd := benchCommand(t, dir, "--cases", "even,stuck,restart", "--contenders", "reuseport,lb,haproxy,nginx", "--together",
		"--rounds", "1", "--duration", "4s", "--timeout", "1s", "--seed", "5", "--json", "--report", page)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	p := startProcess(t, "lb bench", cmd)
	if code := p.exitCode(t, 3*patience); code != 0 {
		t.Fatalf("exit code of lb bench: got %d; want 0\n%s", code, p.tail())
	}
	wantNothingLeft(t, dir)

	var r benchReport
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("cannot read the output of lb bench --json: %v: %s", err, &stdout)
	}
	digests := make(map[string]string)
	for _, c := range r.Cells {
		if c.Broken != "" {
			t.Errorf("%s of %s: got %q; want a measurement", c.Case, c.Contender, c.Broken)
		}
		if d := digests[c.Case]; d != "" && d != c.Digest {
			t.Errorf("%s of %s: got the plan %s; want that of the other contenders, %s", c.Case, c.Contender, c.Digest, d)
		}
		digests[c.Case] = c.Digest
	}
	for _, contender := range []string{"reuseport", "lb", "haproxy", "nginx"} {
		row := r.row(t, "even", contender)
		if row.Requests < 100 || row.Answered != row.Requests || len(row.Shares) != 4 || row.WorkerCPU <= 0 || (row.BalancerCPU > 0) != (contender != "reuseport") {
			t.Errorf("even: got %+v; want all answered by 4 workers, and what it cost", row)
		}
	}
	if row := r.row(t, "stuck", "lb"); row.AfterOf == 0 || row.After != 0 {
		t.Errorf("stuck: got %+v; want none that fails or hangs once the worker is found", row)
	}
	if row := r.row(t, "stuck", "reuseport"); row.After == 0 {
		t.Errorf("stuck: got %+v; want some that hang", row)
	}
	if row := r.row(t, "restart", "lb"); row.Answered != row.Requests {
		t.Errorf("restart: got %+v; want none lost", row)
	}
	html := readFile(t, page)
	if r.Seed != 5 || len(r.Verdicts) != 3 || strings.Count(html, "data-plot=") < 6 || !strings.Contains(html, "--seed 5") || !strings.Contains(html, "</html>") {
		t.Errorf("report: got seed %d, %d verdicts, and a page of %d bytes; want 5, 3 and a page with its plots", r.Seed, len(r.Verdicts), len(html))
	}
	wantDrawn(t, page, strings.Count(html, "data-plot="))
}

// wantDrawn opens a page in a browser, if there is one, and expects it to draw all charts under the page's
// own policy.
func wantDrawn(t *testing.T, page string, charts int) {
	t.Helper()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Log("not tested: there is no chromium to draw the page with")
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+tempDir(t),
		"--enable-logging=stderr", "--dump-dom", "file://"+page)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	dom, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, &stderr)
	}
	if n := strings.Count(string(dom), `role="img"`); n != charts || strings.Contains(stderr.String(), "CONSOLE") {
		t.Errorf("page in a browser: got %d charts drawn, and it said %q; want %d, and no word", n, &stderr, charts)
	}
}

func TestBench_InterruptLeavesNothing(t *testing.T) {
	dir, page := tempDir(t), filepath.Join(tempDir(t), "report.html")
	p := startProcess(t, "lb bench", benchCommand(t, dir, "--cases", "stuck", "--contenders", "reuseport,prefork,lb,nginx", "--together", "--report", page))
	eventually(t, patience, func() error {
		if !strings.Contains(p.tail(), "stuck: ") {
			return fmt.Errorf("progress: got %q; want the case", p.tail())
		}
		return nil
	})
	p.signal(t, syscall.SIGINT)
	if code := p.exitCode(t, patience); code != 1 || !strings.Contains(p.tail(), "interrupted") {
		t.Errorf("lb bench: got %d, %q; want 1, interrupted", code, p.tail())
	}
	wantNothingLeft(t, dir)
	if _, err := os.Stat(page); !os.IsNotExist(err) {
		t.Errorf("report: got %v; want no half of one", err)
	}
}

// preloadLibrary builds the library by which unchanged programs take handed-off sockets.
func preloadLibrary(t testing.TB) string {
	t.Helper()
	library := filepath.Join(tempDir(t), "lbaccept.so")
	if out, err := exec.Command("cc", "-O2", "-fPIC", "-shared", "-o", library, "../../preload/lbaccept.c", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v: %s", err, out)
	}
	return library
}

// make bench has nginx take the sockets that lb hands over, by the preloaded library.
func TestCompare_HandsOverToNginx(t *testing.T) {
	library := preloadLibrary(t)
	cmd := exec.Command("go", "run", "../../bench/cmd/compare", "-lb", lbBinary(t), "-preload", library, "-contenders", "handoff,direct",
		"-cases", "connect,64k,idle", "-rounds", "1", "-duration", "1s", "-warmup", "50ms", "-idle", "100ms", "-json", "-", "-quiet")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var report struct {
		Samples []struct {
			Case, Contender, Invalid string
			Requests                 int
			IdleFDs                  float64 `json:"idle_fds"`
			WorkerCPU                float64 `json:"backend_cpu_us"`
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("cannot read the output: %v: %s", err, out)
	}
	if err != nil || len(report.Samples) != 5 {
		t.Fatalf("got %v, %+v; want 5 valid samples", err, report.Samples)
	}
	for _, s := range report.Samples {
		switch {
		case s.Case == "idle" && s.IdleFDs > 0.5:
			t.Errorf("idle: got %v descriptors for a session; want none of lb's", s.IdleFDs)
		case s.Case != "idle" && (s.Requests == 0 || s.WorkerCPU <= 0):
			t.Errorf("%s of %s: got %+v; want requests, and what they cost nginx", s.Case, s.Contender, s)
		}
	}
}
