package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin"
)

func newStatusCommand() *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show listeners, pools and backends of a running lb",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command) error {
			return status(cmd.OutOrStdout(), socket, asJSON)
		}),
	}
	addSocketFlag(cmd, &socket)
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func status(stdout io.Writer, socket string, asJSON bool) error {
	ctx, cancel := askContext()
	defer cancel()
	client := admin.NewClient(socket)
	if asJSON {
		raw, err := client.StatusJSON(ctx)
		if err != nil {
			return err
		}
		var text bytes.Buffer
		if err := json.Indent(&text, raw, "", "  "); err != nil {
			return err
		}
		text.WriteByte('\n')
		_, err = text.WriteTo(stdout)
		return err
	}
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	_, err = io.WriteString(stdout, renderStatus(st, time.Now(), coloured(stdout)))
	return err
}

// coloured says whether to print colours: on a terminal, and unless NO_COLOR is set (no-color.org).
func coloured(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// renderStatus is what a person reads at a glance: what is wrong has a colour and a reason.
func renderStatus(st *admin.Status, now time.Time, colour bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "lb %s, pid %d, up %s, %d of %s\n", printable(st.Version), st.PID,
		shortDuration(now.Sub(st.Started)), st.Sessions, count(int(st.MaxSessions), "session"))
	b.WriteString("\n" + listenerTable(st.Listeners).render(colour))
	for i := range st.Pools {
		p := &st.Pools[i]
		title := cell{text: fmt.Sprintf("pool %s, %s: %d of %s selectable, %d active", printable(p.Name), printable(p.Balance),
			p.Selectable, count(len(p.Backends), "backend"), p.Active)}
		if p.Selectable == 0 {
			title.colour = red
		}
		b.WriteString("\n" + title.render(0, false, colour) + "\n" + backendTable(p.Backends, now).render(colour))
	}
	return b.String()
}

func listenerTable(listeners []admin.ListenerStatus) *table {
	t := newTable("LISTENER", "ADDRESSES", "POOL", ">ACTIVE", ">CONNS", ">IN", ">OUT")
	for i := range listeners {
		l := &listeners[i]
		t.add(cell{text: l.Name}, cell{text: strings.Join(l.Addresses, " ")}, cell{text: l.Pool}, number(l.Active),
			number(l.Connections), cell{text: bytesText(l.BytesIn)}, cell{text: bytesText(l.BytesOut)})
	}
	return t
}

func backendTable(members []admin.BackendStatus, now time.Time) *table {
	t := newTable("BACKEND", "STATE", ">FOR", ">WEIGHT", ">SHARE", ">ACTIVE", ">CONNS", ">ERRORS", ">P50", ">P99", "PROBE", "WHY")
	for i := range members {
		m := &members[i]
		var failed uint64
		for _, n := range m.ConnectErrors {
			failed += n
		}
		errors := number(failed)
		if failed > 0 {
			errors.colour = yellow
		}
		active := strconv.FormatInt(m.Active, 10)
		if m.MaxConns > 0 {
			active += "/" + strconv.Itoa(m.MaxConns)
		}
		t.add(cell{text: m.Name}, stateCell(m), cell{text: shortDuration(now.Sub(m.Since))}, number(m.Weight),
			cell{text: shareText(m)}, cell{text: active}, number(m.Connections), errors,
			cell{text: secondsText(m.ConnectP50)}, cell{text: secondsText(m.ConnectP99)}, probeCell(m.LastProbe, now), cell{text: why(m)})
	}
	return t
}

// stateCell is one word where one says it all: what the operator wants comes first, unless that is "ready".
func stateCell(m *admin.BackendStatus) cell {
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

func probeCell(p *admin.ProbeStatus, now time.Time) cell {
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
func why(m *admin.BackendStatus) string {
	reason := m.Reason
	if p := m.LastProbe; p != nil && !p.OK && p.Error != "" && !strings.Contains(reason, p.Error) {
		if reason != "" {
			reason += "; "
		}
		reason += "probe: " + p.Error
	}
	return reason
}

func shareText(m *admin.BackendStatus) string {
	if !m.Selectable {
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
