package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxLine is how much of a line is kept, in bytes.
	maxLine = 8 << 10
	// keptLines is how many of the last lines are kept for the status, keptBytes how much of each.
	keptLines = 50
	keptBytes = 1 << 10
	// readSize is how much is read at once, in bytes.
	readSize = 32 << 10
	// lineCost and byteCost are about what a line and a byte of it cost lb: an empty line is not free.
	lineCost = 2 * time.Microsecond
	byteCost = 2 * time.Nanosecond
	// freeRate is the part of its time that a worker's output may always cost, freeBurst how much at once;
	// what costs more waits for Hooks.Pace, and the worker in its write.
	freeRate  = 0.005
	freeBurst = 100 * time.Millisecond
	// longestPause is how long a worker is not read at most.
	longestPause = 250 * time.Millisecond
	// lastWords is how long the output of a worker that has ended is waited for, if something else holds it
	// open.
	lastWords = 200 * time.Millisecond
	// maxDrain is how much of it is read then, in bytes: more than a pipe holds.
	maxDrain = 1 << 20
)

// Line is a line that a worker wrote to its standard output or error, without the line break.
type Line struct {
	Time time.Time
	Pool string
	Slot int
	PID  int
	// Text may have any bytes. Cut says that it was longer than 8 KiB.
	Text string
	Cut  bool
}

// outputPipe makes the pipe that a worker writes to: what lb reads, and the worker's descriptor. The latter
// is open for reading too, so that a worker outlives an lb that is killed: its pipe still has a reader, and
// it gets no SIGPIPE.
func outputPipe() (out *os.File, in int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, -1, err
	}
	defer unix.Close(fds[1])
	// Opened anew it is another open file description: it blocks, as programs expect, and lb's end does not.
	in, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fds[1]), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fds[0])
		return nil, -1, fmt.Errorf("cannot open a pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "output"), in, nil
}

// reopenOutput returns the output of a worker that an lb before has started; nil if it cannot be had. What
// the worker calls its output now may be anything, a terminal that would become lb's by being opened: so it
// is looked at before.
func reopenOutput(pid int, inode uint64) *os.File {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/1", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if inode == 0 || pipeInode(fd) != inode {
		return nil
	}
	fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "output")
}

// pipeInode tells a pipe from others; 0 if fd is not a pipe. A FIFO with a name is not one.
func pipeInode(fd int) uint64 {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO || unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.PIPEFS_MAGIC {
		return 0
	}
	return st.Ino
}

// output reads what a worker writes, on a goroutine of its own, which may end and be followed by another one.
// Nothing that is read is dropped. A worker that writes without end is read more slowly, and waits in its
// write, as it would for a disk.
type output struct {
	pool  *Pool
	slot  int
	pid   int
	file  *os.File
	inode uint64
	done  chan struct{} // closed when all is read

	// Of the goroutine that reads; anybody's when there is none.
	text  []byte // the beginning of a line, at most maxLine
	cut   bool   // it was longer
	batch []Line // those of one read
	free  time.Duration
	freed time.Time // when free was reckoned

	mu      sync.Mutex
	tail    []string // the last lines
	crash   crash
	reading bool // a goroutine does
	last    bool // the worker has ended: what is there is all that comes
}

// newOutput makes the output of a worker; nothing is read yet.
func (p *Pool) newOutput(slot, pid int, f *os.File) *output {
	o := &output{pool: p, slot: slot, pid: pid, file: f, free: freeBurst, freed: time.Now(), done: make(chan struct{})}
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { o.inode = pipeInode(int(fd)) })
	}
	return o
}

// read reads until all is read, or ctx is done; then it may be called again.
func (o *output) read(ctx context.Context) {
	o.mu.Lock()
	over := o.last || o.ended()
	o.reading = !over
	watched := o.file.SetReadDeadline(time.Time{}) == nil // before finish may set another
	o.mu.Unlock()
	if over {
		return
	}
	stop := context.AfterFunc(ctx, func() { o.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, readSize)
	for {
		n, err := o.file.Read(buf)
		cost := o.take(buf[:n])
		if !watched {
			err = o.unwatched(ctx, err)
		}
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			o.end(err)
			return
		case !o.pause():
			o.drain(buf)
			return
		default:
			return
		}
		o.pace(ctx, cost)
	}
}

// unwatched does what a deadline does, for a pipe that has none, as epoll(7) had no place for it: err of a
// read is os.ErrDeadlineExceeded if nobody is to read on. It waits for a moment where there was nothing to
// read.
func (o *output) unwatched(ctx context.Context, err error) error {
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return err
	}
	o.mu.Lock()
	last := o.last
	o.mu.Unlock()
	if last || ctx.Err() != nil {
		return os.ErrDeadlineExceeded
	}
	if err != nil {
		select {
		case <-time.After(unwatchedLook):
		case <-ctx.Done():
		}
	}
	return nil
}

// pace waits for as long as what was read asks for, but not beyond the end of ctx.
func (o *output) pace(ctx context.Context, cost time.Duration) {
	now := time.Now()
	o.free = min(o.free+time.Duration(float64(now.Sub(o.freed))*freeRate), freeBurst) - cost
	o.freed = now
	if o.pool.Hooks.Pace == nil {
		return
	}
	wait := o.pool.Hooks.Pace(cost)
	if o.free >= 0 || wait <= 0 {
		return
	}
	o.free = max(o.free, -freeBurst)
	timer := time.NewTimer(min(wait, longestPause))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// pause notes that nobody reads any more; false if it was for the last time, and what is there is still to be
// read.
func (o *output) pause() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reading = o.last
	return !o.last
}

// finish reads the last words of a worker that has ended; it waits for a moment, as a process outside of its
// group may hold the pipe open for ever.
func (o *output) finish() {
	o.mu.Lock()
	o.last = true
	reading := o.reading
	o.mu.Unlock()
	switch {
	case o.ended():
	case reading:
		o.file.SetReadDeadline(time.Now().Add(lastWords))
		<-o.done
	default:
		o.drain(make([]byte, readSize))
	}
}

// ended reports whether all is read.
func (o *output) ended() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// drain reads what is there, and ends.
func (o *output) drain(buf []byte) {
	raw, err := o.file.SyscallConn()
	if err != nil {
		o.end(err)
		return
	}
	for range maxDrain / len(buf) { // whoever else holds the pipe may write for ever
		n := 0
		if e := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) }); e != nil || err != nil || n == 0 {
			break
		}
		o.take(buf[:n])
	}
	o.end(io.EOF)
}

// end ends the output: nothing comes after err.
func (o *output) end(err error) {
	if len(o.text) > 0 {
		o.add(string(o.text), o.cut)
	}
	if err != io.EOF {
		o.add(fmt.Sprintf("lb cannot read on: %v", err), false)
	}
	o.deliver()
	o.file.Close()
	close(o.done)
}

// take takes what was read, and returns what it cost.
func (o *output) take(data []byte) (cost time.Duration) {
	cost = time.Duration(len(data)) * byteCost
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		part := data
		if i >= 0 {
			part = data[:i]
		}
		room := maxLine - len(o.text)
		o.cut = o.cut || len(part) > room
		o.text = append(o.text, part[:min(len(part), room)]...)
		if i < 0 {
			break
		}
		o.add(string(o.text), o.cut)
		o.text, o.cut, data = o.text[:0], false, data[i+1:]
	}
	return cost + time.Duration(o.deliver())*lineCost
}

func (o *output) add(text string, cut bool) { o.batch = append(o.batch, Line{Text: text, Cut: cut}) }

// deliver passes the lines of the batch on, and returns how many there were.
func (o *output) deliver() int {
	lines := o.batch
	o.batch = o.batch[:0]
	if len(lines) == 0 {
		return 0
	}
	now := time.Now()
	for i := range lines {
		l := &lines[i]
		l.Time, l.Pool, l.Slot, l.PID = now, o.pool.Name, o.slot, o.pid
	}
	o.pool.lines.Add(uint64(len(lines)))
	o.lookForCrash(lines, now)
	for _, l := range lines[max(0, len(lines)-keptLines):] {
		o.keep(l.Text)
	}
	if o.pool.Hooks.Output != nil {
		o.pool.dropped.Add(o.pool.Hooks.Output(lines))
	}
	clear(lines) // the batch keeps no text
	return len(lines)
}

// keep keeps a line for last.
func (o *output) keep(text string) {
	if len(text) > keptBytes {
		text = text[:keptBytes]
		for len(text) > 0 && !utf8.ValidString(text[max(0, len(text)-utf8.UTFMax):]) && len(text) > keptBytes-utf8.UTFMax {
			text = text[:len(text)-1]
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.tail) == keptLines {
		copy(o.tail, o.tail[1:])
		o.tail = o.tail[:keptLines-1]
	}
	o.tail = append(o.tail, strings.Clone(text))
}

// lookForCrash looks for the first line of a crash.
func (o *output) lookForCrash(lines []Line, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range lines {
		o.crash.see(lines[i].Text, now)
	}
}

// fault returns the first line of the last crash that it wrote of.
func (o *output) fault() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.crash.line
}

// lines returns a copy of the last lines, oldest first.
func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.tail...)
}
