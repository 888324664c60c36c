// Package printable makes text from outside safe to print: names, status texts, lines of workers, reasons of
// errors.
//
// A terminal obeys more than ASCII control characters: the C1 controls (U+0080 to U+009F), a lone byte of
// that range, and the marks that change the direction of the text (U+202E and its kind), which show one thing
// and mean another. What is graphic in the sense of Unicode ([unicode.IsGraphic]) is kept; everything else
// becomes a Go escape: \x1b, \u202e, and \x9b for a byte that is not UTF-8. The package keeps no state.
package printable

import (
	"bytes"
	"io"
	"unicode"
	"unicode/utf8"
)

// Text returns s with an escape in place of everything that is not graphic. A backslash stays as it is.
func Text(s string) string {
	if isText(s) {
		return s
	}
	return string(Append(make([]byte, 0, len(s)+16), s))
}

// Line is Text for a line of a program's output: a tab stays a tab.
func Line(s string) string {
	if isLine(s) {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		if s[i] == '\t' {
			b, i = append(b, '\t'), i+1
			continue
		}
		n := 0
		b, n = appendFirst(b, s[i:])
		i += n
	}
	return string(b)
}

// Append appends Text(s) to b. It allocates only to grow b.
func Append(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		n := 0
		b, n = appendFirst(b, s[i:])
		i += n
	}
	return b
}

func isText(s string) bool {
	for i := 0; i < len(s); {
		if s[i] >= ' ' && s[i] < 0x7f {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if !graphic(r, n) {
			return false
		}
		i += n
	}
	return true
}

func isLine(s string) bool {
	for i := 0; i < len(s); {
		if s[i] >= ' ' && s[i] < 0x7f || s[i] == '\t' {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if !graphic(r, n) {
			return false
		}
		i += n
	}
	return true
}

// graphic reports whether a rune of n bytes is kept. A byte that is not UTF-8 is decoded as utf8.RuneError of
// one byte.
func graphic(r rune, n int) bool {
	return unicode.IsGraphic(r) && !(r == utf8.RuneError && n == 1)
}

const hexDigits = "0123456789abcdef"

// appendFirst appends the first rune of s, or its escape, and returns how many bytes of s that was.
func appendFirst(b []byte, s string) ([]byte, int) {
	c := s[0]
	if c >= ' ' && c < 0x7f {
		return append(b, c), 1
	}
	r, n := utf8.DecodeRuneInString(s)
	switch {
	case graphic(r, n):
		return append(b, s[:n]...), n
	case c == '\n':
		return append(b, `\n`...), 1
	case c == '\r':
		return append(b, `\r`...), 1
	case c == '\t':
		return append(b, `\t`...), 1
	case n == 1:
		return append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15]), 1
	case r > 0xffff:
		b = append(b, `\U00`...)
		return append(appendHex(b, uint16(r>>8)), hexDigits[r>>4&15], hexDigits[r&15]), n
	default:
		return appendHex(append(b, `\u`...), uint16(r)), n
	}
}

// appendHex appends four hexadecimal digits.
func appendHex(b []byte, v uint16) []byte {
	return append(b, hexDigits[v>>12], hexDigits[v>>8&15], hexDigits[v>>4&15], hexDigits[v&15])
}

// JSON returns JSON text with what is not graphic in its strings as JSON escapes: it means the same, and a
// terminal obeys none of it. text itself is returned where there is nothing to escape.
func JSON(text []byte) []byte {
	for i := 0; i < len(text); {
		n := plainJSON(text[i:])
		if n == 0 {
			return appendJSON(append(make([]byte, 0, len(text)+64), text[:i]...), text[i:])
		}
		i += n
	}
	return text
}

// plainJSON returns the length of the first rune of text, or 0 if it needs an escape. Characters below ' '
// stand only between the values of JSON text: within a string an encoder has escaped them.
func plainJSON(text []byte) int {
	switch c := text[0]; {
	case c < 0x7f:
		return 1
	case c == 0x7f:
		return 0
	}
	if r, n := utf8.DecodeRune(text); graphic(r, n) {
		return n
	}
	return 0
}

func appendJSON(b, text []byte) []byte {
	for i := 0; i < len(text); {
		if n := plainJSON(text[i:]); n > 0 {
			b = append(b, text[i:i+n]...)
			i += n
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		if r > 0xffff { // a surrogate pair (RFC 8259, section 7)
			r -= 0x10000
			b = appendHex(append(b, `\u`...), uint16(0xd800+r>>10))
			r = 0xdc00 + r&0x3ff
		}
		b = appendHex(append(b, `\u`...), uint16(r))
		i += n
	}
	return b
}

// JSONWriter returns a writer that passes JSON text on to w as JSON returns it. Each Write must hold whole
// characters, as those of a json.Encoder and of a slog.JSONHandler do.
func JSONWriter(w io.Writer) io.Writer { return jsonWriter{w} }

type jsonWriter struct{ w io.Writer }

func (j jsonWriter) Write(p []byte) (int, error) {
	if _, err := j.w.Write(JSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// LinesWriter returns a writer that passes lines of text on to w as Text returns them, with their line
// breaks. Each Write must hold whole characters, as those of a slog.TextHandler do, which quotes all that
// Text escapes but U+007F.
func LinesWriter(w io.Writer) io.Writer { return linesWriter{w} }

type linesWriter struct{ w io.Writer }

func (l linesWriter) Write(p []byte) (int, error) {
	out := p
	if !isLines(p) {
		out = make([]byte, 0, len(p)+64)
		for line := range bytes.Lines(p) {
			text, found := bytes.CutSuffix(line, lineBreak)
			out = Append(out, string(text))
			if found {
				out = append(out, '\n')
			}
		}
	}
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

var lineBreak = []byte{'\n'}

func isLines(p []byte) bool {
	for i := 0; i < len(p); {
		if p[i] >= ' ' && p[i] < 0x7f || p[i] == '\n' {
			i++
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if !graphic(r, n) {
			return false
		}
		i += n
	}
	return true
}
