package health

import (
	"bytes"
	"strings"
	"testing"
)

func TestPattern_Match(t *testing.T) {
	f := func(expect, reply string, wantOK, wantMore bool) {
		t.Helper()
		p, err := parsePattern(expect)
		if err != nil {
			t.Fatalf("%q: %v", expect, err)
		}
		if ok, more := p.match([]byte(reply)); ok != wantOK || more != wantMore {
			t.Errorf("%q on %q: got %v, more %v; want %v, more %v", expect, reply, ok, more, wantOK, wantMore)
		}
	}
	f("+PONG", "+PONG\r\n", true, false)
	f("+PONG", "+PO", false, true)
	f("+PONG", "", false, true)
	f("+PONG", "-ERR", false, false) // no more bytes can change it
	f("+PONG", "x+PONG", false, false)
	f("hex:2b 50 4F", "+PONG", true, false)
	f("text:hex:", "hex:1", true, false)
	f("text:contains:", "contains:1", true, false)
	f("contains:ready", "not ready yet", true, true)
	f("contains:ready", "not", false, true)
	f("contains:hex:00", "a\x00", true, true)
	f("contains:ready", strings.Repeat("x", maxReply), false, false)
}

func TestParsePattern_Refuses(t *testing.T) {
	f := func(expect, want string) {
		t.Helper()
		if _, err := parsePattern(expect); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v; want %q in it", expect, err, want)
		}
	}
	f("hex:2", `"hex:2" is not hexadecimal`)
	f("contains:hex:zz", "is not hexadecimal")
	f("hex:", "names nothing")
	f("contains:", "names nothing")
	f("text:", "names nothing")
	f(strings.Repeat("x", maxReply+1), "4097 bytes are more than 4096")
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"+PONG", "hex:2b50", "contains:text:x", "contains:hex:00 ff"} {
		f.Add(s, []byte("+PONG"))
	}
	f.Fuzz(func(t *testing.T, expect string, reply []byte) {
		p, err := parsePattern(expect)
		if err != nil {
			return
		}
		ok, more := p.match(reply)
		if want := bytes.HasPrefix(reply, p.want); !p.anywhere && ok != want {
			t.Errorf("%q on %q: got %v; want %v", expect, reply, ok, want)
		}
		// What is found stays found, and what cannot be found any more is not.
		if later, _ := p.match(append(bytes.Clone(reply), p.want...)); ok && !later || !ok && !more && !p.anywhere && later {
			t.Errorf("%q on %q: got %v, more %v, then %v", expect, reply, ok, more, later)
		}
	})
}
