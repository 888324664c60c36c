package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// streamBlock is longer than any single write, and no power of two, so that no boundary of a buffer falls on
// its period.
const streamBlock = 1<<20 + 13

// streamBytes is the block twice, so that any part of up to a block is contiguous.
var streamBytes = sync.OnceValue(func() []byte {
	var seed [32]byte
	b := make([]byte, streamBlock)
	rand.NewChaCha8(seed).Read(b)
	return append(b, b...)
})

// stream is an endless, reproducible sequence of bytes, to send and to compare with: a byte lost, doubled or
// out of order shows at once, with its place.
type stream struct {
	start, pos int
}

func newStream(seed uint64) *stream { return &stream{start: int(seed * 7919 % streamBlock)} }

// next gives the next n bytes, at most a block; they must not be changed.
func (s *stream) next(n int) []byte {
	at := (s.start + s.pos) % streamBlock
	s.pos += n
	return streamBytes()[at : at+n]
}

// check compares what has come with the next bytes.
func (s *stream) check(got []byte) error {
	from := s.pos
	if want := s.next(len(got)); !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				return fmt.Errorf("byte %d of the stream is wrong", from+i)
			}
		}
	}
	return nil
}

// sendTo writes n bytes.
func (s *stream) sendTo(w io.Writer, n int) error {
	for n > 0 {
		k := min(n, 256<<10)
		if _, err := w.Write(s.next(k)); err != nil {
			return fmt.Errorf("cannot write at byte %d: %w", s.pos-k, err)
		}
		n -= k
	}
	return nil
}

// receiveFrom reads until EOF or an error other than EOF and compares. It gives how many bytes came.
func (s *stream) receiveFrom(r io.Reader) (n int, err error) {
	buf := make([]byte, 64<<10)
	for {
		k, err := r.Read(buf)
		if wrong := s.check(buf[:k]); wrong != nil {
			return s.pos, wrong
		}
		if err == io.EOF {
			return s.pos, nil
		}
		if err != nil {
			return s.pos, err
		}
	}
}
