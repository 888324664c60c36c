//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var wrkRequests = regexp.MustCompile(`(\d+) requests in`)

// wrk loads url for two seconds with 64 connections and wants no error at all.
func wrk(t testing.TB, url string, args ...string) {
	t.Helper()
	args = append([]string{"-t", "1", "-c", "64", "-d", "2s", "--timeout", "15s"}, append(args, url)...)
	out := mustRun(t, 2*patience, program(t, "wrk"), args...).stdout
	if strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		t.Errorf("wrk: got errors; want none\n%s", out)
	}
	found := wrkRequests.FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("wrk: got no number of requests; want one\n%s", out)
	}
	if n, _ := strconv.Atoi(found[1]); n < 100 {
		t.Errorf("requests that wrk made: got %d; want at least 100", n)
	}
	t.Logf("wrk %v: %s requests", args, found[1])
}

// startPair starts two nginx and an lb in front of their Unix sockets or TCP ports.
func startPair(t testing.TB, kind string) (*lb, []*nginx) {
	t.Helper()
	servers := []*nginx{startNginx(t, "w1", nil), startNginx(t, "w2", nil)}
	addresses := []string{servers[0].unix, servers[1].unix}
	if kind == "tcp" {
		addresses = []string{servers[0].tcp, servers[1].tcp}
	}
	l := startLB(t, onePool(t, addresses...))
	l.waitHealth(t, "up")
	return l, servers
}

func TestNginx_Wrk(t *testing.T) {
	for _, kind := range []string{"unix", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			l, servers := startPair(t, kind)
			for i, n := range servers {
				text, _ := io.ReadAll(noise(100<<10, byte(i)))
				writeFile(t, n.root, "100k", string(text), 0o644)
			}
			url := "http://" + l.addr()
			wrk(t, url+"/name")
			wrk(t, url+"/100k")
			wrk(t, url+"/name", "-H", "Connection: close")
			s := l.status(t)
			for _, name := range []string{"w1", "w2"} {
				if got := s.backend(t, name).Connections; got < 32 {
					t.Errorf("connections counted for %s: got %d; want its share of the load", name, got)
				}
			}
		})
	}
}

func TestNginx_DownloadOf1GiB(t *testing.T) {
	const size = 1 << 30
	n := startNginx(t, "w1", nil)
	file, err := os.Create(filepath.Join(n.root, "big"))
	if err != nil {
		t.Fatalf("cannot make the file: %v", err)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(file, h), noise(size, 1)); err != nil {
		t.Fatalf("cannot write the file: %v", err)
	}
	file.Close()
	want := hex.EncodeToString(h.Sum(nil))
	for kind, address := range map[string]string{"unix": n.unix, "tcp": n.tcp} {
		t.Run(kind, func(t *testing.T) {
			l := startLB(t, onePool(t, address))
			cmd := exec.Command(program(t, "curl"), "-sS", "--fail", "--max-time", "120", "http://"+l.addr()+"/big")
			var errors strings.Builder
			cmd.Stderr = &errors
			dieWithParent(cmd)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatalf("cannot make a pipe: %v", err)
			}
			start := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatalf("cannot start curl: %v", err)
			}
			got, _ := checksum(out)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("curl: got %v; want no error\n%s", err, &errors)
			}
			if got != want {
				t.Errorf("checksum of the download: got %s; want %s", got, want)
			}
			t.Logf("1 GiB in %v", time.Since(start))
		})
	}
}

func TestNginx_Upload(t *testing.T) {
	const size = 256 << 20
	n := startNginx(t, "w1", nil)
	for kind, address := range map[string]string{"unix": n.unix, "tcp": n.tcp} {
		t.Run(kind, func(t *testing.T) {
			l := startLB(t, onePool(t, address))
			want, _ := checksum(noise(size, 2))
			// From a pipe: curl does not know the length, and sends chunks.
			r := run(t, 3*patience, noise(size, 2), program(t, "curl"), "-sS", "--fail", "--max-time", "60",
				"-H", "Expect:", "-T", "-", fmt.Sprintf("http://%s/upload/%s", l.addr(), kind))
			if r.code != 0 {
				t.Fatalf("exit code of curl: got %d; want 0\n%s", r.code, r.stderr)
			}
			file, err := os.Open(filepath.Join(n.root, "upload", kind))
			if err != nil {
				t.Fatalf("cannot open what was uploaded: %v", err)
			}
			defer file.Close()
			if got := mustChecksum(t, file); got != want {
				t.Errorf("checksum of the upload: got %s; want %s", got, want)
			}
		})
	}
}
