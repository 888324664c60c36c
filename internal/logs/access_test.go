package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/internal/printable"
)

var entry = Entry{
	Start:     time.Date(2026, 9, 21, 8, 12, 33, 123_456_000, time.FixedZone("", 7200)),
	Client:    netip.MustParseAddrPort("127.0.0.1:40312"),
	Listener:  "web",
	Pool:      "app",
	Backend:   "w1",
	QueueTime: 0, ConnectTime: 1_123_456, SessionTime: 1250417 * time.Microsecond,
	BytesIn: 512, BytesOut: 4210,
	Termination: [2]byte{'-', '-'},
	Sessions:    3, ListenerActive: 3, PoolActive: 2, BackendActive: 1, Retries: 0,
}

func TestEntry_TextIsThatOfHAProxyAndOneFieldMore(t *testing.T) {
	refused := Entry{
		Start: entry.Start, Listener: "local", Pool: "app",
		QueueTime: -1, ConnectTime: -1, SessionTime: time.Millisecond,
		Termination: [2]byte{'S', 'C'}, Sessions: 1, ListenerActive: 1, Retries: 2,
	}
	v6 := entry
	v6.Client = netip.MustParseAddrPort("[2001:db8::1]:80")
	mapped := entry
	mapped.Client = netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")
	odd := entry
	odd.Backend = "unix:/run/a b\n1.sock"
	odd.Termination = [2]byte{}
	for _, tc := range []struct {
		e    Entry
		want string
	}{
		{entry, "127.0.0.1:40312 [21/Sep/2026:08:12:33.123] web app/w1 0/1/1250 4210 -- 3/3/2/1/0 0/0 512\n"},
		{refused, "unix:0 [21/Sep/2026:08:12:33.123] local app/<NOSRV> -1/-1/1 0 SC 1/1/0/0/2 0/0 0\n"},
		{v6, "[2001:db8::1]:80 [21/Sep/2026:08:12:33.123] web app/w1 0/1/1250 4210 -- 3/3/2/1/0 0/0 512\n"},
		{mapped, "192.0.2.1:80 [21/Sep/2026:08:12:33.123] web app/w1 0/1/1250 4210 -- 3/3/2/1/0 0/0 512\n"},
		{odd, "127.0.0.1:40312 [21/Sep/2026:08:12:33.123] web app/unix:/run/a_b_1.sock 0/1/1250 4210 -- 3/3/2/1/0 0/0 512\n"},
	} {
		if got := string(tc.e.appendText(nil)); got != tc.want {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
	}
}

func TestEntry_JSONHasTheSameFacts(t *testing.T) {
	want := `{"time":"2026-09-21T08:12:33.123456+02:00","client":"127.0.0.1:40312","listener":"web","pool":"app","backend":"w1",` +
		`"queue_seconds":0.000000,"connect_seconds":0.001123,"session_seconds":1.250417,"bytes_in":512,"bytes_out":4210,` +
		`"termination":"--","sessions":3,"listener_active":3,"pool_active":2,"backend_active":1,"retries":0}` + "\n"
	if got := string(entry.appendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	none := Entry{QueueTime: -1, ConnectTime: -1}
	got := string(none.appendJSON(nil))
	for _, part := range []string{`"client":"unix"`, `"backend":null`, `"queue_seconds":null`, `"connect_seconds":null`, `"termination":"--"`} {
		if !strings.Contains(got, part) {
			t.Errorf("got %s; want it to have %s", got, part)
		}
	}
}

func FuzzEntry(f *testing.F) {
	f.Add("web", "app", "w1", int64(5), uint64(7))
	f.Add(`a"b`, `a\b`, "a\tb", int64(0), uint64(0))
	f.Add("\u0085\u2028", "\u202eexe", "\u009b31m\x9b", int64(1), uint64(1))
	f.Add("", "a b\n", "unix:/run/\"x\"\\\xff", int64(-5), uint64(1<<63))
	f.Fuzz(func(t *testing.T, listener, pool, backend string, d int64, n uint64) {
		e := Entry{
			Start: time.Unix(d%(1<<32), d&0xffff), Listener: listener, Pool: pool, Backend: backend,
			QueueTime: time.Duration(d), ConnectTime: -1, SessionTime: time.Duration(d), BytesIn: n, BytesOut: n,
		}
		text := string(e.appendText(nil))
		if strings.Count(text, "\n") != 1 || len(strings.Fields(text)) != 10 {
			t.Errorf("text: got %q; want one line of 10 fields", text)
		}
		if line := strings.TrimSuffix(text, "\n"); printable.Text(line) != line {
			t.Errorf("text: got %q; want nothing in it that a terminal obeys", text)
		}
		line := e.appendJSON(nil)
		var back struct {
			Listener, Pool, Backend *string
			BytesOut                uint64 `json:"bytes_out"`
		}
		if err := json.Unmarshal(line, &back); err != nil || bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("JSON: got %q, %v; want one line of it", line, err)
		}
		if !bytes.Equal(printable.JSON(line), line) {
			t.Errorf("JSON: got %q; want nothing in it that a terminal obeys", line)
		}
		if listener != "" && *back.Listener != strings.ToValidUTF8(listener, "\ufffd") && !strings.ContainsRune(*back.Listener, '\ufffd') {
			t.Errorf("listener: got %q; want %q", *back.Listener, listener)
		}
		if back.BytesOut != n || (backend == "") != (back.Backend == nil) {
			t.Errorf("JSON: got %s; want the entry", line)
		}
	})
}

func TestAccessLog_ThatIsOffDoesNothing(t *testing.T) {
	a, err := OpenAccessLog(DefaultConfig())
	if a != nil || err != nil {
		t.Fatalf("OpenAccessLog: got %v, %v; want nil, nil", a, err)
	}
	a.Record(&entry)
	if a.Dropped() != 0 || a.Reopen() != nil {
		t.Errorf("log that is off: got drops or an error; want neither")
	}
	closeLog(t, a)
}

func TestAccessLog_CloseWritesWhatIsQueued(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Access = filepath.Join(t.TempDir(), "access.log")
	a, err := OpenAccessLog(cfg)
	if err != nil {
		t.Fatal(err)
	}
	const loops, each = 4, 1000
	var wg sync.WaitGroup
	for i := range loops {
		wg.Go(func() {
			for range each {
				e := entry
				e.Retries = i
				a.Record(&e)
			}
		})
	}
	wg.Wait()
	closeLog(t, a)
	lines := strings.Split(strings.TrimSuffix(readFile(t, cfg.Access), "\n"), "\n")
	if len(lines) != loops*each || a.Dropped() != 0 {
		t.Errorf("lines: got %d, %d dropped; want %d", len(lines), a.Dropped(), loops*each)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "127.0.0.1:40312 [") || !strings.HasSuffix(line, " 0/0 512") {
			t.Fatalf("line: got %q; want a whole one", line)
		}
	}
	a.Record(&entry)
	if a.Dropped() != 1 {
		t.Errorf("record after Close: got %d dropped; want 1", a.Dropped())
	}
}

// countingWriter counts writes and lines.
type countingWriter struct {
	writes, lines atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.writes.Add(1)
	w.lines.Add(int64(bytes.Count(p, []byte("\n"))))
	return len(p), nil
}

func TestAccessLog_GathersLinesForOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w countingWriter
		a := newAccessLog(&w, "text")
		go a.run()
		for range 100 {
			a.Record(&entry)
			time.Sleep(accessGather / 200)
		}
		if got := w.writes.Load(); got != 0 {
			t.Errorf("writes while lines gather: got %d; want none", got)
		}
		time.Sleep(accessGather)
		synctest.Wait()
		if writes, lines := w.writes.Load(), w.lines.Load(); writes != 1 || lines != 100 {
			t.Errorf("got %d writes of %d lines; want 1 of 100", writes, lines)
		}
		closeLog(t, a)
	})
}

func TestAccessLog_StuckOutputCostsLinesAndNoTime(t *testing.T) {
	w := newStuckWriter()
	a := newAccessLog(w, "text")
	a.gather = 0
	go a.run()
	a.Record(&entry)
	<-w.entered // the writer hangs with the first line; from here on, accessQueue fits
	for range accessQueue + 5 {
		a.Record(&entry)
	}
	if got := a.Dropped(); got != 5 {
		t.Errorf("dropped: got %d; want 5", got)
	}
	close(w.free)
	closeLog(t, a)
	if got := len(w.lines()); got != accessQueue+1 {
		t.Errorf("lines: got %d; want %d", got, accessQueue+1)
	}
}

func TestAccessLog_CloseGivesUpOnAStuckOutput(t *testing.T) {
	w := newStuckWriter()
	a := newAccessLog(w, "text")
	go a.run()
	a.Record(&entry)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: got %v; want context.Canceled", err)
	}
	close(w.free)
	<-a.done
}

// fullWriter is a disk without room.
type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestAccessLog_FailedWritesAreToldAndCounted(t *testing.T) {
	a := newAccessLog(fullWriter{}, "json")
	var told error
	a.OnError = func(err error) { told = err }
	go a.run()
	for range 3 {
		a.Record(&entry)
	}
	closeLog(t, a)
	if !errors.Is(told, io.ErrShortWrite) || a.Dropped() != 3 {
		t.Errorf("got error %v and %d dropped; want io.ErrShortWrite and 3", told, a.Dropped())
	}
}

func TestAccessLog_ReopenFollowsARotation(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Access = filepath.Join(t.TempDir(), "access.log")
	a, err := OpenAccessLog(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(cfg.Access, cfg.Access+".1"); err != nil {
		t.Fatal(err)
	}
	if err := a.Reopen(); err != nil {
		t.Fatal(err)
	}
	a.Record(&entry)
	closeLog(t, a)
	if old, now := readFile(t, cfg.Access+".1"), readFile(t, cfg.Access); old != "" || strings.Count(now, "\n") != 1 {
		t.Errorf("files: got %q and %q; want the line in the new one", old, now)
	}
}

func TestAccessLog_AllocatesNothing(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		a := newAccessLog(io.Discard, format)
		if n := testing.AllocsPerRun(10, func() {
			for range 200 {
				a.Record(&entry)
			}
			a.writeBatch()
		}); n != 0 {
			t.Errorf("%s: got %v allocations for 200 lines; want none", format, n)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, loops := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("loops=%d", loops), func(b *testing.B) {
			a := newAccessLog(io.Discard, "text")
			go a.run()
			b.ReportAllocs()
			var wg sync.WaitGroup
			for range loops {
				wg.Go(func() {
					e := entry
					for range b.N / loops {
						a.Record(&e)
					}
				})
			}
			wg.Wait()
			closeLog(b, a)
		})
	}
}

func BenchmarkEntry(b *testing.B) {
	for name, format := range map[string]func(*Entry, []byte) []byte{"text": (*Entry).appendText, "json": (*Entry).appendJSON} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, 1024)
			b.ReportAllocs()
			for b.Loop() {
				buf = format(&entry, buf[:0])
			}
		})
	}
}

// tearingWriter is a disk that fills up in the middle of a line, and then has room again.
type tearingWriter struct {
	bytes.Buffer
	room int // how much the next writes take before one fails; -1: everything
}

func (w *tearingWriter) Write(p []byte) (int, error) {
	if w.room < 0 || len(p) <= w.room {
		return w.Buffer.Write(p)
	}
	n, _ := w.Buffer.Write(p[:w.room])
	w.room = 0
	return n, io.ErrShortWrite
}

func TestAccessLog_ATornLineBecomesNoPartOfTheNext(t *testing.T) {
	w := &tearingWriter{room: 20}
	a := newAccessLog(w, "text")
	go a.run()
	record := func() {
		t.Helper()
		a.Record(&entry)
		if err := a.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	record() // is torn
	record() // finds no room at all
	if got := a.Dropped(); got != 2 {
		t.Errorf("dropped: got %d; want both", got)
	}
	w.room = -1
	record()
	record()
	closeLog(t, a)
	whole := string(entry.appendText(nil))
	if got, want := w.String(), whole[:20]+"\n"+whole+whole; got != want {
		t.Errorf("log: got\n%q\nwant\n%q", got, want)
	}
}

func TestOpen_EndsALineThatAnotherProcessHasTorn(t *testing.T) {
	for name, write := range map[string]func(path string) error{
		"event log": func(path string) error {
			cfg := DefaultConfig()
			cfg.Output = path
			l, err := New(cfg)
			if err == nil {
				l.Info("new")
				err = l.Close(t.Context())
			}
			return err
		},
		"access log": func(path string) error {
			cfg := DefaultConfig()
			cfg.Access = path
			a, err := OpenAccessLog(cfg)
			if err == nil {
				a.Record(&entry)
				err = a.Close(t.Context())
			}
			return err
		},
		"workers' log": func(path string) error {
			f, err := OpenFile(path, 0, 0)
			if err == nil {
				_, err = f.WriteLines([]byte("new\n"))
				f.Close()
			}
			return err
		},
	} {
		for before, want := range map[string]string{"": "", "whole\n": "whole\n", "torn": "torn\n"} {
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := write(path); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !strings.HasPrefix(string(got), want) || strings.Count(string(got), "\n") != strings.Count(want, "\n")+1 {
				t.Errorf("%s behind %q: got %q, %v; want %q and one line", name, before, got, err, want)
			}
		}
	}
}
