package proxy

// Hot path of large transfers. BenchmarkRelay/splice holds its cost.

import (
	"golang.org/x/sys/unix"
)

const (
	// pipeSize is what a pooled pipe holds. pipe(7): the sum over a user without CAP_SYS_RESOURCE is limited
	// by fs.pipe-user-pages-soft (64 MiB), beyond which new pipes hold 8 KiB.
	pipeSize = 256 << 10
	// maxIdlePipes are kept by a loop for the next transfer.
	maxIdlePipes = 16
	// maxPipes are open in a loop at once; a direction that gets none copies.
	maxPipes = 128
)

// pipe is a kernel buffer between two sockets.
type pipe struct {
	r, w int32
	size int
}

// pipePool lends pipes to the directions of one loop.
type pipePool struct {
	size int // of a new pipe
	idle []*pipe
	open int
}

// get lends an empty pipe; nil when the limit is reached or the kernel gives none.
func (p *pipePool) get(stats *Stats) *pipe {
	if n := len(p.idle); n > 0 {
		x := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return x
	}
	if p.open >= maxPipes {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	x := &pipe{r: int32(fds[0]), w: int32(fds[1])}
	size, err := unix.FcntlInt(uintptr(x.w), unix.F_SETPIPE_SZ, p.size)
	if err != nil { // above the user's limit: take what it has
		size, err = unix.FcntlInt(uintptr(x.w), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			size = 4096
		}
	}
	x.size = size
	p.open++
	stats.Pipes.Add(1)
	return x
}

// put takes an empty pipe back.
func (p *pipePool) put(x *pipe, stats *Stats) {
	if len(p.idle) < maxIdlePipes {
		p.idle = append(p.idle, x)
		return
	}
	p.discard(x, stats)
}

// discard closes a pipe, with what is in it.
func (p *pipePool) discard(x *pipe, stats *Stats) {
	closeFD(x.r)
	closeFD(x.w)
	p.open--
	stats.Pipes.Add(-1)
}

// close closes the idle pipes.
func (p *pipePool) close(stats *Stats) {
	for _, x := range p.idle {
		p.discard(x, stats)
	}
	p.idle = nil
}
