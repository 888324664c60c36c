package config

import (
	"strings"
)

// maxDepth is how deep arrays and inline tables may nest, and how many parts a dotted key may have. The
// deepest key of lb has 4. The parser recurses without a limit and keeps every prefix of a dotted key, so
// that one hostile megabyte would cost it a gigabyte of stack or memory.
const maxDepth = 16

// locator finds the line of every key. The parser keeps positions only for some keys, and of an array of
// tables only the last element's (toml v1.6.0, setType), so they are read from the text again.
//
// It knows the shape of TOML and not its values: keys, headers, strings, brackets and comments. Text that it
// cannot read is text that the parser refuses at that place or before, so it just stops there.
// https://toml.io/en/v1.1.0
type locator struct {
	text string
	pos  int
	line int            // of pos, from 1
	at   map[string]int // path → line
	size map[string]int // path of an array of tables → its elements so far
	deep int            // the line where maxDepth was exceeded, or 0
}

// locate finds the line of each key, table and array element in text. If text nests deeper than maxDepth,
// tooDeep is the line where it does.
func locate(text string) (at map[string]int, tooDeep int) {
	l := locator{text: text, line: 1, at: map[string]int{}, size: map[string]int{}}
	l.document()
	return l.at, l.deep
}

func (l *locator) document() {
	table := ""
	for {
		l.skipSpace()
		var ok bool
		switch {
		case l.pos == len(l.text):
			return
		case l.peek("["):
			table, ok = l.header()
		default:
			ok = l.keyValue(table, 0)
		}
		if !ok {
			return
		}
	}
}

// header reads [a.b] or [[a.b]], and returns the path of the table that it begins.
func (l *locator) header() (table string, ok bool) {
	line := l.line
	l.pos++
	array := l.take("[")
	keys, ok := l.keys()
	if !ok || !l.take("]") || array && !l.take("]") {
		return "", false
	}
	path := join(l.enter("", keys[:len(keys)-1], line), keys[len(keys)-1])
	if array {
		l.mention(path, line)
		n := l.size[path]
		l.size[path]++
		path = index(path, n)
	}
	l.at[path] = line
	return path, true
}

// keyValue reads a.b = value in a table.
func (l *locator) keyValue(table string, depth int) bool {
	line := l.line
	keys, ok := l.keys()
	if !ok || !l.take("=") {
		return false
	}
	path := join(l.enter(table, keys[:len(keys)-1], line), keys[len(keys)-1])
	l.at[path] = line
	return l.value(path, depth)
}

// enter is the path of the table that keys lead to from table; of an array of tables, its last element.
func (l *locator) enter(table string, keys []string, line int) string {
	for _, k := range keys {
		table = join(table, k)
		l.mention(table, line)
		if n := l.size[table]; n > 0 {
			table = index(table, n-1)
		}
	}
	return table
}

// mention notes the line of a table that has no header of its own, or not yet.
func (l *locator) mention(path string, line int) {
	if _, ok := l.at[path]; !ok {
		l.at[path] = line
	}
}

// value reads what stands behind "=", or an element of an array.
func (l *locator) value(path string, depth int) bool {
	if depth == maxDepth {
		l.deep = l.line
		return false
	}
	l.skipBlanks()
	switch {
	case l.peek(`"`), l.peek(`'`):
		_, ok := l.str()
		return ok
	case l.take("["):
		return l.array(path, depth+1)
	case l.take("{"):
		return l.inlineTable(path, depth+1)
	}
	n := strings.IndexAny(l.text[l.pos:], ",]}#\n") // a number, a boolean or a date, which may hold a blank
	if n < 0 {
		n = len(l.text) - l.pos
	}
	l.pos += n
	return n > 0
}

// array reads the elements behind "[".
func (l *locator) array(path string, depth int) bool {
	for i := 0; ; i++ {
		l.skipSpace()
		if l.take("]") {
			return true
		}
		element := index(path, i)
		l.at[element] = l.line
		if !l.value(element, depth) {
			return false
		}
		l.skipSpace()
		if !l.take(",") && !l.peek("]") {
			return false
		}
	}
}

// inlineTable reads the keys behind "{". They may be on lines of their own, as TOML 1.1 has it.
func (l *locator) inlineTable(path string, depth int) bool {
	for {
		l.skipSpace()
		if l.take("}") {
			return true
		}
		if !l.keyValue(path, depth) {
			return false
		}
		l.skipSpace()
		if !l.take(",") && !l.peek("}") {
			return false
		}
	}
}

// keys reads a key with its dots: one part at least.
func (l *locator) keys() (keys []string, ok bool) {
	for {
		l.skipBlanks()
		if len(keys) == maxDepth {
			l.deep = l.line
			return nil, false
		}
		var key string
		if l.peek(`"`) || l.peek(`'`) {
			if key, ok = l.str(); !ok {
				return nil, false
			}
		} else {
			start := l.pos
			for l.pos < len(l.text) && isBareByte(l.text[l.pos]) {
				l.pos++
			}
			if key = l.text[start:l.pos]; key == "" {
				return nil, false
			}
		}
		keys = append(keys, key)
		l.skipBlanks()
		if !l.take(".") {
			return keys, true
		}
	}
}

// str reads a string of any of the four kinds. What it returns is only for keys, which have one line.
func (l *locator) str() (s string, ok bool) {
	quote := l.text[l.pos : l.pos+1]
	if l.take(quote + quote + quote) {
		return "", l.multiline(quote[0])
	}
	start := l.pos
	for l.pos++; l.pos < len(l.text); l.pos++ {
		switch c := l.text[l.pos]; {
		case c == '\n':
			return "", false
		case c == '\\' && quote == `"`:
			l.pos++
		case c == quote[0]:
			l.pos++
			return unquote(l.text[start:l.pos])
		}
	}
	l.pos = len(l.text) // a backslash may have gone beyond
	return "", false
}

// multiline reads behind three quotes up to the closing three, before which one or two more may stand.
func (l *locator) multiline(quote byte) bool {
	quotes := 0
	for ; l.pos < len(l.text); l.pos++ {
		c := l.text[l.pos]
		if c == quote {
			if quotes++; quotes == 5 {
				l.pos++
				return true
			}
			continue
		}
		if quotes >= 3 {
			return true
		}
		quotes = 0
		if c == '\\' && quote == '"' && l.pos+1 < len(l.text) {
			l.pos++
		}
		if l.text[l.pos] == '\n' {
			l.line++
		}
	}
	return quotes >= 3
}

// unquote is the string that a quoted key stands for. Escapes are the parser's business.
func unquote(quoted string) (s string, ok bool) {
	if quoted[0] == '\'' || !strings.Contains(quoted, `\`) {
		return quoted[1 : len(quoted)-1], true
	}
	var v struct{ K string }
	err := decodeTOML("K="+quoted, &v)
	return v.K, err == nil
}

// skipSpace goes over blanks, ends of lines and comments.
func (l *locator) skipSpace() {
	for ; l.pos < len(l.text); l.pos++ {
		switch l.text[l.pos] {
		case '\n':
			l.line++
		case ' ', '\t', '\r':
		case '#':
			n := strings.IndexByte(l.text[l.pos:], '\n')
			if n < 0 {
				l.pos = len(l.text)
				return
			}
			l.pos += n - 1
		default:
			return
		}
	}
}

func (l *locator) skipBlanks() {
	for l.pos < len(l.text) && (l.text[l.pos] == ' ' || l.text[l.pos] == '\t') {
		l.pos++
	}
}

func (l *locator) peek(s string) bool { return strings.HasPrefix(l.text[l.pos:], s) }

func (l *locator) take(s string) bool {
	ok := l.peek(s)
	if ok {
		l.pos += len(s)
	}
	return ok
}
