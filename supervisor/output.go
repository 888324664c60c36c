package supervisor

import (
	"bytes"
	"context"
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

// adoptOutput is the output of a worker that an lb before has started; nil if it cannot be had.
func adoptOutput(pid int, inode uint64) *os.File {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/1", pid), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	if pipeInode(fd) != inode || inode == 0 {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "output")
}

// pipeInode tells a pipe from others; 0 if fd is none.
func pipeInode(fd int) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return 0
	}
	return st.Ino
}

// output reads what a worker writes, on a goroutine of its own. It is always read: a worker never waits for long.
type output struct {
	pool  *Pool
	slot  int
	pid   int
	file  *os.File
	inode uint64
	done  chan struct{} // closed when all is read

	tokens  float64 // of lines that may pass
	filled  time.Time
	dropped uint64 // since the last line that passed

	mu   sync.Mutex
	tail []string // the last lines
}

// readOutput starts to read f.
func (p *Pool) readOutput(slot, pid int, f *os.File) *output {
	o := &output{pool: p, slot: slot, pid: pid, file: f, tokens: lineBurst, filled: time.Now(), done: make(chan struct{})}
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { o.inode = pipeInode(int(fd)) })
	}
	p.running.Go(func() {
		defer close(o.done)
		stop := context.AfterFunc(p.over, func() { f.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		o.read()
	})
	return o
}

// finish waits for the last words of a worker that has ended, for a moment: a process outside of its group may hold the
// pipe open for ever.
func (o *output) finish() {
	o.file.SetReadDeadline(time.Now().Add(lastWords))
	<-o.done
}

func (o *output) read() {
	defer o.file.Close()
	buf := make([]byte, 64<<10)
	var line []byte // its beginning, at most maxLine and a bit
	cut := false
	for {
		n, err := o.file.Read(buf)
		data := buf[:n]
		flood := false
		for len(data) > 0 {
			i := bytes.IndexByte(data, '\n')
			part := data
			if i >= 0 {
				part = data[:i]
			}
			room := maxLine - len(line)
			cut = cut || len(part) > room
			line = append(line, part[:min(len(part), room)]...)
			if i < 0 {
				flood = flood || cut
				break
			}
			flood = o.line(line, cut) || flood
			line, cut, data = line[:0], false, data[i+1:]
		}
		if err != nil {
			if len(line) > 0 {
				o.line(line, cut)
			}
			if o.dropped > 0 {
				o.pass("…", false)
			}
			if err != io.EOF && !os.IsTimeout(err) {
				o.pass(fmt.Sprintf("lb cannot read on: %v", err), false)
			}
			return
		}
		if flood {
			time.Sleep(floodPause)
		}
	}
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

// last is a copy of the last lines, oldest first.
func (o *output) last() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.tail...)
}
