package admin

import (
	"bytes"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/VictoriaMetrics/metrics"

	"github.com/273ebdf9/lb/backends"
)

type metricType string

const (
	counter   metricType = "counter"
	gauge     metricType = "gauge"
	histogram metricType = "histogram"
	summary   metricType = "summary"
)

// exposition collects metrics in the text format of Prometheus (its documentation, "Exposition formats"):
// each family once, with HELP and TYPE, and all its samples behind them.
//
// It appends the samples itself: with 256 backends there are 20 000 of them, and the writers of package
// metrics, which go through fmt, cost 21 ms, 65 000 allocations and 9 MB instead of 4 ms, 6 400 and 0.8 MB
// (BenchmarkMetrics).
type exposition struct {
	w    io.Writer
	buf  []byte // what was not written to w yet
	err  error  // of w, the first
	name string
}

// expositionChunk is about how many bytes go to the writer at once.
const expositionChunk = 32 << 10

// flush writes what there is.
func (e *exposition) flush() error {
	if e.err == nil {
		_, e.err = e.w.Write(e.buf)
	}
	e.buf = e.buf[:0]
	return e.err
}

// family begins one of metricFamilies; samples follow until the next.
func (e *exposition) family(name string) {
	i := slices.IndexFunc(metricFamilies, func(f metricFamily) bool { return f.name == name })
	if i < 0 {
		panic("BUG: admin: metricFamilies has no " + name)
	}
	e.begin(name, metricFamilies[i].typ, metricFamilies[i].help)
}

func (e *exposition) begin(name string, typ metricType, help string) {
	e.name = name
	e.buf = append(e.buf, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+string(typ)+"\n"...)
}

// number is a family of one sample without labels, and so is total, of a whole number.
func (e *exposition) number(name string, v float64) {
	e.family(name)
	e.value("", v)
}

func (e *exposition) total(name string, v uint64) {
	e.family(name)
	e.count("", v)
}

// count is a sample of a whole number.
func (e *exposition) count(labels string, v uint64) {
	e.buf = append(append(e.buf, e.name...), labels...)
	e.buf = append(strconv.AppendUint(append(e.buf, ' '), v, 10), '\n')
	if len(e.buf) >= expositionChunk {
		e.flush()
	}
}

// value is a sample of any number.
func (e *exposition) value(labels string, v float64) {
	e.buf = append(append(e.buf, e.name...), labels...)
	e.buf = append(strconv.AppendFloat(append(e.buf, ' '), v, 'g', -1, 64), '\n')
}

// flag is a sample of 1 or 0.
func (e *exposition) flag(labels string, v bool) {
	if v {
		e.count(labels, 1)
	} else {
		e.count(labels, 0)
	}
}

// histogram writes the buckets of h that bounds names, cumulative, with its sum and its count; nothing if h
// is empty. The count is that of the buckets, so that they agree whatever was added meanwhile. A bucket's
// bound is exclusive in h and inclusive here: 1 ns apart. The family must be the last that was begun.
func (e *exposition) histogram(labels string, h *backends.HistogramSnapshot, bounds bucketBounds) {
	if h.Count() == 0 {
		return
	}
	family := e.name
	e.name = family + "_bucket" + strings.TrimSuffix(labels, "}") + `,le="`
	var sum uint64
	for i, n := range h.Counts {
		sum += n
		if bounds.has(i, len(h.Counts)) {
			e.count(bucketEnds[i], sum)
		}
	}
	e.name = family + "_sum"
	e.value(labels, h.Sum.Seconds())
	e.name = family + "_count"
	e.count(labels, sum)
	e.name = family
}

// bucketBounds are which buckets of a backends.Histogram, whose bounds double, a metric shows: from the first
// to the last, each step-th, and +Inf. All series of a family have the same.
type bucketBounds struct{ first, last, step int }

var (
	connectBounds = bucketBounds{0, 18, 2} // 65 µs to 17 s, by four
	waitBounds    = bucketBounds{4, 20, 2} // 1 ms to 69 s, by four
	latencyBounds = bucketBounds{2, 20, 1} // 262 µs to 69 s, by two
	sessionBounds = bucketBounds{4, 30, 2} // 1 ms to 20 h, by four
)

func (b bucketBounds) has(i, n int) bool {
	return i == n-1 || i >= b.first && i <= b.last && (i-b.first)%b.step == 0
}

// bucketEnds are the bounds of a histogram's buckets as they end a label set.
var bucketEnds = func() []string {
	var h backends.HistogramSnapshot
	ends := make([]string, len(h.Counts))
	for i := range ends {
		le := "+Inf"
		if bound := h.Bound(i); bound != 0 {
			le = strconv.FormatFloat(bound.Seconds(), 'g', -1, 64)
		}
		ends[i] = le + `"}`
	}
	return ends
}()

var labelEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// labels makes {name="value",…} of names and values by turns.
func labels(pairs ...string) string {
	var b []byte
	separator := byte('{')
	for i := 0; i < len(pairs); i += 2 {
		b = append(append(b, separator), pairs[i]...)
		b = append(append(b, `="`...), labelEscaper.Replace(pairs[i+1])...)
		b = append(b, '"')
		separator = ','
	}
	return string(append(b, '}'))
}

// withLabel adds a label whose value needs no escapes.
func withLabel(labels, name, value string) string {
	return strings.TrimSuffix(labels, "}") + "," + name + `="` + value + `"}`
}

// runtimeFamilies are the metrics of the process and of the Go runtime that package metrics knows and lb
// shows, in the types that they are. It has more, some under names that Prometheus finds fault with.
var runtimeFamilies = []struct {
	name string
	typ  metricType
	help string
}{
	{"go_gc_cpu_seconds_total", counter, "CPU time of the garbage collector."},
	{"go_gc_duration_seconds", summary, "Pauses of the garbage collector."},
	{"go_gomaxprocs", gauge, "Threads that run Go code at once."},
	{"go_goroutines", gauge, "Goroutines."},
	{"go_info", gauge, "The version of Go in its label; always 1."},
	{"go_memstats_alloc_bytes", gauge, "Bytes of heap objects."},
	{"go_memstats_alloc_bytes_total", counter, "Bytes of heap objects ever allocated."},
	{"go_memstats_frees_total", counter, "Heap objects ever freed."},
	{"go_memstats_heap_alloc_bytes", gauge, "Bytes of heap objects, unreachable ones that were not swept included."},
	{"go_memstats_heap_idle_bytes", gauge, "Bytes of heap spans that hold nothing."},
	{"go_memstats_heap_inuse_bytes", gauge, "Bytes of heap spans that hold something."},
	{"go_memstats_heap_objects", gauge, "Heap objects."},
	{"go_memstats_heap_released_bytes", gauge, "Bytes of heap given back to the kernel."},
	{"go_memstats_heap_sys_bytes", gauge, "Bytes of heap taken from the kernel."},
	{"go_memstats_mallocs_total", counter, "Heap objects ever allocated."},
	{"go_memstats_next_gc_bytes", gauge, "Heap size at which the garbage collector runs next."},
	{"go_memstats_stack_inuse_bytes", gauge, "Bytes of stack spans."},
	{"go_memstats_sys_bytes", gauge, "Bytes taken from the kernel."},
	{"go_mutex_wait_seconds_total", counter, "Time that goroutines waited for mutexes."},
	{"go_threads", gauge, "Threads that the Go runtime made."},
	{"process_cpu_seconds_total", counter, "CPU time of the process, user and system."},
	{"process_cpu_seconds_system_total", counter, "CPU time of the process in the kernel."},
	{"process_cpu_seconds_user_total", counter, "CPU time of the process outside the kernel."},
	{"process_major_pagefaults_total", counter, "Page faults that had to read from a disk."},
	{"process_minor_pagefaults_total", counter, "Page faults that did not."},
	{"process_num_threads", gauge, "Threads of the process."},
	{"process_resident_memory_bytes", gauge, "Memory of the process that is in RAM."},
	{"process_start_time_seconds", gauge, "When the running program was loaded, in Unix time."},
	{"process_virtual_memory_bytes", gauge, "Address space of the process."},
}

// runtime writes runtimeFamilies.
func (e *exposition) runtime() {
	var all bytes.Buffer
	metrics.WriteProcessMetrics(&all)
	samples := map[string][]byte{}
	for {
		line, err := all.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		name := line[:bytes.IndexAny(line, "{ ")]
		name = bytes.TrimSuffix(bytes.TrimSuffix(name, []byte("_sum")), []byte("_count"))
		samples[string(name)] = append(samples[string(name)], line...)
	}
	for _, f := range runtimeFamilies {
		if lines := samples[f.name]; lines != nil {
			e.begin(f.name, f.typ, f.help)
			e.buf = append(e.buf, lines...)
		}
	}
}
