package printable

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestText_EscapesWhateverATerminalObeys(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"plain text, äöü, 日本, 🙂":    "plain text, äöü, 日本, 🙂",
		`a\b`:                       `a\b`,
		"a\tb\r\n":                  `a\tb\r\n`,
		"\x1b[31mred":               `\x1b[31mred`,
		"C1 \u0085 and \u009b31m":   `C1 \u0085 and \u009b31m`,
		"8-bit \x9b31m":             `8-bit \x9b31m`,
		"\u202egnp.exe":             `\u202egnp.exe`,
		"\u2066isolate\u2069":       `\u2066isolate\u2069`,
		"zero\u200bwidth\ufeff":     `zero\u200bwidth\ufeff`,
		"line\u2028para\u2029":      `line\u2028para\u2029`,
		"tag \U000e0041":            `tag \U000e0041`,
		"del \x7f":                  `del \x7f`,
		"replacement \ufffd stays":  "replacement \ufffd stays",
		"overlong \xc0\x9b":         `overlong \xc0\x9b`,
		"half a surrogate \xed\xa0": `half a surrogate \xed\xa0`,
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%q): got %s; want %s", in, got, want)
		}
	}
	if got := Line("\tat main.go:1\x1b"); got != "\tat main.go:1\\x1b" {
		t.Errorf("Line: got %q; want the tab kept and the escape character escaped", got)
	}
}

func TestText_AllocatesNothingForPrintableText(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Text("app/w1: ä"); Line("\tapp/w1") }); n != 0 {
		t.Errorf("got %v allocations; want none", n)
	}
}

// obeyed returns the first character that a terminal may obey; tab and line feed are passed over where they
// are allowed.
func obeyed(s, allowed string) (rune, bool) {
	for i, r := range s {
		_, n := utf8.DecodeRuneInString(s[i:])
		if !strings.ContainsRune(allowed, r) && (!unicode.IsGraphic(r) || r == utf8.RuneError && n == 1) {
			return r, true
		}
	}
	return 0, false
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "a", "\x1b]0;x\a", "\u0085", "\u009b", "\u202e", "\x9b", "\xff\xfe", "\U000e0001", "\u2028", "\x7f", "日本\t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := Text(s)
		if r, bad := obeyed(text, ""); bad {
			t.Errorf("Text(%q): got %q, which has %U", s, text, r)
		}
		if again := Text(text); again != text {
			t.Errorf("Text of %q: got %q; want it unchanged", text, again)
		}
		if line := Line(s); strings.ReplaceAll(line, "\t", `\t`) != text {
			t.Errorf("Line(%q): got %q; want %q but for tabs", s, line, text)
		}
		var encoded bytes.Buffer
		enc := json.NewEncoder(JSONWriter(&encoded))
		enc.SetEscapeHTML(false)
		if err := enc.Encode(map[string]string{s: s}); err != nil {
			t.Fatal(err)
		}
		if r, bad := obeyed(encoded.String(), "\n"); bad {
			t.Errorf("JSON of %q: got %q, which has %U", s, encoded.String(), r)
		}
		want, _ := json.Marshal(s)
		var back map[string]string
		var plain string
		if err := json.Unmarshal(encoded.Bytes(), &back); err != nil {
			t.Fatalf("JSON of %q: got %q, %v; want JSON", s, encoded.String(), err)
		}
		json.Unmarshal(want, &plain)
		if back[plain] != plain {
			t.Errorf("JSON of %q: got %q back; want %q", s, back, plain)
		}
	})
}
