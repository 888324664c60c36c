package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"golang.org/x/sys/unix"
)

// maxSize is far above any config that a person or a template writes; a larger file is not a config.
const maxSize = 1 << 20

// readFile reads at most maxSize bytes, so that /dev/zero or a forgotten log file is no way to fill the
// memory. A FIFO without a writer is empty: lb does not wait for one, as it would be deaf meanwhile
// (O_NONBLOCK, fifo(7)).
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read config %q: %w", path, cause(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read config %q: %w", path, cause(err))
	}
	return data, nil
}

// Unchanged reports whether the file at path still has the text that c was parsed from.
func (c *Config) Unchanged(path string) bool {
	data, err := readFile(path)
	return err == nil && bytes.Equal(data, c.Source)
}

// cause is err without the path, which the caller says already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// checkText finds the fault of data that is no UTF-8 text or of a size that no config has.
func checkText(data []byte) (f Fault, ok bool) {
	switch {
	case len(data) == 0:
		return Fault{Message: "the file is empty; a config needs at least one [listeners.NAME] and its [pools.NAME]"}, false
	case len(data) > maxSize:
		return Fault{Message: fmt.Sprintf("the file has more than %d bytes; is it a config?", maxSize)}, false
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		return Fault{Line: 1, Message: "the file begins with a byte order mark; save it as UTF-8 without one"}, false
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return Fault{Line: 1, Message: "the file is UTF-16; save it as UTF-8"}, false
	}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return faultAt(string(data), i, fmt.Sprintf("byte 0x%02x is not UTF-8; save the file as UTF-8", data[i])), false
		}
		if r == 0 {
			return faultAt(string(data), i, "NUL byte; a config is text in UTF-8"), false
		}
		i += n
	}
	return Fault{}, true
}

// faultAt is a fault at a byte offset of the text.
func faultAt(text string, offset int, message string) Fault {
	before := text[:min(max(offset, 0), len(text))]
	line := strings.Count(before, "\n") + 1
	column := utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:]) + 1
	return Fault{Line: line, Column: column, Message: message}
}

// syntaxFault is what the parser has to say about the text, in one line. Its offset is more to be relied on
// than its line, which is one too low for some faults at the end of the text.
func syntaxFault(text string, err error) Fault {
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return Fault{Message: oneLine(err.Error())}
	}
	f := faultAt(text, pe.Position.Start, oneLine(strings.TrimSuffix(pe.Message, ".")))
	line := strings.Split(text, "\n")[f.Line-1]
	if m := bareString.FindStringSubmatchIndex(line); m != nil {
		word := line[m[2]:m[3]]
		if decodeTOML("v="+word, new(map[string]any)) != nil {
			f.Column = utf8.RuneCountInString(line[:m[2]]) + 1
			f.Message = fmt.Sprintf("%s is no value; write %s in quotes", oneLine(word), brief(word))
		}
	}
	return f
}

// bareString is a line with a string or a duration that has no quotes, which is what most faults of the
// syntax are. The parser complains of the first letter that no number can have. Digits alone are left to it.
var bareString = regexp.MustCompile(`^[ \t]*[A-Za-z0-9_."-]+[ \t]*=[ \t]*([^\s"'#\[\]{},=]*[^\s"'#\[\]{},=0-9_.+-][^\s"'#\[\]{},=]*)[ \t\r]*(#.*)?$`)

// oneLine is s without control characters, which a quoted piece of the text may have brought.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// decodeTOML is toml.Decode without its panics: the parser has some of its own ("BUG: …") for text that it
// did not foresee, and a reload must not end a running balancer.
func decodeTOML(text string, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the TOML parser failed: %v", r)
		}
	}()
	_, err = toml.Decode(text, v)
	return err
}
