package daemon

import (
	"errors"

	"golang.org/x/sys/unix"

	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/proxy"
)

// killStep is how often a kill that is spread over time closes those whose turn has come: each time costs a
// loop a look at all of its sessions.
const killStep = 50 * time.Millisecond

// listSessions lists running sessions for the control API.
func (d *daemon) listSessions(f api.SessionFilter, limit int) (list []api.SessionStatus, total int) {
	now := time.Now()
	list = []api.SessionStatus{}
	for _, s := range d.filtered(f) {
		if total++; total <= limit {
			list = append(list, sessionStatus(s, now))
		}
	}
	return list, total
}

// filtered returns the running sessions that the filter admits, the oldest first.
func (d *daemon) filtered(f api.SessionFilter) []proxy.SessionInfo {
	now := time.Now()
	var all []proxy.SessionInfo
	for _, s := range d.proxy.SessionList() {
		if f.ID != "" && f.ID != sessionID(s.ID) || f.Pool != "" && f.Pool != s.Pool ||
			f.Backend != "" && f.Backend != s.Backend || now.Sub(s.Start) < f.Older {
			continue
		}
		all = append(all, s)
	}
	return all
}

func sessionStatus(s proxy.SessionInfo, now time.Time) api.SessionStatus {
	st := api.SessionStatus{
		ID: sessionID(s.ID), Client: "unix", Listener: s.Listener, Pool: s.Pool, Backend: s.Backend, State: s.Phase,
		Started: s.Start, Age: max(now.Sub(s.Start), 0).Seconds(), Idle: max(s.Idle, 0).Seconds(),
		BytesIn: s.BytesIn, BytesOut: s.BytesOut,
	}
	if s.Client != (netip.AddrPort{}) {
		st.Client = s.Client.String()
	}
	return st
}

func sessionID(id uint64) string { return strconv.FormatUint(id, 10) }

// Kill closes the sessions that the filter admits now, in random order and at random moments of the given
// time, so that their clients do not all come back at once. It returns how many it closed: those that ended
// by themselves do not count.
func (d *daemon) Kill(ctx context.Context, f api.SessionFilter, over time.Duration, by string) (closed int, err error) {
	sessions := d.filtered(f)
	ids := make([]uint64, len(sessions))
	for i, s := range sessions {
		ids[i] = s.ID
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	d.report(slog.LevelInfo, api.Event{Kind: "kill", Subject: killSubject(f), Text: "closing " + count(len(ids), "session") + overText(over) + ", by " + by},
		"closing sessions", "sessions", len(ids), "pool", f.Pool, "backend", f.Backend, "id", f.ID, "older", f.Older, "over", over, "by", by)
	defer func() { d.log.Info("sessions closed", "sessions", closed, "of", len(ids), "by", by) }()
	due := turns(len(ids), over, rand.Float64)
	start := time.Now()
	for done := 0; done < len(ids); {
		n := done
		for now := time.Since(start); n < len(ids) && due[n] <= now; n++ {
		}
		if n > done {
			killed, err := d.proxy.Kill(ids[done:n])
			closed += killed
			if err != nil {
				return closed, handedOffError(err)
			}
			done = n
			continue
		}
		timer := time.NewTimer(max(time.Until(start.Add(due[n])), killStep))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return closed, ctx.Err()
		case <-d.background.ctx.Done():
			timer.Stop()
			return closed, errStopping
		}
	}
	return closed, nil
}

// handedOffError explains why a connection that a worker holds could not be ended.
func handedOffError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("cannot end connections that were handed over to workers: lb may not (it needs CAP_NET_ADMIN); restart the worker instead: %w", err)
	}
	return fmt.Errorf("cannot end connections that were handed over to workers; restart the worker instead: %w", err)
}

// killSubject returns the subject of a kill's event.
func killSubject(f api.SessionFilter) string {
	switch {
	case f.ID != "":
		return "session " + f.ID
	case f.Backend != "":
		return f.Pool + "/" + f.Backend
	case f.Pool != "":
		return f.Pool
	}
	return "lb"
}

// turns returns n moments within the given time, in order: each is somewhere in its own n-th part.
func turns(n int, over time.Duration, random func() float64) []time.Duration {
	due := make([]time.Duration, n)
	for i := range due {
		due[i] = time.Duration((float64(i) + random()) / float64(n) * float64(over))
	}
	return due
}

// count returns "1 pool" or "2 pools".
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.Itoa(n) + " " + noun
}

// overText is the time over which sessions are closed, for an event; empty for at once.
func overText(over time.Duration) string {
	if over == 0 {
		return ""
	}
	return " over " + over.String()
}
