package health

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseStatusSet(t *testing.T) {
	f := func(text string, in, out []int) {
		t.Helper()
		s, err := parseStatusSet(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			return
		}
		for _, code := range in {
			if !s.has(code) {
				t.Errorf("%q: %d is not in it", text, code)
			}
		}
		for _, code := range out {
			if s.has(code) {
				t.Errorf("%q: %d is in it", text, code)
			}
		}
		if s.String() != text {
			t.Errorf("got %q; want %q", s, text)
		}
	}
	f("200-399", []int{200, 302, 399}, []int{199, 400})
	f("2xx", []int{200, 299}, []int{199, 300})
	f("204, 3XX,401-401", []int{204, 300, 399, 401}, []int{200, 203, 205, 400, 402})
}

func TestParseStatusSet_Refuses(t *testing.T) {
	for _, text := range []string{"", ",", "200,", "ok", "20", "2000", "099", "600", "6xx", "0xx", "2x", "300-200", "200-", "-200", "+20", "200-+99", "200–299"} {
		if s, err := parseStatusSet(text); err == nil {
			t.Errorf("%q: got %v; want an error", text, s.ranges)
		} else if !strings.Contains(err.Error(), "cannot parse status") {
			t.Errorf("%q: got %q", text, err)
		}
	}
}

func FuzzParseStatusSet(f *testing.F) {
	for _, s := range []string{"200-399", "2xx,204", "", "200-", "999", "1xx , 5XX"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseStatusSet(text)
		if err != nil {
			return
		}
		var again []string
		for _, r := range s.ranges {
			if r[0] < 100 || r[0] > r[1] || r[1] > 599 {
				t.Fatalf("%q: range %v", text, r)
			}
			again = append(again, fmt.Sprintf("%d-%d", r[0], r[1]))
		}
		s2, err := parseStatusSet(strings.Join(again, ","))
		if err != nil {
			t.Fatalf("%q: cannot read %q again: %v", text, again, err)
		}
		for code := range 700 {
			if s.has(code) != s2.has(code) {
				t.Errorf("%q: %d differs from %q", text, code, again)
			}
		}
	})
}
