package cli

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newWorkersCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:               "workers [POOL]",
		Short:             "Show the worker processes, and how the last one of each slot ended",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.complete(first(completeWorkerPools)),
		RunE:              c.action(showWorkers),
	})
}

func showWorkers(c *call) error {
	ctx, cancel := c.soon()
	defer cancel()
	if len(c.args) > 0 {
		st, err := c.Workers(ctx, c.args[0])
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(c.out, st)
		}
		_, err = io.WriteString(c.out, renderWorkers(c.args[0], st, time.Now(), coloured(c.out))+lastWords(c.args[0], st))
		return err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	all, text := map[string]*api.WorkersStatus{}, ""
	for i := range st.Pools {
		if p := &st.Pools[i]; p.Workers != nil {
			all[p.Name] = p.Workers
			text += renderWorkers(p.Name, p.Workers, time.Now(), coloured(c.out)) + lastWords(p.Name, p.Workers)
		}
	}
	if c.json {
		return printJSON(c.out, all)
	}
	if text == "" {
		text = "lb runs no workers: no pool has [pools.NAME.workers]\n"
	}
	_, err = io.WriteString(c.out, text)
	return err
}

// workerRow is a worker as a row of renderWorkers.
type workerRow struct {
	status            *api.WorkerStatus
	serves            bool   // it is the one in its slot
	restarts, crashes uint64 // of its slot; 0 for one that is not in it
	cells             []cell
}

// workerRows are a pool's workers: each slot's, what is to replace it, and those that finish.
func workerRows(pool string, st *api.WorkersStatus, now time.Time) (rows []workerRow) {
	row := func(name string, w *api.WorkerStatus, restarts, crashes, last string) {
		pid := "-"
		if w.PID > 0 {
			pid = strconv.Itoa(w.PID)
		}
		since := "-"
		if !w.Since.IsZero() {
			since = shortDuration(now.Sub(w.Since))
		}
		why := w.Reason
		if w.Text != "" {
			why += "; it says: " + w.Text
		}
		rows = append(rows, workerRow{status: w, cells: []cell{{text: name}, workerStateCell(w.State), {text: pid}, {text: since}, {text: cpuText(w.Usage)},
			{text: memoryText(w.Usage)}, {text: restarts}, crashCell(crashes), {text: w.Backend}, {text: last}, {text: why}}})
	}
	for i := range st.Slots {
		s := &st.Slots[i]
		last := "-"
		if e := s.LastExit; e != nil {
			last = fmt.Sprintf("%s, %s ago", e.Reason, shortDuration(now.Sub(e.Time)))
		}
		row(pool+"/"+strconv.Itoa(s.Slot), &s.WorkerStatus, strconv.FormatUint(s.Restarts, 10), strconv.FormatUint(crashesOf(s), 10), last)
		rows[len(rows)-1].serves = true
		rows[len(rows)-1].restarts, rows[len(rows)-1].crashes = s.Restarts, crashesOf(s)
		if s.Next != nil {
			row("  next", s.Next, "", "", "")
		}
	}
	for i := range st.Retired {
		row("  was "+pool+"/"+strconv.Itoa(st.Retired[i].Slot), &st.Retired[i], "", "", "")
	}
	return rows
}

// renderWorkers is a table of a pool's workers.
func renderWorkers(pool string, st *api.WorkersStatus, now time.Time, colour bool) string {
	up := 0
	for i := range st.Slots {
		if st.Slots[i].State == "up" {
			up++
		}
	}
	t := newTable("WORKER", "STATE", ">PID", ">FOR", ">CPU", ">MEMORY", ">RESTARTS", ">CRASHES", "BACKEND", "LAST EXIT", "WHY")
	for _, row := range workerRows(pool, st, now) {
		t.add(row.cells...)
	}
	title := fmt.Sprintf("workers of %s: %d of %d up", printable.Text(pool), up, len(st.Slots))
	if st.Restarting {
		title += fmt.Sprintf(", restarting: %d of %d replaced", st.Done, st.Total)
	}
	if st.Stale {
		title += ", not all of the config's command, environment and directory"
	}
	if st.Strays > 0 && !st.Restarting {
		title += fmt.Sprintf(", %d not of what last worked for all: lb rollback %s takes them back", st.Strays, printable.Text(pool))
	}
	if st.OutputDropped > 0 {
		title += fmt.Sprintf(", %s of their output dropped", count(int(st.OutputDropped), "line"))
	}
	if st.RecordError != "" {
		title += "\nan lb started after this one was killed would not find them all: " + printable.Text(st.RecordError)
	}
	return title + "\n" + t.render(colour)
}

// crashesOf counts the workers of a slot that ended, but not because lb wanted it.
func crashesOf(s *api.SlotStatus) (n uint64) {
	for why, times := range s.Exits {
		if why != "stopped" {
			n += times
		}
	}
	return n
}

func crashCell(n string) cell {
	if n == "0" || n == "" {
		return cell{text: n}
	}
	return cell{n, yellow}
}

// cpuText is in per cent of one CPU.
func cpuText(u *api.WorkerUsage) string {
	if u == nil {
		return "-"
	}
	return strconv.FormatFloat(u.CPU*100, 'f', 0, 64) + "%"
}

func memoryText(u *api.WorkerUsage) string {
	if u == nil {
		return "-"
	}
	return bytesText(u.Memory)
}

// lastWords are the last lines of the workers that have died quickly.
func lastWords(pool string, st *api.WorkersStatus) string {
	var b strings.Builder
	for i := range st.Slots {
		s := &st.Slots[i]
		if s.QuickDeaths == 0 || s.LastExit == nil || len(s.LastExit.Lines) == 0 {
			continue
		}
		lines := s.LastExit.Lines
		fmt.Fprintf(&b, "\nlast words of %s/%d (pid %d):\n", printable.Text(pool), s.Slot, s.LastExit.PID)
		for _, line := range lines[max(0, len(lines)-5):] {
			b.WriteString("  " + printable.Text(line) + "\n")
		}
	}
	return b.String()
}

func workerStateCell(state string) cell {
	switch state {
	case "up":
		return cell{state, green}
	case "failed", "silent", "aborting", "killing":
		return cell{state, red}
	default:
		return cell{state, yellow}
	}
}

// slotArg reads POOL/SLOT.
func slotArg(arg string) (pool string, slot int, err error) {
	pool, number, ok := strings.Cut(arg, "/")
	slot, err = strconv.Atoi(number)
	if !ok || pool == "" || err != nil || slot < 0 {
		return "", 0, usage("%q is not POOL/SLOT, such as app/0", arg)
	}
	return pool, slot, nil
}

// poolOrSlotArg reads POOL[/SLOT]; slot is nil for all.
func poolOrSlotArg(arg string) (pool string, slot *int, err error) {
	if !strings.Contains(arg, "/") {
		return arg, nil, nil
	}
	pool, n, err := slotArg(arg)
	return pool, &n, err
}

func completeWorkerPools(st *api.Status) (names []string) {
	for i := range st.Pools {
		if st.Pools[i].Workers != nil {
			names = append(names, st.Pools[i].Name)
		}
	}
	return names
}

// completeSlots are of the form POOL/SLOT.
func completeSlots(st *api.Status) (names []string) {
	for i := range st.Pools {
		if w := st.Pools[i].Workers; w != nil {
			for j := range w.Slots {
				names = append(names, st.Pools[i].Name+"/"+strconv.Itoa(w.Slots[j].Slot))
			}
		}
	}
	return names
}

func completePoolsAndSlots(st *api.Status) []string {
	return append(completeWorkerPools(st), completeSlots(st)...)
}

func newScaleCommand() *cobra.Command {
	c := new(caller)
	var down int
	cmd := c.flags(&cobra.Command{
		Use:               "scale POOL N|+N|-N",
		Short:             "Change the number of workers of a pool",
		Long:              "Change how many workers a pool has, to N or by N, and wait until new ones are ready. Those with the highest numbers go first, and finish their sessions. The number holds until the config's count changes, or lb is stopped.",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: c.complete(first(completeWorkerPools)),
	})
	cmd.Flags().IntVar(&down, scaleDownFlag, 0, "")
	cmd.Flags().MarkHidden(scaleDownFlag)
	cmd.RunE = c.action(func(c *call) error {
		r, err := scaleRequest(c.args, down)
		if err != nil {
			return err
		}
		stop := c.progress(c.scaling(c.args[0]))
		st, err := c.Scale(c.ctx, c.args[0], r)
		stop()
		if err != nil {
			return err
		}
		return c.show(st, "%s has %s", printable.Text(c.args[0]), count(st.Count, "worker"))
	})
	return cmd
}

// scaleDownFlag stands for -N, which looks like a flag.
const scaleDownFlag = "down-by"

var minusNumber = regexp.MustCompile(`^-[0-9]+$`)

// scaleArgs writes the -N of lb scale as a flag.
func scaleArgs(args []string) []string {
	if len(args) == 0 || args[0] != "scale" {
		return args
	}
	args = append([]string(nil), args...)
	for i, arg := range args {
		if minusNumber.MatchString(arg) {
			args[i] = "--" + scaleDownFlag + "=" + arg[1:]
		}
	}
	return args
}

func scaleRequest(args []string, down int) (api.ScaleRequest, error) {
	if down > 0 && len(args) == 1 {
		delta := -down
		return api.ScaleRequest{Delta: &delta}, nil
	}
	if len(args) != 2 || down != 0 {
		return api.ScaleRequest{}, usage("write one number: N, +N or -N")
	}
	text, plus := strings.CutPrefix(args[1], "+")
	if plus && strings.HasPrefix(text, "+") {
		return api.ScaleRequest{}, usage("%q is no number of workers", args[1])
	}
	n, err := numberArg(text, "number of workers")
	if err != nil {
		return api.ScaleRequest{}, err
	}
	if plus {
		return api.ScaleRequest{Delta: &n}, nil
	}
	return api.ScaleRequest{Count: &n}, nil
}

func newLogsCommand() *cobra.Command {
	c := new(caller)
	var follow bool
	var last int
	cmd := c.flags(&cobra.Command{
		Use:               "logs [-f] [-n N] POOL[/SLOT]",
		Short:             "Show what workers wrote, and with -f what they write",
		Long:              "Show what workers wrote to their standard output and error, and with -f what they write. lb remembers the last 1000 lines of each pool.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.complete(first(completePoolsAndSlots)),
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVarP(&last, "last", "n", 0, "only the last `N` (default all that lb remembers, with -f the last 10)")
	cmd.RunE = c.action(func(c *call) error {
		if last < 0 {
			return usage("--last is not negative")
		}
		q := api.LogQuery{Slot: -1, Last: last, Follow: follow}
		if follow && last == 0 {
			q.Last = 10
		}
		pool, slot, err := poolOrSlotArg(c.args[0])
		if err != nil {
			return err
		}
		if slot != nil {
			q.Slot = *slot
		}
		return showLogs(c, pool, q)
	})
	return cmd
}

// showLogs prints lines of workers, in JSON one a line. Who follows ends it with an interrupt: that is no
// failure.
func showLogs(c *call, pool string, q api.LogQuery) error {
	enc := newEncoder(c.out)
	err := c.Logs(c.ctx, pool, q, func(l api.WorkerLine) error {
		if c.json {
			return enc.Encode(l)
		}
		_, err := io.WriteString(c.out, workerLine(&l, time.Local))
		return err
	})
	if q.Follow && c.ctx.Err() != nil {
		return nil
	}
	return err
}

func workerLine(l *api.WorkerLine, zone *time.Location) string {
	missed, cut := "", ""
	if l.Dropped > 0 {
		missed = fmt.Sprintf("(%s missed before this one)\n", count(int(l.Dropped), "line"))
	}
	if l.Cut {
		cut = " (cut)"
	}
	return fmt.Sprintf("%s%s  %d  %d  %s%s\n", missed, l.Time.In(zone).Format("2006-01-02 15:04:05.000"), l.Slot, l.PID,
		printable.Text(strings.ReplaceAll(l.Text, "\t", "    ")), cut)
}

func newStartCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:               "start POOL/SLOT",
		Short:             "Start a worker that was stopped or waits after crashes",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.complete(first(completeSlots)),
		RunE: c.action(func(c *call) error {
			pool, slot, err := slotArg(c.args[0])
			if err != nil {
				return err
			}
			st, err := c.StartWorker(c.ctx, pool, slot)
			if err != nil {
				return err
			}
			return showSlot(c, st, slot)
		}),
	})
}

// stopSlot ends a worker for good.
func stopSlot(c *call) error {
	pool, slot, err := slotArg(c.args[0])
	if err != nil {
		return err
	}
	st, err := c.StopWorker(c.ctx, pool, slot)
	if err != nil {
		return err
	}
	return showSlot(c, st, slot)
}

// showSlot prints the state of a slot.
func showSlot(c *call, st *api.WorkersStatus, slot int) error {
	if slot >= len(st.Slots) {
		return c.show(st, "%s is gone: the pool has %s", printable.Text(c.args[0]), count(len(st.Slots), "slot"))
	}
	s := st.Slots[slot]
	pid := ""
	if s.PID > 0 {
		pid = fmt.Sprintf(", pid %d", s.PID)
	}
	return c.show(s, "%s: %s%s", printable.Text(c.args[0]), s.State, pid)
}
