package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
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
	// lineRate is how many lines a second a worker may write, lineBurst how many at once; more are dropped and counted.
	lineRate  = 1000
	lineBurst = 5000
	// floodPause is how long a worker that writes more is not read, 64 KiB at a time: it waits in its write, instead of
	// having lb spin.
	floodPause = 5 * time.Millisecond
	// lastWords is how long the output of a worker that has ended is waited for, if something else holds it open.
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
	// Dropped is how many lines were dropped before this one, because they came too fast.
	Dropped uint64
}

// outputPipe makes the pipe that a worker writes to: what lb reads, and the worker's descriptor. The latter is open for
// reading too, so that a worker outlives an lb that is killed: its pipe still has a reader, and it gets no SIGPIPE.
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

// adoptOutput returns the output of a worker that an lb before has started; nil if it cannot be had. What the worker calls
// its output now may be anything, a terminal that would become lb's by being opened: so it is looked at before.
func adoptOutput(pid int, inode uint64) *os.File {
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

// output reads what a worker writes, on a goroutine of its own, which may end and be followed by another one. It is always
// read: a worker never waits for long.
type output struct {
	pool  *Pool
	slot  int
	pid   int
	file  *os.File
	inode uint64
	done  chan struct{} // closed when all is read

	// Of the goroutine that reads; anybody's when there is none.
	text    []byte  // the beginning of a line, at most maxLine
	cut     bool    // it was longer
	tokens  float64 // of lines that may pass
	filled  time.Time
	dropped uint64 // since the last line that passed

	mu      sync.Mutex
	tail    []string // the last lines
	reading bool     // a goroutine does
	last    bool     // the worker has ended: what is there is all that comes
}

// newOutput makes the output of a worker; nothing is read yet.
func (p *Pool) newOutput(slot, pid int, f *os.File) *output {
	o := &output{pool: p, slot: slot, pid: pid, file: f, tokens: lineBurst, filled: time.Now(), done: make(chan struct{})}
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
	o.file.SetReadDeadline(time.Time{}) // before finish may set another
	o.mu.Unlock()
	if over {
		return
	}
	stop := context.AfterFunc(ctx, func() { o.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := o.file.Read(buf)
		flood := o.take(buf[:n])
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
		if flood {
			time.Sleep(floodPause)
		}
	}
}

// pause notes that nobody reads any more; false if it was for the last time, and what is there is still to be read.
func (o *output) pause() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reading = o.last
	return !o.last
}

// finish reads the last words of a worker that has ended; it waits for a moment, as a process outside of its group may
// hold the pipe open for ever.
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
		o.drain(make([]byte, 64<<10))
	}
}

// ended says whether all is read.
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
		o.line(o.text, o.cut)
	}
	if o.dropped > 0 {
		o.pass("…", false)
	}
	if err != io.EOF {
		o.pass(fmt.Sprintf("lb cannot read on: %v", err), false)
	}
	o.file.Close()
	close(o.done)
}

// take takes what was read, and says whether it was more than may come at once.
func (o *output) take(data []byte) (flood bool) {
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
			return flood || o.cut
		}
		flood = o.line(o.text, o.cut) || flood
		o.text, o.cut, data = o.text[:0], false, data[i+1:]
	}
	return flood
}

// line takes a line, and says whether it was one too many.
func (o *output) line(text []byte, cut bool) (dropped bool) {
	o.pool.lines.Add(1)
	o.keep(text)
	now := time.Now()
	o.tokens = min(o.tokens+now.Sub(o.filled).Seconds()*lineRate, lineBurst)
	o.filled = now
	if o.tokens < 1 {
		o.dropped++
		o.pool.dropped.Add(1)
		return true
	}
	o.tokens--
	o.pass(string(text), cut)
	return false
}

func (o *output) pass(text string, cut bool) {
	l := Line{Time: time.Now(), Pool: o.pool.Name, Slot: o.slot, PID: o.pid, Text: text, Cut: cut, Dropped: o.dropped}
	o.dropped = 0
	if o.pool.Hooks.Output != nil {
		o.pool.Hooks.Output(l)
	}
}

// keep keeps a line for last.
func (o *output) keep(text []byte) {
	if len(text) > keptBytes {
		text = text[:keptBytes]
		for len(text) > 0 && !utf8.Valid(text[max(0, len(text)-utf8.UTFMax):]) && len(text) > keptBytes-utf8.UTFMax {
			text = text[:len(text)-1]
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.tail) == keptLines {
		copy(o.tail, o.tail[1:])
		o.tail = o.tail[:keptLines-1]
	}
	o.tail = append(o.tail, string(text))
}

// lines is a copy of the last lines, oldest first.
func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.tail...)
}
