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
	each := func(name string, value func(workerPool) uint64) {
		e.family(name)
		for _, w := range all {
			e.count(labels("pool", w.pool), value(w))
		}
	}
	slots := func(name string, write func(labels string, s *api.SlotStatus)) {
		e.family(name)
		for _, w := range all {
			for i := range w.Slots {
				write(labels("pool", w.pool, "slot", strconv.Itoa(w.Slots[i].Slot)), &w.Slots[i])
			}
		}
	}
	each("lb_workers", func(w workerPool) uint64 { return uint64(max(w.Count, 0)) })
	each("lb_workers_up", func(w workerPool) (up uint64) {
		for i := range w.Slots {
			if w.Slots[i].State == "up" {
				up++
			}
		}
		return up
	})
	each("lb_workers_draining", func(w workerPool) uint64 { return uint64(len(w.Retired)) })
	slots("lb_worker_restarts_total", func(l string, s *api.SlotStatus) { e.count(l, s.Restarts) })
	slots("lb_worker_exits_total", func(l string, s *api.SlotStatus) {
		for _, reason := range sortedKeys(s.Exits) {
			e.count(withLabel(l, "reason", reason), s.Exits[reason])
		}
	})
	slots("lb_worker_cpu_seconds_total", func(l string, s *api.SlotStatus) { e.value(l, s.CPUSeconds) })
	slots("lb_worker_resident_memory_bytes", func(l string, s *api.SlotStatus) {
		if s.Usage != nil {
			e.count(l, s.Usage.Memory)
		}
	})
	each("lb_worker_output_lines_total", func(w workerPool) uint64 { return w.OutputLines })
	each("lb_worker_output_dropped_total", func(w workerPool) uint64 { return w.OutputDropped })
	e.family("lb_worker_notifications_total")
	for _, w := range all {
		for _, what := range sortedKeys(w.Notifications) {
			e.count(labels("pool", w.pool, "result", what), w.Notifications[what])
		}
	}
}
