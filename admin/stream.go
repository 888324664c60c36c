package admin

import (
	"net/http"
	"time"
)

// ndjson is the media type of JSON values, one a line (github.com/ndjson/ndjson-spec).
const ndjson = "application/x-ndjson"

// stream answers with JSON values, one a line, and with follow goes on until the caller or the server ends.
// next writes those that are there; when there are none it gives a channel that is closed once there are. A
// write that says false ends the stream.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, follow bool, next func(write func(any) bool) <-chan struct{}) {
	if follow {
		release, err := s.followers.enter(CallerFrom(r.Context()))
		if err != nil {
			s.fail(w, err)
			return
		}
		defer release()
	}
	halt := s.halt()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // its passing would end the request
	w.Header().Set("Content-Type", ndjson)
	rc.Flush()
	enc := newEncoder(w)
	broken := false
	write := func(v any) bool {
		broken = broken || enc.Encode(v) != nil
		return !broken
	}
	for {
		rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // a follower who does not read is cut
		if wake := next(write); wake != nil {
			if !follow {
				return
			}
			select {
			case <-wake:
				continue
			case <-r.Context().Done():
			case <-s.done:
			case <-halt:
			}
			return
		}
		if broken || rc.Flush() != nil || over(halt) {
			return
		}
	}
}

// over says whether a channel is closed.
func over(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
