// Package sdnotify speaks the protocol of sd_notify(3), both ways: the datagrams in which a service tells its
// supervisor that it is ready, alive or stopping.
//
// [Parse] and [Message.Format] are the text, [Receiver] is the supervisor's socket, [Sender] the service's. A
// Receiver has one goroutine, its Run; what it calls must not block. Nothing here believes a datagram: who
// sent it is the kernel's word (SCM_CREDENTIALS, unix(7)), a descriptor that comes along is closed at once,
// and what cannot be read is counted.
package sdnotify

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/273ebdf9/lb/internal/clock"
	"github.com/273ebdf9/lb/internal/printable"
)

const (
	// MaxSize is the longest datagram that is read, in bytes; systemd has the same limit. A longer one is
	// dropped.
	MaxSize = 4096
	// maxStatus is how much of a status is kept, in bytes.
	maxStatus = 256
)

// ErrGarbage: a datagram is no list of KEY=VALUE lines.
var ErrGarbage = errors.New("not a list of KEY=VALUE lines")

// Message is what one datagram says. The zero value says nothing. MAINPID, FDSTORE and unknown keys are left
// out.
type Message struct {
	Ready     bool // READY=1: it serves
	Reloading bool // RELOADING=1
	Stopping  bool // STOPPING=1: it takes nothing new and will end
	Watchdog  bool // WATCHDOG=1: it is alive
	Trigger   bool // WATCHDOG=trigger: it knows itself to be broken
	Barrier   bool // BARRIER=1: it waits until its descriptor is closed
	// Status is STATUS=, one printable line of at most 256 bytes; HasStatus tells an empty one from none.
	Status    string
	HasStatus bool
	// Errno is ERRNO=; 0 if there is none.
	Errno int
	// WatchdogInterval is WATCHDOG_USEC=; 0 if there is none.
	WatchdogInterval time.Duration
	// Extend is EXTEND_TIMEOUT_USEC=: how much longer what it does now may take; 0 if there is none.
	Extend time.Duration
	// Monotonic is MONOTONIC_USEC=, which goes with Reloading: CLOCK_MONOTONIC; 0 if there is none.
	Monotonic time.Duration
	// MainPID is MAINPID=: the service manager is to watch this process from now on; 0 if there is none. It
	// is only sent: Parse passes over it.
	MainPID int
}

// Parse reads a datagram. The error is ErrGarbage, and wraps what was wrong; the message says nothing then.
func Parse(data []byte) (Message, error) {
	if !utf8.Valid(data) {
		return Message{}, fmt.Errorf("%w: not UTF-8", ErrGarbage)
	}
	var m Message
	for line := range strings.SplitSeq(string(data), "\n") {
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsRune(line, 0) {
			return Message{}, fmt.Errorf("%w: %.40q", ErrGarbage, line)
		}
		if err := m.set(key, value); err != nil {
			return Message{}, err
		}
	}
	return m, nil
}

func (m *Message) set(key, value string) error {
	switch key {
	case "READY":
		m.Ready = m.Ready || value == "1"
	case "RELOADING":
		m.Reloading = m.Reloading || value == "1"
	case "STOPPING":
		m.Stopping = m.Stopping || value == "1"
	case "WATCHDOG":
		m.Watchdog = m.Watchdog || value == "1"
		m.Trigger = m.Trigger || value == "trigger"
	case "BARRIER":
		m.Barrier = m.Barrier || value == "1"
	case "STATUS":
		m.Status, m.HasStatus = status(value), true
	case "ERRNO":
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > 4095 {
			return fmt.Errorf("%w: ERRNO=%.40q", ErrGarbage, value)
		}
		m.Errno = n
	case "WATCHDOG_USEC", "MONOTONIC_USEC", "EXTEND_TIMEOUT_USEC":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 || n > int64(1<<62)/1000 {
			return fmt.Errorf("%w: %s=%.40q", ErrGarbage, key, value)
		}
		d := time.Duration(n) * time.Microsecond
		switch key {
		case "WATCHDOG_USEC":
			m.WatchdogInterval = d
		case "EXTEND_TIMEOUT_USEC":
			m.Extend = d
		default:
			m.Monotonic = d
		}
	}
	return nil
}

// status returns s with escapes for what a terminal would obey, cut to maxStatus bytes at a whole character.
func status(s string) string {
	s = printable.Text(s)
	if len(s) <= maxStatus {
		return s
	}
	end := maxStatus
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// Format is the datagram that Parse reads back. A status must be one line: anything after a line break is
// left out.
func (m Message) Format() []byte {
	var b strings.Builder
	flag := func(on bool, line string) {
		if on {
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	flag(m.MainPID != 0, "MAINPID="+strconv.Itoa(m.MainPID))
	flag(m.Ready, "READY=1")
	flag(m.Reloading, "RELOADING=1")
	flag(m.Monotonic != 0, "MONOTONIC_USEC="+strconv.FormatInt(m.Monotonic.Microseconds(), 10))
	flag(m.Stopping, "STOPPING=1")
	flag(m.Extend != 0, "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(m.Extend.Microseconds(), 10))
	status, _, _ := strings.Cut(m.Status, "\n")
	flag(m.HasStatus || status != "", "STATUS="+status)
	flag(m.Errno != 0, "ERRNO="+strconv.Itoa(m.Errno))
	flag(m.WatchdogInterval != 0, "WATCHDOG_USEC="+strconv.FormatInt(m.WatchdogInterval.Microseconds(), 10))
	flag(m.Watchdog, "WATCHDOG=1")
	flag(m.Trigger, "WATCHDOG=trigger")
	flag(m.Barrier, "BARRIER=1")
	return []byte(b.String())
}

// Reloading is the message that systemd's Type=notify-reload wants when a reload begins: with the clock, so
// that a late one is told from a new one. READY=1 ends the reload.
func Reloading() Message {
	return Message{Reloading: true, Monotonic: clock.Monotonic()}
}
