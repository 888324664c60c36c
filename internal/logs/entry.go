package logs

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/273ebdf9/lb/internal/printable"
)

// Entry is what the access log says of a session. It is a plain value that AccessLog.Record copies; the
// strings must not change.
type Entry struct {
	// Start is when the client was accepted.
	Start time.Time
	// Client is the client's address; the zero value for one on a Unix socket.
	Client netip.AddrPort
	// Listener and Pool are names. Backend is the last one tried; empty when there was none.
	Listener, Pool, Backend string
	// QueueTime is the wait for a slot, ConnectTime the time until the backend connection was established;
	// negative if it did not come to that. SessionTime is from accept to the end.
	QueueTime, ConnectTime, SessionTime time.Duration
	// BytesIn are from the client, BytesOut to it.
	BytesIn, BytesOut uint64
	// Termination is who or what ended the session, and in which phase; "--" is the normal end, as is a zero
	// value.
	Termination [2]byte
	// Sessions, ListenerActive, PoolActive and BackendActive are how many there were at the end, this one
	// included.
	Sessions, ListenerActive, PoolActive, BackendActive int64
	// Retries is how many backends were tried in vain.
	Retries int
}

// appendText appends the line described in the package's documentation. It allocates nothing
// (BenchmarkEntry).
func (e *Entry) appendText(b []byte) []byte {
	if e.Client.IsValid() {
		b = e.client().AppendTo(b)
	} else {
		b = append(b, "unix:0"...)
	}
	b = append(b, " ["...)
	b = e.Start.AppendFormat(b, "02/Jan/2006:15:04:05.000")
	b = append(b, "] "...)
	b = appendWord(b, e.Listener, "-")
	b = append(b, ' ')
	b = appendWord(b, e.Pool, "-")
	b = append(b, '/')
	b = appendWord(b, e.Backend, "<NOSRV>")
	b = append(b, ' ')
	b = appendMilliseconds(b, e.QueueTime)
	b = append(b, '/')
	b = appendMilliseconds(b, e.ConnectTime)
	b = append(b, '/')
	b = appendMilliseconds(b, e.SessionTime)
	b = append(b, ' ')
	b = strconv.AppendUint(b, e.BytesOut, 10)
	b = append(b, ' ')
	b = appendTermination(b, e.Termination)
	for i, n := range [...]int64{e.Sessions, e.ListenerActive, e.PoolActive, e.BackendActive, int64(e.Retries)} {
		separator := byte('/')
		if i == 0 {
			separator = ' '
		}
		b = strconv.AppendInt(append(b, separator), n, 10)
	}
	b = append(b, " 0/0 "...)
	b = strconv.AppendUint(b, e.BytesIn, 10)
	return append(b, '\n')
}

// client is Client with an IPv4-mapped address as IPv4.
func (e *Entry) client() netip.AddrPort {
	return netip.AddrPortFrom(e.Client.Addr().Unmap(), e.Client.Port())
}

// appendWord appends s so that it is one word of its line, or absent if s is empty: a blank becomes "_", and
// what is not graphic an escape.
func appendWord(b []byte, s, absent string) []byte {
	if s == "" {
		return append(b, absent...)
	}
	word := true
	for i := range len(s) {
		word = word && s[i] > ' ' && s[i] < 0x7f
	}
	if word {
		return append(b, s...)
	}
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if unicode.IsSpace(r) {
			b = append(b, '_')
		} else {
			b = printable.Append(b, s[:n])
		}
		s = s[n:]
	}
	return b
}

func appendTermination(b []byte, t [2]byte) []byte {
	if t == [2]byte{} {
		t = [2]byte{'-', '-'}
	}
	return append(b, t[:]...)
}

func appendMilliseconds(b []byte, d time.Duration) []byte {
	if d < 0 {
		return append(b, "-1"...)
	}
	return strconv.AppendInt(b, d.Milliseconds(), 10)
}

// appendJSON appends the object described in the package's documentation. It allocates nothing for plain
// names (BenchmarkEntry).
func (e *Entry) appendJSON(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = e.Start.AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, `","client":"`...)
	if e.Client.IsValid() {
		b = e.client().AppendTo(b)
	} else {
		b = append(b, "unix"...)
	}
	b = append(b, `","listener":`...)
	b = appendName(b, e.Listener)
	b = append(b, `,"pool":`...)
	b = appendName(b, e.Pool)
	b = append(b, `,"backend":`...)
	b = appendName(b, e.Backend)
	b = append(b, `,"queue_seconds":`...)
	b = appendSeconds(b, e.QueueTime)
	b = append(b, `,"connect_seconds":`...)
	b = appendSeconds(b, e.ConnectTime)
	b = append(b, `,"session_seconds":`...)
	b = appendSeconds(b, e.SessionTime)
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendUint(b, e.BytesIn, 10)
	b = append(b, `,"bytes_out":`...)
	b = strconv.AppendUint(b, e.BytesOut, 10)
	b = append(b, `,"termination":"`...)
	b = appendTermination(b, e.Termination)
	b = append(b, `","sessions":`...)
	b = strconv.AppendInt(b, e.Sessions, 10)
	b = append(b, `,"listener_active":`...)
	b = strconv.AppendInt(b, e.ListenerActive, 10)
	b = append(b, `,"pool_active":`...)
	b = strconv.AppendInt(b, e.PoolActive, 10)
	b = append(b, `,"backend_active":`...)
	b = strconv.AppendInt(b, e.BackendActive, 10)
	b = append(b, `,"retries":`...)
	b = strconv.AppendInt(b, int64(e.Retries), 10)
	return append(b, "}\n"...)
}

// appendName appends a JSON string, or null for an empty one.
func appendName(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			quoted, _ := json.Marshal(s) // a string cannot fail
			return append(b, printable.JSON(quoted)...)
		}
	}
	b = append(append(b, '"'), s...)
	return append(b, '"')
}

// appendSeconds appends a JSON number with six decimals, to the microsecond, or null for a negative d.
func appendSeconds(b []byte, d time.Duration) []byte {
	if d < 0 {
		return append(b, "null"...)
	}
	micros := d.Microseconds()
	b = strconv.AppendInt(b, micros/1e6, 10)
	b = append(b, '.')
	for digit, rest := int64(1e5), micros%1e6; digit > 0; digit /= 10 {
		b = append(b, byte('0'+rest/digit%10))
	}
	return b
}
