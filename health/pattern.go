package health

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
)

// maxReply bounds what a probe sends and what it reads of a reply, in bytes.
const maxReply = 4096

// pattern is what a reply must contain: want at its beginning, or anywhere in its first maxReply bytes.
type pattern struct {
	want     []byte
	anywhere bool
}

// parsePattern parses the value of expect.
func parsePattern(s string) (pattern, error) {
	rest, anywhere := strings.CutPrefix(s, "contains:")
	want, err := parseBytes(rest)
	if err != nil {
		return pattern{}, err
	}
	if len(want) == 0 {
		return pattern{}, fmt.Errorf("%q names nothing to look for", s)
	}
	return pattern{want: want, anywhere: anywhere}, nil
}

// parseBytes parses text as it stands, "text:…" or "hex:…".
func parseBytes(s string) ([]byte, error) {
	b := []byte(strings.TrimPrefix(s, "text:"))
	if digits, ok := strings.CutPrefix(s, "hex:"); ok {
		var err error
		if b, err = hex.DecodeString(strings.ReplaceAll(digits, " ", "")); err != nil {
			return nil, fmt.Errorf("%s is not hexadecimal: %w; write pairs of digits, or text:hex:… if it is text", quote([]byte(s)), err)
		}
	}
	if len(b) > maxReply {
		return nil, fmt.Errorf("%d bytes are more than %d", len(b), maxReply)
	}
	return b, nil
}

// match reports whether reply, the bytes so far, has the pattern and, if not, whether more bytes can change
// that.
func (p pattern) match(reply []byte) (ok, more bool) {
	if p.anywhere {
		return bytes.Contains(reply, p.want), len(reply) < maxReply
	}
	n := min(len(reply), len(p.want))
	same := bytes.Equal(reply[:n], p.want[:n])
	return same && n == len(p.want), same && n < len(p.want)
}

// String returns the pattern in words, for a reason.
func (p pattern) String() string {
	if p.anywhere {
		return "a reply with " + quote(p.want)
	}
	return quote(p.want)
}

// maxQuote is how many bytes of a backend's reply a reason shows.
const maxQuote = 64

// quote returns b as printable ASCII between quotes, cut at maxQuote bytes.
func quote(b []byte) string {
	if len(b) > maxQuote {
		return fmt.Sprintf("%+q…", b[:maxQuote])
	}
	return fmt.Sprintf("%+q", b)
}
