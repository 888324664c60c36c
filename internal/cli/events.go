package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newEventsCommand() *cobra.Command {
	c := new(caller)
	var follow bool
	var last int
	cmd := c.flags(&cobra.Command{
		Use:   "events [-f] [-n N]",
		Short: "Show recent changes of state, and with -f new ones",
		Args:  cobra.NoArgs,
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVarP(&last, "last", "n", 0, "only the last `N` (default all that lb remembers, with -f the last 10)")
	cmd.RunE = c.action(func(c *call) error {
		if last < 0 {
			return usage("--last is not negative")
		}
		q := api.EventQuery{Follow: follow, Last: last}
		switch {
		case cmd.Flags().Changed("last") && last == 0:
			q.Last = -1
		case follow && !cmd.Flags().Changed("last"):
			q.Last = 10
		}
		return showEvents(c, q)
	})
	return cmd
}

// showEvents prints events, in JSON one a line. Who follows ends it with an interrupt: that is no failure.
func showEvents(c *call, q api.EventQuery) error {
	colour := coloured(c.out)
	enc := newEncoder(c.out)
	err := c.Events(c.ctx, q, func(e api.Event) error {
		if c.json {
			return enc.Encode(e)
		}
		_, err := io.WriteString(c.out, eventLine(&e, time.Local, colour))
		return err
	})
	if q.Follow && c.ctx.Err() != nil {
		return nil
	}
	return err
}

func eventLine(e *api.Event, zone *time.Location, colour bool) string {
	level := levelCell(e.Level)
	missed := ""
	if e.Dropped > 0 {
		missed = fmt.Sprintf("(%s missed before this one)\n", count(int(e.Dropped), "event"))
	}
	return fmt.Sprintf("%s%s  %s  %s  %s\n", missed, e.Time.In(zone).Format("2006-01-02 15:04:05.000"),
		level.render(5, false, colour), printable.Text(e.Subject), printable.Text(e.Text))
}

func levelCell(level string) cell {
	switch level {
	case "warn":
		return cell{level, yellow}
	case "error":
		return cell{level, red}
	default:
		return cell{text: level}
	}
}
