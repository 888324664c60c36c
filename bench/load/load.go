// Package load is the load of the benchmark: requests at given moments with given service times, the client
// that sends them and says what became of each, and the worker that serves them, one at a time.
//
// A [Plan] holds everything that chance decides, made of one seed: when each request begins, how long it
// keeps a worker, and over which connection it goes. [Run] carries a plan out. In an open loop a request
// begins when the plan says, whether or not earlier ones were answered, and its latency counts from that
// moment, even if it could only be sent later: a server that stalls cannot hide behind a client that waits
// for it (coordinated omission, Gil Tene, "How NOT to Measure Latency"). In a closed loop each client sends
// its next request when the last one was answered.
//
// The client measures itself: [Result.Lag] is how much later than it could have it sent each request, and
// [Result.Behind] says so when that spoils the figures. [Check] holds it against a server whose latency is
// known.
//
// Requests are HTTP/1.1. The header Service-Time tells the worker how long to work, and the worker's reply
// carries the header Worker with who it is and when it worked. A server that knows neither can be loaded all
// the same.
//
// Ownership: Run starts goroutines and waits for all of them. [Serve] is the whole of a worker process.
package load

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm is a timer of the kernel (timerfd_create(2)) that a goroutine waits for as for a connection. The
// runtime's own timers are up to 1 ms late, because it waits in epoll_wait(2), which counts in milliseconds;
// and a goroutine that sleeps in nanosleep(2) keeps its processor from the others for a while.
type alarm struct{ file *os.File }

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create timer: %w", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timer")}, nil
}

// until sleeps until a moment of now; a close of the alarm ends it at once, for good.
func (a *alarm) until(at time.Duration) error {
	conn, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(1, int64(at)))}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	var expired [8]byte
	_, err = a.file.Read(expired[:])
	return err
}

func (a *alarm) close() { a.file.Close() }
