package state

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
)

// The form, version 1; every number is big endian.
//
//	header   magic "lbstate\n", version uint16, purpose uint16
//	records  kind uint16, length uint32, payload
//	end      kind 0, length 8, number of records before it uint32, CRC-32C of every byte before the CRC uint32
//
// Rules of change:
//
//   - A payload grows at its end only. A reader ignores what is there beyond what it knows, and takes what is missing for
//     zero: Decoder does both.
//   - A kind that a reader does not know is skipped if Optional is set in it, and else makes the state ErrNewer.
//   - The version changes when the form itself does, and another version is ErrNewer.
//   - A number of a kind is never used for something else.
const (
	magic      = "lbstate\n"
	version    = 1
	headerSize = len(magic) + 2 + 2
	frameSize  = 2 + 4
	endSize    = frameSize + 8
	kindEnd    = Kind(0)
)

// Kind says what a record is about.
type Kind uint16

const (
	// Optional in a Kind lets a reader that does not know it skip the record.
	Optional Kind = 0x8000
	// KindSnapshot is the first kind of the snapshot of an upgrade; those below are of the state file.
	KindSnapshot Kind = 0x1000
)

// Purpose says what a state is for.
type Purpose uint16

const (
	// PurposeChanges is the state file's: the operator's changes.
	PurposeChanges Purpose = 1
	// PurposeSnapshot is an upgrade's: everything that runs.
	PurposeSnapshot Purpose = 2
)

const (
	// MaxSize is the largest state that Read takes, in bytes.
	MaxSize = 16 << 20
	// MaxRecord is the largest payload of a record, in bytes.
	MaxRecord = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer makes a state. Make it with NewWriter.
type Writer struct {
	buf   []byte
	count uint32
}

// NewWriter begins a state.
func NewWriter(purpose Purpose) *Writer {
	buf := append(make([]byte, 0, 512), magic...)
	buf = binary.BigEndian.AppendUint16(buf, version)
	return &Writer{buf: binary.BigEndian.AppendUint16(buf, uint16(purpose))}
}

// Grow makes room for n more bytes, which saves copying where they are many.
func (w *Writer) Grow(n int) { w.buf = slices.Grow(w.buf, n) }

// Record adds a record. It panics for a kind of 0 and for a payload above MaxRecord, which only a bug can
// make.
func (w *Writer) Record(kind Kind, payload []byte) {
	if kind&^Optional == kindEnd {
		panic("BUG: state: a record of kind 0")
	}
	if len(payload) > MaxRecord {
		panic(fmt.Sprintf("BUG: state: a record of kind %#x with %d bytes", uint16(kind), len(payload)))
	}
	w.frame(kind, len(payload))
	w.buf = append(w.buf, payload...)
	w.count++
}

func (w *Writer) frame(kind Kind, length int) {
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(kind))
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(length))
}

// Bytes ends the state and returns it. The Writer must not be used afterwards.
func (w *Writer) Bytes() []byte {
	w.frame(kindEnd, endSize-frameSize)
	w.buf = binary.BigEndian.AppendUint32(w.buf, w.count)
	return binary.BigEndian.AppendUint32(w.buf, crc32.Checksum(w.buf, castagnoli))
}

// Record is one record as read.
type Record struct {
	Kind    Kind
	Payload []byte // inside of what Read was given
}

// Read takes a state of at most MaxSize apart; see ReadLimited.
func Read(data []byte, purpose Purpose) ([]Record, error) { return ReadLimited(data, purpose, MaxSize) }

// ReadLimited takes a state apart, after it has checked that it is whole. The errors are ErrDamaged,
// ErrNewer, ErrPurpose and ErrTooLarge, each with what is wrong.
func ReadLimited(data []byte, purpose Purpose, limit int) ([]Record, error) {
	switch {
	case len(data) > limit:
		return nil, fmt.Errorf("%w: %d bytes; at most %d are read", ErrTooLarge, len(data), limit)
	case len(data) < headerSize || string(data[:len(magic)]) != magic:
		return nil, fmt.Errorf("%w: no state of lb", ErrDamaged)
	}
	if v := binary.BigEndian.Uint16(data[len(magic):]); v != version {
		return nil, fmt.Errorf("%w: form %d; this lb reads form %d", ErrNewer, v, version)
	}
	if len(data) < headerSize+endSize {
		return nil, fmt.Errorf("%w: cut off", ErrDamaged)
	}
	body, sum := data[:len(data)-4], binary.BigEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: its checksum differs", ErrDamaged)
	}
	if p := Purpose(binary.BigEndian.Uint16(data[len(magic)+2:])); p != purpose {
		return nil, fmt.Errorf("%w: %d; want %d", ErrPurpose, p, purpose)
	}
	return readRecords(body[headerSize:])
}

// readRecords reads records up to the end record, whose checksum is cut off and has been compared.
func readRecords(rest []byte) ([]Record, error) {
	var records []Record
	for len(rest) >= frameSize {
		kind, length := Kind(binary.BigEndian.Uint16(rest)), binary.BigEndian.Uint32(rest[2:])
		rest = rest[frameSize:]
		if kind == kindEnd {
			if length != endSize-frameSize || len(rest) != 4 || binary.BigEndian.Uint32(rest) != uint32(len(records)) {
				return nil, fmt.Errorf("%w: its end does not fit", ErrDamaged)
			}
			return records, nil
		}
		if length > MaxRecord || uint64(length) > uint64(len(rest)) {
			return nil, fmt.Errorf("%w: record %d has %d bytes", ErrDamaged, len(records), length)
		}
		records = append(records, Record{Kind: kind, Payload: rest[:length:length]})
		rest = rest[length:]
	}
	return nil, fmt.Errorf("%w: no end", ErrDamaged)
}

// Unknown is the error for a record of a kind that the reader does not know: nil when it may be skipped.
func (r Record) Unknown() error {
	if r.Kind&Optional != 0 {
		return nil
	}
	return fmt.Errorf("%w: a record of kind %#x", ErrNewer, uint16(r.Kind))
}
