package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newStatusCommand() *cobra.Command {
	c := new(caller)
	var watch bool
	cmd := c.flags(&cobra.Command{
		Use:               "status [POOL] [--watch]",
		Short:             "Show listeners, pools and backends",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.complete(first(completePools)),
		RunE: c.action(func(c *call) error {
			if watch {
				return watchStatus(c)
			}
			return showStatus(c)
		}),
	})
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "again every 2 seconds, until interrupted")
	return cmd
}

func showStatus(c *call) error {
	text, err := statusText(c)
	if err == nil {
		_, err = io.WriteString(c.out, text)
	}
	return err
}

// watchInterval is the time between two looks of lb status --watch.
const watchInterval = 2 * time.Second

// homeAndClear are the control functions CUP and ED of a terminal (ECMA-48).
const homeAndClear = "\x1b[H\x1b[2J"

// watchStatus shows the status again and again: in place on a terminal, else one after the other.
func watchStatus(c *call) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		text, err := statusText(c)
		if c.ctx.Err() != nil {
			return nil // an interrupt is how it ends
		}
		if err != nil {
			return err
		}
		switch {
		case terminal(c.out):
			text = homeAndClear + text
		case !c.json:
			text += "\n"
		}
		if _, err := io.WriteString(c.out, text); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return nil
		}
	}
}

// statusText asks for the status of all or of the pool that was named.
func statusText(c *call) (string, error) {
	ctx, cancel := c.soon()
	defer cancel()
	switch {
	case c.json && len(c.args) > 0:
		return indented(c.PoolJSON(ctx, c.args[0]))
	case c.json:
		return indented(c.StatusJSON(ctx))
	case len(c.args) > 0:
		p, err := c.Pool(ctx, c.args[0])
		if err == nil && terminal(c.out) && !hasRates(p.Backends) && pause(ctx, ratePause) {
			p, err = c.Pool(ctx, c.args[0])
		}
		if err != nil {
			return "", err
		}
		return renderPool(p, time.Now(), coloured(c.out)), nil
	}
	st, err := c.Status(ctx)
	if err == nil && terminal(c.out) && len(st.Listeners) > 0 && st.Listeners[0].Rate == nil && pause(ctx, ratePause) {
		st, err = c.Status(ctx)
	}
	if err != nil {
		return "", err
	}
	return renderStatus(st, time.Now(), coloured(c.out)), nil
}

// ratePause is how long a person waits for rates, which lb takes from one question to the next. Scripts do
// not wait.
const ratePause = 500 * time.Millisecond

// pause waits for d. It returns false if ctx was done first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func hasRates(members []api.BackendStatus) bool {
	return len(members) == 0 || members[0].Rate != nil
}

// indented lays JSON out for people.
func indented(raw json.RawMessage, err error) (string, error) {
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	if err := json.Indent(&text, raw, "", "  "); err != nil {
		return "", err
	}
	return text.String() + "\n", nil
}

// coloured reports whether to print colours: on a terminal, and unless NO_COLOR is set (no-color.org).
func coloured(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	return isTerminal(int(f.Fd()))
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// renderStatus is what a person reads at a glance: what is wrong has a colour and a reason.
func renderStatus(st *api.Status, now time.Time, colour bool) string {
	var b strings.Builder
	b.WriteString(statusLine(st, now) + "\n")
	if strings.HasPrefix(st.Batching, "off (") || strings.HasPrefix(st.Batching, "on, but") {
		fmt.Fprintf(&b, "batches through io_uring are %s\n", printable.Text(st.Batching))
	}
	if n := st.LogDropped + st.AccessLogDropped; n > 0 {
		fmt.Fprintf(&b, "%s of lb's logs dropped: what takes them is too slow, full or closed\n", count(int(n), "line"))
	}
	b.WriteString("\n" + listenerTable(st.Listeners).render(colour))
	for i := range st.Pools {
		b.WriteString("\n" + renderPool(&st.Pools[i], now, colour))
	}
	return b.String()
}

// statusLine describes lb itself.
func statusLine(st *api.Status, now time.Time) string {
	state := ""
	if st.Stopping {
		state = "stopping, "
	}
	handedOff := ""
	if st.HandedOff > 0 {
		handedOff = fmt.Sprintf(", and %d handed off", st.HandedOff)
	}
	return fmt.Sprintf("lb %s, pid %d, %sup %s, %d of %s%s", printable.Text(st.Version), st.PID, state,
		shortDuration(now.Sub(st.Started)), st.Sessions-st.HandedOff, count(int(st.MaxSessions), "session"), handedOff)
}

func renderPool(p *api.PoolStatus, now time.Time, colour bool) string {
	mode := printable.Text(p.Balance)
	if p.Handoff != "" && p.Handoff != "off" {
		mode += ", handoff " + printable.Text(p.Handoff)
	}
	title := cell{text: fmt.Sprintf("pool %s, %s: %d of %s selectable, %d active", printable.Text(p.Name), mode,
		p.Selectable, count(len(p.Backends), "backend"), p.Active)}
	if p.Queue.Size > 0 {
		title.text += fmt.Sprintf(", %d of %d queued", p.Queue.Length, p.Queue.Size)
		if p.Queue.Length > 0 {
			title.text += ", the oldest for " + shortDuration(seconds(p.Queue.OldestWait))
		}
	}
	switch {
	case p.Selectable == 0:
		title.colour = red
	case p.Queue.Length > 0:
		title.colour = yellow
	}
	text := title.render(0, false, colour) + "\n" + backendTable(p.Backends, now).render(colour)
	if p.Discovery != nil {
		text += discoveryLine(p.Discovery, now, colour)
	}
	if p.Workers != nil {
		text += renderWorkers(p.Name, p.Workers, now, colour)
	}
	return text
}

// discoveryLine says where a pool finds backends, and since when it does not.
func discoveryLine(st *api.DiscoveryStatus, now time.Time, colour bool) string {
	line := cell{text: fmt.Sprintf("discovers %s: %s", st.Source, count(st.Backends, "backend"))}
	if !st.StaleSince.IsZero() {
		line.colour = yellow
		line.text += fmt.Sprintf(" known from before, no sound answer for %s: %s", shortDuration(now.Sub(st.StaleSince)), st.Error)
	} else if !st.Checked.IsZero() {
		line.text += fmt.Sprintf(", checked %s ago", shortDuration(now.Sub(st.Checked)))
	}
	return line.render(0, false, colour) + "\n"
}

func listenerTable(listeners []api.ListenerStatus) *table {
	t := newTable("LISTENER", "ADDRESSES", "POOL", ">ACTIVE", ">RATE", ">CONNS", ">IN", ">OUT")
	for i := range listeners {
		l := &listeners[i]
		to := l.Pool
		if len(l.Split) > 0 {
			to = splitText(l.Split)
		}
		t.add(cell{text: l.Name}, cell{text: strings.Join(l.Addresses, " ")}, cell{text: to},
			cell{text: activeText(l.Active, l.MaxConns)}, cell{text: rateText(l.Rate)}, number(l.Connections), cell{text: bytesText(l.BytesIn)}, cell{text: bytesText(l.BytesOut)})
	}
	return t
}

func backendTable(members []api.BackendStatus, now time.Time) *table {
	t := newTable("BACKEND", "STATE", ">FOR", ">WEIGHT", ">SHARE", ">ACTIVE", ">RATE", ">CONNS", ">ERRORS", ">1ST BYTE P50", ">P99", "PROBE", "WHY")
	for i := range members {
		t.add(backendRow(&members[i], now)...)
	}
	return t
}

// backendRow is a backend as a row of backendTable.
func backendRow(m *api.BackendStatus, now time.Time) []cell {
	failed := failedConnects(m)
	errors := number(failed)
	if failed > 0 {
		errors.colour = yellow
	}
	return []cell{{text: m.Name}, stateCell(m), {text: shortDuration(now.Sub(m.Since))}, {text: weightText(m)}, {text: shareText(m)},
		{text: activeText(m.Active, m.MaxConns)}, {text: rateText(m.Rate)}, number(m.Connections), errors,
		{text: secondsText(p50(m.FirstByte))}, {text: secondsText(p99(m.FirstByte))}, probeCell(m.LastProbe, now), {text: why(m)}}
}

func failedConnects(m *api.BackendStatus) (n uint64) {
	for _, times := range m.ConnectErrors {
		n += times
	}
	return n
}

// p50 and p99 are quantiles of the last minute; 0 where nothing happened.
func p50(l *api.Latency) float64 {
	if l == nil {
		return 0
	}
	return l.P50
}

func p99(l *api.Latency) float64 {
	if l == nil {
		return 0
	}
	return l.P99
}

// activeText is the number of sessions, and their limit where there is one.
func activeText(active int64, limit int) string {
	if limit > 0 {
		return strconv.FormatInt(active, 10) + "/" + strconv.Itoa(limit)
	}
	return strconv.FormatInt(active, 10)
}

// weightText is the weight, and the configured one where that is another.
func weightText(m *api.BackendStatus) string {
	if m.Weight != m.ConfiguredWeight {
		return fmt.Sprintf("%d (config %d)", m.Weight, m.ConfiguredWeight)
	}
	return strconv.Itoa(m.Weight)
}

// rateText is new connections a second; "-" where that is not known yet.
func rateText(rate *float64) string {
	switch {
	case rate == nil:
		return "-"
	case *rate < 9.95:
		return strconv.FormatFloat(*rate, 'f', 1, 64) + "/s"
	default:
		return strconv.FormatFloat(*rate, 'f', 0, 64) + "/s"
	}
}

// stateCell is one word where one says it all: what the operator wants comes first, unless that is "ready".
func stateCell(m *api.BackendStatus) cell {
	c := plainStateCell(m)
	if m.Backup {
		c.text += ",backup"
	}
	if m.LastResort {
		c.text += ",last resort"
	}
	return c
}

func plainStateCell(m *api.BackendStatus) cell {
	switch {
	case m.Admin != "ready" && m.Health == "down":
		return cell{m.Admin + ",down", red}
	case m.Admin != "ready":
		return cell{m.Admin, yellow}
	case m.Health == "down":
		return cell{m.Health, red}
	case m.Health == "up":
		return cell{m.Health, green}
	default:
		return cell{m.Health, yellow}
	}
}

func probeCell(p *api.ProbeStatus, now time.Time) cell {
	switch {
	case p == nil:
		return cell{text: "-"}
	case p.OK:
		return cell{text: "ok " + secondsText(p.Duration) + ", " + shortDuration(now.Sub(p.Time)) + " ago"}
	default:
		return cell{"failed " + shortDuration(now.Sub(p.Time)) + " ago", red}
	}
}

// why is the reason of the last change of state, and of a failed probe if that is another.
func why(m *api.BackendStatus) string {
	reason := m.Reason
	if p := m.LastProbe; p != nil && !p.OK && p.Error != "" && !strings.Contains(reason, p.Error) {
		if reason != "" {
			reason += "; "
		}
		reason += "probe: " + p.Error
	}
	return reason
}

func shareText(m *api.BackendStatus) string {
	if !m.Selectable && m.Share == 0 {
		return "-"
	}
	return strconv.FormatFloat(m.Share*100, 'f', 1, 64) + "%"
}

// secondsText is seconds with three digits and a unit; "-" for 0, which is no measurement.
func secondsText(s float64) string {
	switch {
	case s <= 0:
		return "-"
	case s < 0.9995e-3:
		return strconv.FormatFloat(s*1e6, 'f', 0, 64) + "µs"
	case s < 0.9995:
		return strconv.FormatFloat(s*1e3, 'g', 3, 64) + "ms"
	default:
		return strconv.FormatFloat(s, 'f', 1, 64) + "s"
	}
}

// shortDuration is the two largest units: 3d4h, 2h3m, 5m12s, 12s.
func shortDuration(d time.Duration) string {
	s := int64(max(d, 0).Seconds())
	switch {
	case s >= 86400:
		return fmt.Sprintf("%dd%dh", s/86400, s%86400/3600)
	case s >= 3600:
		return fmt.Sprintf("%dh%dm", s/3600, s%3600/60)
	case s >= 60:
		return fmt.Sprintf("%dm%ds", s/60, s%60)
	default:
		return fmt.Sprintf("%ds", s)
	}
}

// bytesText is bytes in the largest unit of 1024 that leaves a whole part.
func bytesText(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + "B"
	}
	value, unit := float64(n)/1024, 0
	for value >= 1023.95 && unit < 5 {
		value, unit = value/1024, unit+1
	}
	return strconv.FormatFloat(value, 'f', 1, 64) + "KMGTPE"[unit:unit+1] + "iB"
}
