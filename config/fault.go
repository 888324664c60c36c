package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Fault is one thing that is wrong with a config, or probably wrong when it is a warning.
type Fault struct {
	// File is the name that Load or Parse was given.
	File string
	// Line counts from 1; 0 is a fault of the file as a whole, such as a section that is nowhere.
	Line int
	// Column counts characters from 1; 0 where the line says it all. Only faults of the syntax have one.
	Column int
	// Path is the TOML path, such as pools.app.backends[1].weight; empty for a fault of the syntax.
	Path string
	// Message says what is wrong and what to write instead.
	Message string
}

// String is FILE:LINE: PATH: MESSAGE, without the parts that the fault does not have.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		b.WriteString(":" + strconv.Itoa(f.Line))
		if f.Column > 0 {
			b.WriteString(":" + strconv.Itoa(f.Column))
		}
	}
	b.WriteString(": ")
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	b.WriteString(f.Message)
	return b.String()
}

// Error is every fault of a config, in the order of the file.
type Error struct {
	Faults []Fault
}

// Error is the faults, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

func sortFaults(faults []Fault) {
	slices.SortStableFunc(faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Path, b.Path))
	})
}

// join is the path of a key in a table. A key that TOML would not take bare is quoted.
func join(table, key string) string {
	if !isBare(key) {
		key = strconv.Quote(key)
	}
	if table == "" {
		return key
	}
	return table + "." + key
}

// index is the path of an element of an array.
func index(array string, i int) string { return array + "[" + strconv.Itoa(i) + "]" }

// parent is the path of the table or array that path lies in; "" for a key of the top level.
func parent(path string) string {
	if strings.HasSuffix(path, "]") {
		return path[:strings.LastIndexByte(path, '[')]
	}
	quoted := strings.HasSuffix(path, `"`)
	for i := len(path) - 2; i >= 0; i-- {
		switch {
		case quoted:
			if path[i] == '"' && !isEscaped(path, i) {
				quoted = false
			}
		case path[i] == '.':
			return path[:i]
		}
	}
	return ""
}

// isEscaped reports whether an odd number of backslashes stands before s[i].
func isEscaped(s string, i int) bool {
	n := i - len(strings.TrimRight(s[:i], `\`))
	return n%2 == 1
}

func isBare(key string) bool {
	for i := range len(key) {
		if !isBareByte(key[i]) {
			return false
		}
	}
	return key != ""
}

func isBareByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}
