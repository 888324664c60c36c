package admin

import (
	"strconv"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// workers writes what is known of the processes that lb runs. Slots are counted, and no process has a metric
// of its own.
func (e *exposition) workers(s *Sources, pools []*backends.Pool) {
	type fleet struct {
		pool string
		*api.WorkersStatus
	}
	var fleets []fleet
	for _, p := range pools {
		if st := s.workers(p); st != nil {
			fleets = append(fleets, fleet{p.Name, st})
		}
	}
	if fleets == nil {
		return
	}
	e.family("lb_workers", gauge, "Worker processes that there shall be.")
	for _, f := range fleets {
		e.value(labels("pool", f.pool), float64(f.Count))
	}
	e.family("lb_workers_up", gauge, "Workers that take connections.")
	for _, f := range fleets {
		up := 0
		for i := range f.Slots {
			if f.Slots[i].State == "up" {
				up++
			}
		}
		e.value(labels("pool", f.pool), float64(up))
	}
	e.family("lb_workers_draining", gauge, "Workers that were replaced or are not wanted any more, and have not ended.")
	for _, f := range fleets {
		e.value(labels("pool", f.pool), float64(len(f.Retired)))
	}
	e.family("lb_worker_restarts_total", counter, "Workers that were started in the slot after the first.")
	for _, f := range fleets {
		for i := range f.Slots {
			e.count(labels("pool", f.pool, "slot", strconv.Itoa(f.Slots[i].Slot)), f.Slots[i].Restarts)
		}
	}
	e.family("lb_worker_output_lines_total", counter, "Lines that workers wrote.")
	for _, f := range fleets {
		e.count(labels("pool", f.pool), f.OutputLines)
	}
	e.family("lb_worker_output_dropped_total", counter, "Lines of workers that could not be written to their file and were dropped.")
	for _, f := range fleets {
		e.count(labels("pool", f.pool), f.OutputDropped)
	}
	e.family("lb_worker_notifications_total", counter, "Messages on the workers' notify socket, by what became of them.")
	for _, f := range fleets {
		for _, what := range sortedKeys(f.Notifications) {
			e.count(labels("pool", f.pool, "result", what), f.Notifications[what])
		}
	}
}
