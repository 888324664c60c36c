package daemon

import (
	"strconv"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/supervisor"
)

const (
	// usageAge is how old an answer about the workers' usage may be.
	usageAge = time.Second
	// usageShare bounds what the looks at /proc cost: at most this part of lb's time on a host with very many
	// processes.
	usageShare = 0.02
)

// workerUsage knows what workers take of the host. It looks only when it is asked, so that an lb that nobody
// looks at does nothing for it. Safe for concurrent use.
type workerUsage struct {
	mu    sync.Mutex
	last  time.Time
	next  time.Time // no look before
	used  map[int]supervisor.Usage
	rates map[int]float64          // CPUs used, by pid
	shown map[string]time.Duration // the most CPU time of a slot that was shown, by POOL/SLOT
}

// look brings what is known up to date.
func (u *workerUsage) look(pools []*workerPool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if now.Before(u.next) {
		return
	}
	started := map[int]time.Time{}
	var pids []int
	note := func(w *supervisor.WorkerStatus) {
		if w != nil && w.PID > 0 {
			pids, started[w.PID] = append(pids, w.PID), w.Started
		}
	}
	for _, p := range pools {
		st := p.Status()
		for i := range st.Slots {
			note(&st.Slots[i].WorkerStatus)
			note(st.Slots[i].Next)
		}
		for i := range st.Retired {
			note(&st.Retired[i])
		}
	}
	before, since := u.used, u.last
	u.used, u.last, u.rates = nil, now, map[int]float64{}
	if len(pids) > 0 {
		u.used = supervisor.Usages(pids)
	}
	for pid, used := range u.used {
		cpu, over := used.CPU, now.Sub(started[pid])
		if old, ok := before[pid]; ok && old.CPU <= cpu && since.After(started[pid]) {
			cpu, over = cpu-old.CPU, now.Sub(since)
		}
		if over > 0 {
			u.rates[pid] = cpu.Seconds() / over.Seconds()
		}
	}
	u.next = now.Add(max(usageAge, time.Duration(float64(time.Since(now))/usageShare)))
}

// of returns what a worker takes; nil where that is not known.
func (u *workerUsage) of(pid int) *api.WorkerUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	used, ok := u.used[pid]
	if !ok || pid == 0 {
		return nil
	}
	return &api.WorkerUsage{CPU: u.rates[pid], CPUSeconds: used.CPU.Seconds(), Memory: used.Memory, Processes: used.Processes}
}

// slotCPU returns the CPU time of a slot's workers, of which gone is the time of those that have ended. It
// never goes back, though what a worker had started may have ended without being waited for.
func (u *workerUsage) slotCPU(pool string, slot int, gone time.Duration, pids ...int) float64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	total := gone
	for _, pid := range pids {
		total += u.used[pid].CPU
	}
	key := pool + "/" + strconv.Itoa(slot)
	if u.shown == nil {
		u.shown = map[string]time.Duration{}
	}
	total = max(total, u.shown[key])
	u.shown[key] = total
	return total.Seconds()
}
