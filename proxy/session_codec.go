package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/273ebdf9/lb/internal/state"
)

// Flags of an encoded session.
const (
	savedHalfOpen = 1 << iota
	savedBusy
	savedForwarded
	savedCounted
)

// Encode writes the session to e. The form only grows: values are added at its end, and none is removed.
func (s *SavedSession) Encode(e *state.Encoder) {
	flags := uint64(0)
	for i, on := range []bool{s.HalfOpen, s.Busy, s.Forwarded, s.Counted} {
		if on {
			flags |= 1 << i
		}
	}
	e.Uint(s.ID)
	e.Int(int64(s.Loop))
	e.Uint(uint64(s.Phase))
	e.Uint(flags)
	e.Uint(uint64(s.LastFrom))
	e.Uint(uint64(s.Retries))
	for _, n := range []int{s.Listener, s.Pool, s.Backend, s.Place} {
		e.Int(int64(n))
	}
	for i := range s.Ends {
		e.Int(int64(s.Ends[i].FD))
		e.Uint(uint64(s.Ends[i].Flags))
		d := &s.Directions[i]
		e.String(string(d.Buffered))
		e.Int(int64(d.Piped))
		e.Int(int64(d.PipeR))
		e.Int(int64(d.PipeW))
		e.Int(int64(d.PipeSize))
		e.Uint(d.Bytes)
		e.Uint(uint64(d.Full))
		e.Uint(uint64(d.Flags))
	}
	encodeAddr(e, s.Client)
	for _, d := range s.times() {
		e.Int(int64(*d))
	}
	encodeNumbers(e, s.Tried)
	encodeNumbers(e, s.Forbidden)
	encodeAddr(e, s.Peer)
	encodeAddr(e, s.Server)
	e.String(string(s.TLVs))
	h := &s.Handed
	untaken := uint64(0)
	if h.Untaken {
		untaken = 1
	}
	e.Uint(h.Cookie)
	e.Uint(h.Seq)
	e.Uint(untaken)
	for _, n := range []int64{int64(h.Since), int64(h.Taken), int64(h.FD), int64(h.Order)} {
		e.Int(n)
	}
}

// DecodeSessions reads the sessions of many records. It uses all CPUs, as the clients of all sessions wait
// meanwhile. Errors are those of package state.
func DecodeSessions(records []state.Record) ([]SavedSession, error) {
	sessions := make([]SavedSession, len(records))
	parts := min(runtime.NumCPU(), len(records)/256+1)
	errs := make([]error, parts)
	var running sync.WaitGroup
	for part := range parts {
		running.Go(func() {
			for i := part * len(records) / parts; i < (part+1)*len(records)/parts && errs[part] == nil; i++ {
				errs[part] = sessions[i].decode(records[i].Decoder())
			}
		})
	}
	running.Wait()
	return sessions, errors.Join(errs...)
}

// decode reads what Encode has written.
func (s *SavedSession) decode(d *state.Decoder) error {
	s.ID = d.Uint()
	s.Loop = int(d.Int())
	s.Phase = uint8(min(d.Uint(), 255))
	flags := d.Uint()
	s.HalfOpen, s.Busy, s.Forwarded, s.Counted = flags&savedHalfOpen != 0, flags&savedBusy != 0, flags&savedForwarded != 0, flags&savedCounted != 0
	s.LastFrom = uint8(min(d.Uint(), 255))
	s.Retries = uint8(min(d.Uint(), 255))
	for _, n := range []*int{&s.Listener, &s.Pool, &s.Backend, &s.Place} {
		*n = int(d.Int())
	}
	for i := range s.Ends {
		s.Ends[i] = SavedEnd{FD: int(d.Int()), Flags: uint8(d.Uint())}
		s.Directions[i] = SavedDirection{
			Buffered: []byte(d.String()), Piped: int(d.Int()), PipeR: int(d.Int()), PipeW: int(d.Int()), PipeSize: int(d.Int()),
			Bytes: d.Uint(), Full: uint8(d.Uint()), Flags: uint8(d.Uint()),
		}
	}
	err := decodeAddr(d, &s.Client)
	for _, t := range s.times() {
		*t = time.Duration(d.Int())
	}
	s.Tried = decodeNumbers(d)
	s.Forbidden = decodeNumbers(d)
	err = errors.Join(err, decodeAddr(d, &s.Peer), decodeAddr(d, &s.Server))
	s.TLVs = []byte(d.String())
	s.Handed = SavedHanded{
		Cookie: d.Uint(), Seq: d.Uint(), Untaken: d.Uint() != 0,
		Since: time.Duration(d.Int()), Taken: time.Duration(d.Int()), FD: int(d.Int()), Order: int(d.Int()),
	}
	return errors.Join(err, d.Err())
}

// times returns the times of the session in the order in which they are written.
func (s *SavedSession) times() [10]*time.Duration {
	return [...]*time.Duration{&s.Start, &s.Budget, &s.QueuedAt, &s.Chosen, &s.Connected, &s.Active, &s.Expires, &s.Timer, &s.Pause, &s.Queued}
}

func encodeNumbers(e *state.Encoder, numbers []int) {
	e.Uint(uint64(len(numbers)))
	for _, n := range numbers {
		e.Int(int64(n))
	}
}

func decodeNumbers(d *state.Decoder) (numbers []int) {
	for n := d.Uint(); n > 0 && d.More(); n-- {
		numbers = append(numbers, int(d.Int()))
	}
	return numbers
}

func encodeAddr(e *state.Encoder, a netip.AddrPort) {
	b, err := a.MarshalBinary()
	if err != nil {
		panic("BUG: proxy: an address that cannot be written down: " + err.Error())
	}
	e.String(string(b))
}

func decodeAddr(d *state.Decoder, a *netip.AddrPort) error {
	b := d.String()
	if b == "" {
		return nil
	}
	if err := a.UnmarshalBinary([]byte(b)); err != nil {
		return fmt.Errorf("%w: %w", state.ErrDamaged, err)
	}
	return nil
}
