package state

import (
	"encoding/binary"
	"fmt"
)

// Encoder makes a payload: values one after the other, without names. The zero value is ready.
type Encoder struct{ buf []byte }

// Bytes is the payload.
func (e *Encoder) Bytes() []byte { return e.buf }

// Reset begins another payload in the memory of the last one, which must have been used by now.
func (e *Encoder) Reset() { e.buf = e.buf[:0] }

// Uint adds a number, as a varint (package encoding/binary).
func (e *Encoder) Uint(n uint64) { e.buf = binary.AppendUvarint(e.buf, n) }

// Int adds a number that may be negative.
func (e *Encoder) Int(n int64) { e.buf = binary.AppendVarint(e.buf, n) }

// Bool adds true or false.
func (e *Encoder) Bool(b bool) {
	n := byte(0)
	if b {
		n = 1
	}
	e.buf = append(e.buf, n)
}

// String adds a string, with its length.
func (e *Encoder) String(s string) {
	e.Uint(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

// Decoder reads the values of a payload in the order in which they were added. Beyond the end every value is
// zero: the writer was older. The first value that cannot be read makes all after it zero, and Err returns
// the reason.
type Decoder struct {
	rest []byte
	err  error
}

// Decoder reads r's payload.
func (r Record) Decoder() *Decoder { return &Decoder{rest: r.Payload} }

// Err is ErrDamaged, with what is wrong, once a value could not be read.
func (d *Decoder) Err() error { return d.err }

// More reports whether there are values left.
func (d *Decoder) More() bool { return len(d.rest) > 0 }

func (d *Decoder) fail(what string) {
	d.err, d.rest = fmt.Errorf("%w: %s", ErrDamaged, what), nil
}

// Uint reads what Encoder.Uint added.
func (d *Decoder) Uint() uint64 {
	if len(d.rest) == 0 {
		return 0
	}
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.fail("no number")
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

// Int reads what Encoder.Int added.
func (d *Decoder) Int() int64 {
	if len(d.rest) == 0 {
		return 0
	}
	n, size := binary.Varint(d.rest)
	if size <= 0 {
		d.fail("no number")
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

// Bool reads what Encoder.Bool added.
func (d *Decoder) Bool() bool {
	if len(d.rest) == 0 {
		return false
	}
	b := d.rest[0]
	if b > 1 {
		d.fail("neither true nor false")
		return false
	}
	d.rest = d.rest[1:]
	return b == 1
}

// String reads what Encoder.String added.
func (d *Decoder) String() string {
	n := d.Uint()
	if n > uint64(len(d.rest)) {
		d.fail("a string that is cut off")
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}
