package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// statTick is the unit of the times in /proc/PID/stat and /proc/stat: USER_HZ, which Linux fixes at 100 on
// every architecture that Go runs on (proc(5) calls it sysconf(_SC_CLK_TCK)).
const statTick = 10 * time.Millisecond

// CPU is the CPU time of some processes since each began. Its fields only ever grow.
type CPU struct {
	// Total is exact to the nanosecond: the sum of the processes' CPU-time clocks.
	Total time.Duration
	// User and System are utime and stime of /proc/PID/stat, in steps of 10 ms. The kernel scales their sum
	// to the exact time; how it splits into the two is sampled by the timer tick.
	User, System time.Duration
	// Switches counts context switches, voluntary or not, of the threads that are alive.
	Switches uint64
}

// Sub returns what was used between the two readings before and c.
func (c CPU) Sub(before CPU) CPU {
	return CPU{
		Total:    c.Total - before.Total,
		User:     c.User - before.User,
		System:   c.System - before.System,
		Switches: c.Switches - before.Switches,
	}
}

// ReadCPU adds up the CPU time of the processes, of all of their threads, ended ones included. It fails if
// one of the processes is gone, because its time is gone with it.
//
// Total is read from the processes' CPU-time clocks (clock_getcpuclockid(3)): they count nanoseconds, bring
// the time of a thread that runs at this moment up to date, and keep that of ended threads.
// /proc/PID/schedstat knows one thread only, and /proc/PID/stat counts in 10 ms.
func ReadCPU(pids []int) (CPU, error) {
	var sum CPU
	for _, pid := range pids {
		total, err := processClock(pid)
		if err != nil {
			return CPU{}, fmt.Errorf("cannot read CPU clock of process %d: %w", pid, err)
		}
		stat, err := readStat(pid)
		if err != nil {
			return CPU{}, err
		}
		switches, err := readSwitches(pid)
		if err != nil {
			return CPU{}, err
		}
		sum.Total += total
		sum.User += stat.user
		sum.System += stat.system
		sum.Switches += switches
	}
	return sum, nil
}

// processClock reads the CPU-time clock of a process. The clock's id is made of the pid as in the kernel's
// include/linux/posix-timers.h: the inverted pid above three bits, of which CPUCLOCK_SCHED (2) means "exact,
// whole process".
func processClock(pid int) (time.Duration, error) {
	const cpuclockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|cpuclockSched, &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// procStat is what we use of /proc/PID/stat.
type procStat struct {
	pid, parent  int
	dead         bool // a zombie: ended, and not reaped yet
	user, system time.Duration
	start        uint64 // ticks after boot; with the pid it names a process for good
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, fmt.Errorf("cannot read stat of process: %w", err)
	}
	return parseStat(string(b))
}

// parseStat parses /proc/PID/stat as proc_pid_stat(5) describes it.
func parseStat(line string) (procStat, error) {
	fail := func() (procStat, error) { return procStat{}, fmt.Errorf("cannot parse process stat %q", line) }
	// The program's name stands in parentheses and may contain spaces and parentheses itself.
	open, shut := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || shut < open {
		return fail()
	}
	fields := strings.Fields(line[shut+1:]) // fields[0] is field 3 of the manual page
	if len(fields) < 20 {
		return fail()
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(line[:open]))
	parent, err2 := strconv.Atoi(fields[1])
	utime, err3 := strconv.ParseUint(fields[11], 10, 63)
	stime, err4 := strconv.ParseUint(fields[12], 10, 63)
	start, err5 := strconv.ParseUint(fields[19], 10, 64)
	if errors.Join(err1, err2, err3, err4, err5) != nil {
		return fail()
	}
	return procStat{
		pid: pid, parent: parent, dead: fields[0] == "Z" || fields[0] == "X",
		user: time.Duration(utime) * statTick, system: time.Duration(stime) * statTick,
		start: start,
	}, nil
}

// readSwitches adds up the context switches of the threads of a process.
func readSwitches(pid int) (uint64, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		panic("BUG: bad glob pattern: " + err.Error())
	}
	var sum uint64
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread ended just now
		}
		if err != nil {
			return 0, fmt.Errorf("cannot read status of thread: %w", err)
		}
		values := parseKeyValues(b)
		sum += values["voluntary_ctxt_switches"] + values["nonvoluntary_ctxt_switches"]
	}
	return sum, nil
}

// parseKeyValues parses the lines `Name:  number [unit]` of a /proc file; others are left out.
func parseKeyValues(b []byte) map[string]uint64 {
	values := make(map[string]uint64)
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		if fields := bytes.Fields(rest); len(fields) > 0 {
			if n, err := strconv.ParseUint(string(fields[0]), 10, 64); err == nil {
				values[string(name)] = n
			}
		}
	}
	return values
}

// Tree returns the pids of root and of all its living descendants, sorted. It fails if root is gone.
func Tree(root int) ([]int, error) {
	if _, err := readStat(root); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	children := make(map[int][]int)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if stat, err := readStat(pid); err == nil && !stat.dead {
			children[stat.parent] = append(children[stat.parent], pid)
		}
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	slices.Sort(tree)
	return tree, nil
}

// Memory is the memory of some processes, in bytes.
type Memory struct {
	// Anon is memory that belongs to no file: heaps, stacks, written data. A page that several processes
	// still share after a fork counts as one, a part for each (Pss_Anon).
	Anon uint64
	// Shared is memory that processes share on purpose, such as nginx's zones or a memfd (Pss_Shmem).
	Shared uint64
	// Swapped is what was moved out to swap (SwapPss).
	Swapped uint64
}

// User returns the memory that the processes themselves took: all three kinds. The program's and its
// libraries' files are not in it, since they are mapped once, however many sessions there are. What the
// kernel holds for a connection (sockets, their buffers, epoll entries) is not either; two sockets per
// session cost every balancer the same.
func (m Memory) User() uint64 { return m.Anon + m.Shared + m.Swapped }

// ReadMemory adds up the memory of the processes from /proc/PID/smaps_rollup (Linux 5.3 or newer), which
// counts pages that were really touched. It walks the processes' page tables, so it is not for use during a
// measurement of CPU.
func ReadMemory(pids []int) (Memory, error) {
	var sum Memory
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return Memory{}, fmt.Errorf("cannot read memory of process: %w", err)
		}
		m, err := parseSmapsRollup(b)
		if err != nil {
			return Memory{}, fmt.Errorf("cannot read memory of process %d: %w", pid, err)
		}
		sum.Anon += m.Anon
		sum.Shared += m.Shared
		sum.Swapped += m.Swapped
	}
	return sum, nil
}

func parseSmapsRollup(b []byte) (Memory, error) {
	values := parseKeyValues(b)
	for _, name := range []string{"Pss_Anon", "Pss_Shmem", "SwapPss"} {
		if _, ok := values[name]; !ok {
			return Memory{}, fmt.Errorf("smaps_rollup has no %s: the kernel is too old", name)
		}
	}
	return Memory{Anon: values["Pss_Anon"] << 10, Shared: values["Pss_Shmem"] << 10, Swapped: values["SwapPss"] << 10}, nil
}

// CountFDs returns how many file descriptors the processes have open together.
func CountFDs(pids []int) (int, error) {
	sum := 0
	for _, pid := range pids {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, fmt.Errorf("cannot count file descriptors of process: %w", err)
		}
		sum += len(entries)
	}
	return sum, nil
}

// MachineBusy returns how long the machine's CPUs, all together, did anything but idle since boot, in steps
// of 10 ms; that includes time a hypervisor gave to others.
func MachineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("cannot read CPU use of the machine: %w", err)
	}
	return parseMachineBusy(string(b))
}

func parseMachineBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	// proc_stat(5): cpu user nice system idle iowait irq softirq steal guest guest_nice; guest is part of
	// user.
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("cannot parse CPU use of the machine %q", line)
	}
	var ticks uint64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseUint(fields[i], 10, 63)
		if err != nil {
			return 0, fmt.Errorf("cannot parse CPU use of the machine %q: %w", line, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * statTick, nil
}

// ProcessCPU returns the CPU time of one process, see [ReadCPU], and costs one system call.
func ProcessCPU(pid int) (time.Duration, error) {
	total, err := processClock(pid)
	if err != nil {
		return 0, fmt.Errorf("cannot read CPU clock of process %d: %w", pid, err)
	}
	return total, nil
}
