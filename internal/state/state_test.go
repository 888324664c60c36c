package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// example has something of everything.
func example() Changes {
	return Changes{
		Backends: []Backend{
			{Pool: "app", Name: "w1", Address: "unix:/run/w1.sock", Weight: Int{true, 100, 50}, MaxConns: Int{true, 0, 30}, Admin: "drain"},
			{Pool: "app", Name: "w9", Address: "127.0.0.1:80", Added: true, Own: Own{100, 5, true}},
			{Pool: "api", Name: "unix:@x", Address: "unix:@x", Removed: true, Own: Own{Weight: 1000}},
		},
		Splits:    []Split{{Listener: "web", Weights: map[string]Int{"blue": {true, 90, 10}, "green": {true, 10, 90}}}},
		Listeners: []Listener{{Name: "web", MaxConns: Int{true, 0, 100}}},
		Workers:   []Workers{{Pool: "app", Count: Int{true, 0, 4}, Stopped: []int{1, 3}}, {Pool: "api", Stopped: []int{0}}},
	}
}

func TestChanges_ReadBackAsWritten(t *testing.T) {
	for _, want := range []Changes{{}, example()} {
		got, err := Unmarshal(want.Marshal())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestChanges_CloneSharesNothing(t *testing.T) {
	a := example()
	b := a.Clone()
	b.Backend("app", "w1").Weight.Value = 1
	b.Split("web").Weights["blue"] = Int{}
	b.Listener("web").MaxConns.Value = 1
	if want := example(); !reflect.DeepEqual(a, want) {
		t.Errorf("the original: got %+v; want %+v", a, want)
	}
}

func TestUnmarshal_FindsEveryFlippedBitAndEveryCut(t *testing.T) {
	c := example()
	data := c.Marshal()
	for i := range data {
		for bit := range 8 {
			bad := bytes.Clone(data)
			bad[i] ^= 1 << bit
			if got, err := Unmarshal(bad); err == nil {
				t.Fatalf("bit %d of byte %d flipped: got %+v; want an error", bit, i, got)
			}
		}
		if _, err := Unmarshal(data[:i]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut after %d bytes: got %v; want ErrDamaged", i, err)
		}
	}
	if _, err := Unmarshal(append(bytes.Clone(data), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte more: got %v; want ErrDamaged", err)
	}
}

func TestUnmarshal_SkipsUnknownOptionalRecordsAndRefusesOthers(t *testing.T) {
	w := NewWriter(PurposeChanges)
	w.Record(77|Optional, []byte("from the future"))
	var e Encoder
	e.String("web")
	e.number(Int{true, 0, 9})
	e.String("a field from the future")
	w.Record(kindListener, e.Bytes())
	got, err := Unmarshal(w.Bytes())
	if want := (Listener{Name: "web", MaxConns: Int{true, 0, 9}}); err != nil || len(got.Listeners) != 1 || got.Listeners[0] != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	w = NewWriter(PurposeChanges)
	w.Record(77, nil)
	if _, err := Unmarshal(w.Bytes()); !errors.Is(err, ErrNewer) {
		t.Errorf("an unknown record: got %v; want ErrNewer", err)
	}
}

func TestDecoder_TakesWhatIsMissingForZero(t *testing.T) {
	var e Encoder
	e.String("app")
	b := readBackend(Record{Payload: e.Bytes()}.Decoder())
	if b != (Backend{Pool: "app"}) {
		t.Errorf("got %+v; want the pool alone", b)
	}
}

func TestDecoder_StopsAtTheFirstFault(t *testing.T) {
	for name, payload := range map[string][]byte{
		"long string":  {5, 'a'},
		"endless uint": bytes.Repeat([]byte{0xff}, 11),
		"huge string":  binary.AppendUvarint(nil, 1<<63),
	} {
		d := Record{Payload: payload}.Decoder()
		if s := d.String(); s != "" || !errors.Is(d.Err(), ErrDamaged) || d.Uint() != 0 || d.More() {
			t.Errorf("%s: got %q, %v; want ErrDamaged and nothing after it", name, s, d.Err())
		}
	}
	if d := (Record{Payload: []byte{2}}).Decoder(); d.Bool() || !errors.Is(d.Err(), ErrDamaged) {
		t.Errorf("bool of 2: got %v; want ErrDamaged", d.Err())
	}
	var e Encoder
	e.Int(1 << 40)
	if d := (Record{Payload: e.Bytes()}).Decoder(); d.int() != 0 || !errors.Is(d.Err(), ErrDamaged) {
		t.Errorf("int of 2^40: got %v; want ErrDamaged", d.Err())
	}
}

func TestRead_TellsVersionPurposeAndSizeApart(t *testing.T) {
	data := NewWriter(PurposeChanges).Bytes()
	if _, err := Read(data, PurposeSnapshot); !errors.Is(err, ErrPurpose) {
		t.Errorf("another purpose: got %v; want ErrPurpose", err)
	}
	newer := bytes.Clone(data)
	newer[len(magic)+1] = 2
	if _, err := Read(newer, PurposeChanges); !errors.Is(err, ErrNewer) {
		t.Errorf("another version: got %v; want ErrNewer", err)
	}
	if _, err := ReadLimited(data, PurposeChanges, len(data)-1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("above the limit: got %v; want ErrTooLarge", err)
	}
	if _, err := Read([]byte("hello, world, this is no state"), PurposeChanges); !errors.Is(err, ErrDamaged) {
		t.Errorf("something else: got %v; want ErrDamaged", err)
	}
}

func TestSetAside_LosesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	now := time.Date(2026, 9, 21, 8, 0, 0, 0, time.UTC)
	for i := range 3 {
		if err := os.WriteFile(path, []byte{byte('a' + i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		name, err := SetAside(path, now)
		if err != nil || !strings.HasPrefix(name, path+".damaged-20260921T080000Z") {
			t.Fatalf("SetAside: got %q, %v; want a name beside it", name, err)
		}
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 3 {
		t.Errorf("files: got %q; want three", left)
	}
}

func TestFile_LeavesAloneWhatIsNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := errors.Join(os.Mkdir(dir, 0o700), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, fifo} {
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		_, read := ReadFile(path)
		_, aside := SetAside(path, time.Now())
		for what, err := range map[string]error{"ReadFile": read, "SetAside": aside, "WriteFile": WriteFile(path, []byte("new"))} {
			if !errors.Is(err, ErrNotRegular) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s of %s: got %v; want ErrNotRegular with the path", what, path, err)
			}
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s afterwards: got %v, %v; want it as it was", path, after, err)
		}
	}
}

func TestWriteFile_LeavesTheOldOneWhenItCannotWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := WriteFile(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+newSuffix, 0o700); err != nil { // in the way
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("new")); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("WriteFile: got %v; want an error with the path", err)
	}
	if got, err := ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("got %q, %v; want the old one", got, err)
	}
	if _, err := ReadFile(dir); err == nil {
		t.Error("ReadFile of a directory: got no error; want one")
	}
	if _, err := ReadFile(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ReadFile of nothing: got %v; want os.ErrNotExist", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	c := example()
	f.Add(c.Marshal())
	f.Add(NewWriter(PurposeChanges).Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		// With the checksum put right, so that the fuzzer comes past it.
		for _, data := range [][]byte{data, sealed(data)} {
			c, err := Unmarshal(data)
			if err != nil {
				known := false
				for _, want := range []error{ErrDamaged, ErrNewer, ErrPurpose, ErrTooLarge} {
					known = known || errors.Is(err, want)
				}
				if !known {
					t.Fatalf("got %v; want one of the package's errors", err)
				}
				continue
			}
			again, err := Unmarshal(c.Marshal())
			if err != nil || !reflect.DeepEqual(again, c) {
				t.Fatalf("read, written and read: got %+v, %v; want %+v", again, err, c)
			}
		}
	})
}

// sealed is data with a checksum that fits.
func sealed(data []byte) []byte {
	if len(data) < 4 {
		return data
	}
	body := bytes.Clone(data[:len(data)-4])
	return binary.BigEndian.AppendUint32(body, crc32.Checksum(body, castagnoli))
}
