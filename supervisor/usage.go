package supervisor

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Usage is what a worker and all that it has started take of the host.
type Usage struct {
	CPU       time.Duration // so far, user and system, with what has ended and was waited for
	Memory    uint64        // bytes in RAM; a page that several share counts once for each
	Processes int
}

// clockTick is the unit of times in /proc: USER_HZ, which is 100 on every architecture of Linux that Go
// supports (proc_pid_stat(5), times(2)).
const clockTick = time.Second / 100

// Usages returns what the workers with these pids take. A pid without a process is absent. It reads lb's
// descendants, and all processes of the host only where a worker is not one of them.
func Usages(pids []int) map[int]Usage {
	if len(pids) == 0 {
		return map[int]Usage{}
	}
	all := familyOf(pids)
	wanted := make(map[int]bool, len(pids))
	for _, pid := range pids {
		wanted[pid] = true
	}
	page := uint64(os.Getpagesize())
	used := make(map[int]Usage, len(pids))
	for _, r := range all {
		pid := r.worker(wanted, all)
		if pid == 0 {
			continue
		}
		u := used[pid]
		u.CPU += time.Duration(r.cpu) * clockTick
		u.Memory += r.resident * page
		u.Processes++
		used[pid] = u
	}
	return used
}

// familyOf returns the processes among which all that the workers have started is found.
func familyOf(pids []int) relatives {
	if knowsDescendants() {
		own, _ := descendants(func(int) bool { return false })
		stranger := func(pid int) bool { // an lb before has started it
			if _, found := own[pid]; found {
				return false
			}
			_, err := readRelative(pid)
			return err == nil
		}
		if !slices.ContainsFunc(pids, stranger) {
			return own
		}
	}
	all, _ := everybody()
	return all
}

// worker returns which of the workers a process is or was started by; 0 for none.
func (r relative) worker(workers map[int]bool, all relatives) int {
	if r.ended {
		return 0
	}
	for range len(all) { // parents: no chain is longer
		for _, pid := range [...]int{r.pid, r.group, r.session} {
			if workers[pid] {
				return pid
			}
		}
		parent, ok := all[r.parent]
		if !ok {
			return 0
		}
		r = parent
	}
	return 0
}

// parseSize reads a size in bytes such as "300MiB"; 0 for an empty text.
func parseSize(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	for shift, unit := range map[int]string{10: "KiB", 20: "MiB", 30: "GiB"} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
			if err == nil && n > 0 && n <= math.MaxUint64>>shift {
				return n << shift, nil
			}
		}
	}
	return 0, fmt.Errorf("%q is no size; write one such as \"300MiB\", or \"\" for never", text)
}

const (
	// usageEvery is how often a pool looks how much memory its workers take, where that matters.
	usageEvery = 5 * time.Second
	// memoryTrial is how long a worker runs before its memory is judged: one that is too large from the start
	// must not be replaced all the time.
	memoryTrial = 30 * time.Second
)

// measure has the workers' usage looked at, beside the pool's goroutine, where a limit of memory needs it.
func (p *Pool) measure() {
	if p.cfg.Recycle.Memory == "" || p.measuring || time.Since(p.measured) < usageEvery || p.round.Err() != nil {
		return
	}
	var pids []int
	for _, w := range p.workers {
		if pid := w.pid(); pid > 0 {
			pids = append(pids, pid)
		}
	}
	p.measuring = true
	p.running.Go(func() {
		used := p.host.usage(pids)
		p.post(func() { p.used, p.measured, p.measuring = used, time.Now(), false })
	})
}

// overweight returns why w is to be recycled for its memory; empty if it is not.
func (p *Pool) overweight(w *worker) string {
	limit, _ := parseSize(p.cfg.Recycle.Memory) // checked by ValidateText
	if limit == 0 || time.Since(w.upSince) < memoryTrial || p.measured.Before(w.upSince) {
		return ""
	}
	if n := p.used[w.pid()].Memory; n >= limit {
		return fmt.Sprintf("recycled: takes %d MiB of memory, recycle.memory is %s", n>>20, p.cfg.Recycle.Memory)
	}
	return ""
}
