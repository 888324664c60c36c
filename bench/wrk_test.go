package bench

import (
	"strings"
	"testing"
	"time"
)

// wrkReport is what wrk 4.1.0 printed for a good run.
const wrkReport = `Running 2s test @ http://127.0.0.1:20686/small
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.35ms  703.27us   9.21ms   77.50%
    Req/Sec    44.20k     2.28k   47.95k    70.00%
  Latency Distribution
     50%    1.20ms
     75%    1.61ms
     90%    2.23ms
     99%  980.00us
  92319 requests in 2.10s, 11.80MB read
Requests/sec:  43961.43
Transfer/sec:      5.62MB
`

func TestParseWrk(t *testing.T) {
	got, err := ParseWrk(wrkReport)
	want := WrkResult{
		Requests: 92319, Duration: 2100 * time.Millisecond, Rate: 43961.43,
		P50: 1200 * time.Microsecond, P99: 980 * time.Microsecond,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if failed := got.Failures(); failed != "" {
		t.Errorf("got failures %q of a good run", failed)
	}
}

func TestParseWrk_Failures(t *testing.T) {
	out := strings.Replace(wrkReport, "Requests/sec:",
		"  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\nRequests/sec:", 1)
	got, err := ParseWrk(out)
	if err != nil {
		t.Fatal(err)
	}
	want := "1 connect errors, 2 read errors, 3 write errors, 4 timeouts, 5 replies other than 2xx and 3xx"
	if got.Failures() != want {
		t.Errorf("got %q; want %q", got.Failures(), want)
	}
	if (WrkResult{}).Failures() == "" {
		t.Error("a run without any reply counts as good")
	}
}

func TestParseWrk_Rejects(t *testing.T) {
	f := func(old, new string) {
		t.Helper()
		out := strings.Replace(wrkReport, old, new, 1)
		if out == wrkReport {
			t.Fatalf("%q is not in the report", old)
		}
		if got, err := ParseWrk(out); err == nil {
			t.Errorf("%q instead of %q: got %+v; want an error", new, old, got)
		}
	}
	f("92319 requests", "many requests")
	f("92319 requests", "99999999999999999999 requests")
	f("     50%    1.20ms\n", "")
	f("980.00us", "980.00parsecs")
	f("Requests/sec:  43961.43\n", "")
	f("Requests/sec:", "  Socket errors: something new\nRequests/sec:")
	if got, err := ParseWrk("unable to connect to 127.0.0.1:1 Connection refused\n"); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("got %+v, %v; want an error with the output", got, err)
	}
}

func FuzzParseWrk(f *testing.F) {
	f.Add(wrkReport)
	f.Add("")
	f.Fuzz(func(t *testing.T, out string) {
		r, err := ParseWrk(out)
		if err != nil && r != (WrkResult{}) {
			t.Errorf("got %+v beside error %v", r, err)
		}
		if r.Rate < 0 || r.P50 < 0 || r.P99 < 0 || r.Duration < 0 {
			t.Errorf("got negative numbers: %+v", r)
		}
	})
}

func TestRunWrk_WholeSeconds(t *testing.T) {
	for _, d := range []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond} {
		if _, err := RunWrk(t.Context(), Wrk{Path: "/nonexistent", Duration: d, Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "whole seconds") {
			t.Errorf("%v: got %v; want an error about whole seconds", d, err)
		}
	}
}
