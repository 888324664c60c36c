package daemon

import (
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/supervisor"
)

// workersStatus is what the control API shows of a pool's workers; nil for a pool without.
func (d *daemon) workersStatus(pool string) *api.WorkersStatus {
	w := d.workersOf(pool)
	if w == nil {
		return nil
	}
	d.usage.look(d.workers.list())
	st, counts := w.Status(), w.Counters()
	n := counts.Notify
	ws := &api.WorkersStatus{
		Count: len(st.Slots), Restarting: st.Restarting, Done: st.Done, Total: st.Total, Stale: st.Stale, Strays: st.Strays, CanRollback: st.CanRollback,
		RecordError: st.RecordError, OutputLines: counts.Lines, OutputDropped: counts.Dropped,
		Notifications: map[string]uint64{
			"taken":          n.Received - min(n.Received, n.Unknown+n.Garbage+n.TooLong),
			"unknown_sender": n.Unknown, "garbage": n.Garbage, "too_long": n.TooLong,
		},
	}
	for i := range st.Slots {
		s := &st.Slots[i]
		slot := api.SlotStatus{WorkerStatus: d.workerStatus(&s.WorkerStatus), Restarts: s.Starts - min(s.Starts, 1), QuickDeaths: s.Deaths, Exits: s.Exits}
		pids := []int{s.PID}
		if s.Next != nil {
			next := d.workerStatus(s.Next)
			pids = append(pids, next.PID)
			slot.Next = &next
		}
		if !s.Last.Time.IsZero() {
			slot.LastExit = &api.WorkerExit{Time: s.Last.Time, PID: s.Last.PID, Reason: s.Last.Reason, Fault: s.Last.Fault, Lines: append([]string{}, s.Last.Lines...)}
		}
		for i := range st.Retired {
			if st.Retired[i].Slot == s.Slot {
				pids = append(pids, st.Retired[i].PID)
			}
		}
		slot.CPUSeconds = d.usage.slotCPU(pool, s.Slot, s.CPU, pids...)
		ws.Slots = append(ws.Slots, slot)
	}
	for i := range st.Retired {
		ws.Retired = append(ws.Retired, d.workerStatus(&st.Retired[i]))
	}
	return ws
}

func (d *daemon) workerStatus(w *supervisor.WorkerStatus) api.WorkerStatus {
	when := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	return api.WorkerStatus{
		Slot: w.Slot, State: w.State, Since: w.Since, Reason: w.Reason, PID: w.PID, Started: when(w.Started), Up: when(w.UpSince), Due: when(w.Due),
		Usage: d.usage.of(w.PID), Text: w.Text, Backend: w.Backend.Name, Dir: w.Dir, Command: w.Command,
	}
}
