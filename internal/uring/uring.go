// Package uring does a batch of receives and sends in one system call, through an io_uring(7).
//
// A Ring belongs to one goroutine at a time and starts none. Nothing is ever in flight between two calls of
// Do: every operation is non-blocking, and Do returns when all of them are done. So a ring can be given up
// at any moment, as an exec does, and no buffer is the kernel's beyond Do.
package uring

// Hot path. BenchmarkRing_Do holds its cost and that it allocates nothing. The memory that the kernel shares
// is mapped, not of Go's heap; heads and tails go through sync/atomic.

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrUnavailable means that the kernel, or a sandbox, does not let this process use io_uring.
var ErrUnavailable = errors.New("io_uring is not available")

// The numbers of io_uring(7), include/uapi/linux/io_uring.h.
const (
	opSend = 26
	opRecv = 27

	enterGetEvents = 1 << 0

	setupClamp     = 1 << 4
	setupSubmitAll = 1 << 7 // Linux 5.18: an operation that fails at once does not end the batch

	offsetSQ   = 0
	offsetSQEs = 0x10000000

	featureSingleMap = 1 << 0 // Linux 5.4: both queues are in one mapping
)

// maxTries is how many calls a batch may take. It takes one, and more where the kernel has no memory for it
// at the moment.
const maxTries = 1000

type setupParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wqFD uint32
	_                                                      [3]uint32
	sq                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

type submission struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	len       uint32
	msgFlags  uint32
	user      uint64
	_         [3]uint64
}

type completion struct {
	user  uint64
	res   int32
	flags uint32
}

// Ring is one io_uring.
type Ring struct {
	fd          int
	queues      []byte // mapped
	entries     []byte // mapped
	sqTail      *uint32
	cqHead      *uint32
	cqTail      *uint32
	sqMask      uint32
	cqMask      uint32
	array       []uint32
	submissions []submission
	completions []completion
	tail        uint32 // of the submissions that are filled in
	queued      int    // operations since the last Do

	enter func(fd, submit, flags uintptr) (n uintptr, errno unix.Errno) // enter, or a test's
}

// New makes a ring for at most n operations a batch, 1..4096. The error wraps ErrUnavailable where the
// kernel or a sandbox refuses. The caller must Close it.
func New(n int) (*Ring, error) {
	p := &setupParams{flags: setupSubmitAll | setupClamp}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("%w: io_uring_setup: %w", ErrUnavailable, errno)
	}
	r := &Ring{fd: int(fd), enter: enter}
	if p.features&featureSingleMap == 0 || int(p.sqEntries) < n {
		r.Close()
		return nil, fmt.Errorf("%w: the kernel's is too old", ErrUnavailable)
	}
	size := max(int(p.sq.array)+int(p.sqEntries)*4, int(p.cq.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(completion{})))
	var err error
	if r.queues, err = mapRing(r.fd, offsetSQ, size); err == nil {
		r.entries, err = mapRing(r.fd, offsetSQEs, int(p.sqEntries)*int(unsafe.Sizeof(submission{})))
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("%w: mmap: %w", ErrUnavailable, err)
	}
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.queues[offset])) }
	r.sqTail, r.sqMask = at(p.sq.tail), p.sqEntries-1
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), p.cqEntries-1
	r.array = unsafe.Slice(at(p.sq.array), p.sqEntries)
	r.submissions = unsafe.Slice((*submission)(unsafe.Pointer(&r.entries[0])), p.sqEntries)
	r.completions = unsafe.Slice((*completion)(unsafe.Pointer(&r.queues[p.cq.cqes])), p.cqEntries)
	for i := range r.array { // the slots are used in their order
		r.array[i] = uint32(i)
	}
	r.tail = atomic.LoadUint32(r.sqTail)
	return r, nil
}

func mapRing(fd int, offset int64, size int) ([]byte, error) {
	return unix.Mmap(fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}

// Close gives the ring back to the kernel. Do must not run.
func (r *Ring) Close() {
	if r.queues != nil {
		_ = unix.Munmap(r.queues)
	}
	if r.entries != nil {
		_ = unix.Munmap(r.entries)
	}
	_ = unix.Close(r.fd)
}

// Room returns how many operations more the batch takes.
func (r *Ring) Room() int { return len(r.submissions) - r.queued }

// Recv adds a receive to the batch, as recv(2) with MSG_DONTWAIT. buf must not be of Go's heap, and is the
// kernel's until Do has returned; its result comes with id.
func (r *Ring) Recv(fd int32, buf []byte, id int) {
	r.add(opRecv, fd, buf, unix.MSG_DONTWAIT, id)
}

// Send is the same for a send, as send(2) with MSG_DONTWAIT, MSG_NOSIGNAL and flags, which is 0 or MSG_MORE.
func (r *Ring) Send(fd int32, buf []byte, flags, id int) {
	r.add(opSend, fd, buf, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|uint32(flags), id)
}

func (r *Ring) add(op uint8, fd int32, buf []byte, flags uint32, id int) {
	if r.queued == len(r.submissions) {
		panic("BUG: uring: the batch is full")
	}
	r.submissions[r.tail&r.sqMask] = submission{
		op: op, fd: fd, addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))), len: uint32(len(buf)), msgFlags: flags, user: uint64(id),
	}
	r.tail++
	r.queued++
}

// Result is what became of one operation.
type Result struct {
	N     int32 // bytes, when Errno is 0
	Errno unix.Errno
}

// NotDone is the result of an operation that was not begun, and Lost of one that was begun and not seen to
// end: nobody knows what it has moved. Both come of a ring that the kernel refuses.
const (
	NotDone = unix.ECANCELED
	Lost    = unix.EIO
)

// Do has the operations of the batch done, in the order in which they were added, and stores each one's
// result at its id. errno is 0, or says why the kernel refuses the ring itself. Then some results are NotDone
// or Lost, and the ring and the buffers of its operations must not be used any more.
func (r *Ring) Do(results []Result) (errno unix.Errno) {
	for i := range uint32(r.queued) {
		results[r.nth(i).user] = Result{Errno: NotDone}
	}
	atomic.StoreUint32(r.sqTail, r.tail)
	left, running := r.queued, r.queued // not handed over yet; not done yet
	for tries := 1; running > 0; tries++ {
		flags := uintptr(0)
		if left == 0 { // never seen: an operation that is under way
			flags = enterGetEvents
		}
		n, e := r.enter(uintptr(r.fd), uintptr(left), flags)
		refused := false
		switch e {
		case 0:
			left -= int(n)
		case unix.EINTR, unix.EAGAIN, unix.EBUSY, unix.ENOMEM: // no memory for a request at the moment
			errno = e
		default:
			errno, refused = e, true
		}
		head := *r.cqHead
		for tail := atomic.LoadUint32(r.cqTail); head != tail; head++ {
			c := &r.completions[head&r.cqMask]
			if c.res < 0 {
				results[c.user] = Result{Errno: unix.Errno(-c.res)}
			} else {
				results[c.user] = Result{N: c.res}
			}
			running--
		}
		atomic.StoreUint32(r.cqHead, head)
		if running == 0 {
			break
		}
		if refused && running == left || tries == maxTries {
			return r.giveUp(results, left, errno)
		}
		if n == 0 {
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
	r.queued = 0
	return 0
}

// giveUp tells which operations were begun and not seen to end, where the last left were not handed over.
func (r *Ring) giveUp(results []Result, left int, errno unix.Errno) unix.Errno {
	for i := range uint32(r.queued - left) {
		if x := &results[r.nth(i).user]; x.Errno == NotDone {
			x.Errno = Lost
		}
	}
	if errno == 0 { // it took nothing, and gave no reason
		errno = unix.ETIME
	}
	return errno
}

// nth returns the i-th operation of the batch.
func (r *Ring) nth(i uint32) *submission {
	return &r.submissions[(r.tail-uint32(r.queued)+i)&r.sqMask]
}

// enter is io_uring_enter(2), as a raw call: it does not wait, as none of the operations does.
func enter(fd, submit, flags uintptr) (n uintptr, errno unix.Errno) {
	n, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, fd, submit, 0, flags, 0, 0)
	if errno != 0 {
		n = 0
	}
	return n, errno
}

// Buffers returns n buffers of size bytes each, outside of Go's heap, and how to give them back.
func Buffers(n, size int) (buffers [][]byte, free func(), err error) {
	all, err := unix.Mmap(-1, 0, n*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot map %d bytes for buffers: %w", n*size, err)
	}
	for i := range n {
		buffers = append(buffers, all[i*size:(i+1)*size:(i+1)*size])
	}
	return buffers, func() { _ = unix.Munmap(all) }, nil
}
