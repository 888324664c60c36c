package admin

import (
	"strconv"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// workers writes what is known of the processes that lb runs. Slots are counted, and no process has a metric
// of its own.
func (e *exposition) workers(s *Sources, pools []*backends.Pool) {
	type workerPool struct {
		pool string
		*api.WorkersStatus
	}
	var all []workerPool
	for _, p := range pools {
		if st := s.workers(p); st != nil {
			all = append(all, workerPool{p.Name, st})
		}
	}
	if all == nil {
		return
	}
	e.family("lb_workers", gauge, "Worker processes that there shall be.")
	for _, w := range all {
		e.value(labels("pool", w.pool), float64(w.Count))
	}
	e.family("lb_workers_up", gauge, "Workers that take connections.")
	for _, w := range all {
		up := 0
		for i := range w.Slots {
			if w.Slots[i].State == "up" {
				up++
			}
		}
		e.value(labels("pool", w.pool), float64(up))
	}
	e.family("lb_workers_draining", gauge, "Workers that were replaced or are not wanted any more, and have not ended.")
	for _, w := range all {
		e.value(labels("pool", w.pool), float64(len(w.Retired)))
	}
	e.family("lb_worker_restarts_total", counter, "Workers that were started in the slot after the first.")
	for _, w := range all {
		for i := range w.Slots {
			e.count(labels("pool", w.pool, "slot", strconv.Itoa(w.Slots[i].Slot)), w.Slots[i].Restarts)
		}
	}
	e.family("lb_worker_output_lines_total", counter, "Lines that workers wrote.")
	for _, w := range all {
		e.count(labels("pool", w.pool), w.OutputLines)
	}
	e.family("lb_worker_output_dropped_total", counter, "Lines of workers that could not be written to their file and were dropped.")
	for _, w := range all {
		e.count(labels("pool", w.pool), w.OutputDropped)
	}
	e.family("lb_worker_notifications_total", counter, "Messages on the workers' notify socket, by what became of them.")
	for _, w := range all {
		for _, what := range sortedKeys(w.Notifications) {
			e.count(labels("pool", w.pool, "result", what), w.Notifications[what])
		}
	}
}
