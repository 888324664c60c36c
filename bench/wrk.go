package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Wrk says how to load an address with wrk.
type Wrk struct {
	// Path is the wrk program.
	Path string
	// URL is what it requests.
	URL string
	// Conns is the number of connections; one thread drives them all.
	Conns int
	// NewConn sends `Connection: close`, so that every request needs a new connection.
	NewConn bool
	// Duration is in whole seconds, as wrk knows no other; at least 1 s.
	Duration time.Duration
	// Dir holds the file that wrk's output goes to.
	Dir string
}

// WrkResult is what wrk reports.
type WrkResult struct {
	// Requests counts replies, of whatever status, in Duration.
	Requests uint64
	Duration time.Duration
	// Rate is replies per second.
	Rate float64
	// P50 and P99 are percentiles of the time from sending a request to having its whole reply.
	P50, P99 time.Duration
	// ConnectErrors to Timeouts are wrk's socket errors; BadStatus counts replies of another status than 2xx
	// and 3xx.
	ConnectErrors, ReadErrors, WriteErrors, Timeouts, BadStatus uint64
	// CPU is the CPU time of wrk itself.
	CPU time.Duration
}

// Failures describes the requests that failed, or is empty if none did.
func (r WrkResult) Failures() string {
	var parts []string
	for _, e := range []struct {
		n    uint64
		what string
	}{
		{r.ConnectErrors, "connect errors"}, {r.ReadErrors, "read errors"}, {r.WriteErrors, "write errors"},
		{r.Timeouts, "timeouts"}, {r.BadStatus, "replies other than 2xx and 3xx"},
	} {
		if e.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", e.n, e.what))
		}
	}
	if len(parts) == 0 && r.Requests == 0 {
		return "no reply at all"
	}
	return strings.Join(parts, ", ")
}

// RunWrk runs wrk until it ends. Failed requests are not an error: they are in the result.
func RunWrk(ctx context.Context, w Wrk) (WrkResult, error) {
	seconds := int(w.Duration / time.Second)
	if seconds < 1 || w.Duration%time.Second != 0 {
		return WrkResult{}, fmt.Errorf("cannot run wrk for %v: it takes whole seconds, at least 1s", w.Duration)
	}
	// The time-out is above what 64 connections wait for when a shared machine stalls; wrk's default is 2 s.
	args := []string{"-t1", "-c" + strconv.Itoa(w.Conns), "-d" + strconv.Itoa(seconds) + "s", "--timeout", "10s", "--latency"}
	if w.NewConn {
		args = append(args, "-H", "Connection: close")
	}
	p, err := Start(Command{Name: "wrk", Path: w.Path, Args: append(args, w.URL), Log: filepath.Join(w.Dir, "wrk.log")})
	if err != nil {
		return WrkResult{}, err
	}
	if err := p.Wait(ctx); err != nil {
		return WrkResult{}, err
	}
	result, err := ParseWrk(p.Output())
	if err != nil {
		return WrkResult{}, err
	}
	result.CPU = p.CPU()
	return result, nil
}

// ParseWrk parses what `wrk --latency` prints (wrk 4.1.0 and 4.2.0).
func ParseWrk(out string) (WrkResult, error) {
	var r WrkResult
	var errs []error
	count := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		errs = append(errs, err)
		return n
	}
	span := func(s string) time.Duration {
		d, err := parseWrkTime(s)
		errs = append(errs, err)
		return d
	}
	// find returns the parts of the first match, or nil; a line that must be there and is not is an error.
	find := func(must bool, pattern string) []string {
		m := regexp.MustCompile(`(?m)^\s*` + pattern + `\s*$`).FindStringSubmatch(out)
		if m == nil && must {
			errs = append(errs, fmt.Errorf("no line like %s", pattern))
		}
		return m
	}
	if m := find(true, `(\d+) requests in ([\d.]+\w+), .* read`); m != nil {
		r.Requests, r.Duration = count(m[1]), span(m[2])
	}
	if m := find(true, `Requests/sec:\s+([\d.]+)`); m != nil {
		rate, err := strconv.ParseFloat(m[1], 64)
		errs = append(errs, err)
		r.Rate = rate
	}
	if m := find(true, `50%\s+([\d.]+\w+)`); m != nil {
		r.P50 = span(m[1])
	}
	if m := find(true, `99%\s+([\d.]+\w+)`); m != nil {
		r.P99 = span(m[1])
	}
	if m := find(false, `Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`); m != nil {
		r.ConnectErrors, r.ReadErrors, r.WriteErrors, r.Timeouts = count(m[1]), count(m[2]), count(m[3]), count(m[4])
	} else if strings.Contains(out, "Socket errors") {
		errs = append(errs, errors.New("unknown form of socket errors"))
	}
	if m := find(false, `Non-2xx or 3xx responses: (\d+)`); m != nil {
		r.BadStatus = count(m[1])
	}
	if err := errors.Join(errs...); err != nil {
		return WrkResult{}, fmt.Errorf("cannot parse output of wrk: %w%s", err, lastLines(out, 20))
	}
	return r, nil
}

// parseWrkTime parses a time as wrk writes it: a decimal number and us, ms, s, m or h.
func parseWrkTime(s string) (time.Duration, error) {
	// Of these units Go writes them all alike; wrk never joins two.
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("bad time %q", s)
	}
	return d, nil
}
