package load

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/clock"
	"github.com/273ebdf9/lb/internal/handoff"
)

// Worker says how the benchmark's own worker works.
type Worker struct {
	// Number is what it calls itself in its replies.
	Number int
	// Factor multiplies every service time; 0 is 1.
	Factor float64
	// Burn spends the service time as CPU time of its own, instead of sleeping.
	Burn bool
}

// drainTime is how long a worker that was asked to end waits for clients that keep their connections.
const drainTime = time.Second

// listenFD is the listening socket that a worker is given, as by systemd (sd_listen_fds(3)), or lb's channel
// if lb hands accepted sockets over (LB_HANDOFF_FD).
const listenFD = 3

// Serve serves the listening socket that is descriptor 3 until SIGTERM: a program with one thread and an
// event loop that does one request at a time, as those of Node or Python. While it works, by sleeping or by
// burning CPU, it neither reads nor accepts. Of the connections that wait it takes one a turn, after those
// that it has were served, so that another process on the same socket can take the next. It tells
// sd_notify(3) that it is ready, and sends heartbeats if asked to. Where lb hands accepted sockets over, it
// takes them in the same way, one a turn.
//
// At SIGTERM it closes its listener, as servers do, serves those whom it has accepted, and ends.
func Serve(w Worker) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot sleep exactly: %w", err)
	}
	s := &server{Worker: w, handedOff: os.Getenv(handoff.EnvFD) == strconv.Itoa(listenFD), conns: make(map[int]*serverConn)}
	if s.Factor == 0 {
		s.Factor = 1
	}
	if err := s.watch(); err != nil {
		return err
	}
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
		return fmt.Errorf("cannot tell that the worker is ready: %w", err)
	}
	if interval, err := systemd.SdWatchdogEnabled(false); err == nil && interval > 0 {
		go beat(interval / 2)
	}
	return s.loop()
}

// beat sends heartbeats for as long as the process runs.
func beat(every time.Duration) {
	for range time.Tick(every) {
		systemd.SdNotify(false, systemd.SdNotifyWatchdog) // who is not heard is found silent
	}
}

// server is a running worker.
type server struct {
	Worker
	handedOff   bool // listenFD is lb's channel
	epoll, wake int
	draining    bool
	drainEnd    time.Duration
	conns       map[int]*serverConn
}

// serverConn is what came over a connection and is not served yet.
type serverConn struct{ in []byte }

// watch begins to watch the listening socket, and for SIGTERM.
func (s *server) watch() (err error) {
	if err := unix.SetNonblock(listenFD, true); err != nil {
		return fmt.Errorf("cannot listen on descriptor %d: %w; start the worker with a listening socket as that descriptor", listenFD, err)
	}
	unix.CloseOnExec(listenFD)
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("cannot create epoll set: %w", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("cannot create eventfd: %w", err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}()
	return errors.Join(s.add(listenFD), s.add(s.wake))
}

func (s *server) add(fd int) error {
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("cannot watch descriptor %d: %w", fd, err)
	}
	return nil
}

func (s *server) loop() error {
	events := make([]unix.EpollEvent, 64)
	for !s.done() {
		timeout := -1
		if s.draining {
			timeout = 50
		}
		n, err := unix.EpollWait(s.epoll, events, timeout)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("cannot wait for events: %w", err)
		}
		var accept, stop bool
		for _, e := range events[:max(0, n)] {
			switch fd := int(e.Fd); fd {
			case listenFD:
				accept = true
			case s.wake:
				stop = true
			default:
				s.read(fd)
			}
		}
		if accept && !s.draining {
			s.accept()
		}
		if stop {
			s.drain()
		}
	}
	return nil
}

// done says whether the worker has finished.
func (s *server) done() bool {
	return s.draining && (len(s.conns) == 0 || clock.Monotonic() > s.drainEnd)
}

func (s *server) drain() {
	var b [8]byte
	unix.Read(s.wake, b[:]) // it does not block
	if !s.draining {
		s.draining, s.drainEnd = true, clock.Monotonic()+drainTime
		unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, listenFD, nil)
		unix.Close(listenFD)
	}
}

func (s *server) accept() {
	fd, ok := s.take()
	if !ok {
		return
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // fails for a Unix socket, which needs none
	if s.add(fd) != nil {
		unix.Close(fd)
		return
	}
	s.conns[fd] = &serverConn{}
	s.read(fd) // most clients speak first
}

// take takes a connection if one waits.
func (s *server) take() (fd int, ok bool) {
	if s.handedOff {
		fd, open := takeHandedOff(listenFD)
		if !open { // lb is gone
			s.drain()
		}
		return fd, fd >= 0
	}
	fd, _, err := unix.Accept4(listenFD, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	return fd, err == nil // else another worker has taken it, or it is gone
}

func (s *server) close(fd int) {
	unix.Close(fd)
	delete(s.conns, fd)
}

// read takes what has come, and serves the requests that are complete.
func (s *server) read(fd int) {
	c := s.conns[fd]
	if c == nil {
		return // closed earlier in the same round
	}
	var b [4096]byte
	n, err := unix.Read(fd, b[:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if n <= 0 {
		s.close(fd)
		return
	}
	c.in = append(c.in, b[:n]...)
	for {
		head, rest, ok := bytes.Cut(c.in, []byte("\r\n\r\n"))
		if !ok {
			if len(c.in) > 64<<10 {
				s.close(fd)
			}
			return
		}
		c.in = rest
		if !s.serve(fd, head) {
			s.close(fd)
			return
		}
	}
}

// serve does one request, and says whether the connection goes on.
func (s *server) serve(fd int, head []byte) bool {
	begin := clock.Monotonic()
	if ns, err := strconv.ParseInt(header(head, serviceHeader), 10, 64); err == nil && ns > 0 {
		s.work(time.Duration(float64(ns) * s.Factor))
	}
	last := s.draining || header(head, "Connection") == "close"
	more := ""
	if last {
		more = "Connection: close\r\n"
	}
	reply := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n%s: %d %d %d %d\r\n%s\r\nok\n",
		workerHeader, s.Number, os.Getpid(), int64(begin), int64(clock.Monotonic()), more)
	n, err := unix.Write(fd, reply) // a socket takes so little at once, unless the client has left
	return err == nil && n == len(reply) && !last
}

// header finds a header by its exact name, which is how this package's client writes it.
func header(head []byte, name string) string {
	_, rest, ok := bytes.Cut(head, []byte("\r\n"+name+": "))
	if !ok {
		return ""
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return string(value)
}

// work spends a service time.
func (s *server) work(d time.Duration) {
	if s.Burn {
		for end := threadCPU() + d; threadCPU() < end; {
		}
		return
	}
	ts := unix.NsecToTimespec(int64(clock.Monotonic() + d))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
	}
}

// threadCPU is the CPU time of this thread.
func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic("BUG: cannot read CLOCK_THREAD_CPUTIME_ID: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// Socket makes a listening socket for workers: reuse lets others listen on the same address, each with a
// queue of its own (SO_REUSEPORT in socket(7)). A path is bound anew, whatever was there. The caller closes
// the file.
func Socket(address string, reuse bool) (*os.File, error) {
	fd, err := socket(address, reuse)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", address, err)
	}
	return os.NewFile(uintptr(fd), address), nil
}

func socket(address string, reuse bool) (int, error) {
	family, addr := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: path(address)})
	if network(address) == "tcp" {
		tcp, err := net.ResolveTCPAddr("tcp4", address)
		if err != nil {
			return -1, err
		}
		family, addr = unix.AF_INET, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := bind(fd, family, addr, reuse); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bind(fd, family int, addr unix.Sockaddr, reuse bool) error {
	if family == unix.AF_UNIX {
		// A new socket takes the path over in one step: there is no moment without one.
		name := addr.(*unix.SockaddrUnix).Name
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name + ".new"}); err != nil {
			return err
		}
		if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
			return err
		}
		return os.Rename(name+".new", name)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if reuse {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, addr); err != nil {
		return err
	}
	return unix.Listen(fd, unix.SOMAXCONN)
}
