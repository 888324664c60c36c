package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key is one key that a config may have.
type Key struct {
	// Table is the table that it stands in, such as "pools.NAME.health", "pools.NAME.backends[]"; NAME and []
	// stand for any name and any element.
	Table string
	// Name is the key itself.
	Name string
	// Type says in words what belongs there: "string", "integer", "number", "boolean", "duration", "list of
	// …" or "table of …".
	Type string
	// Default is the default as TOML writes it. "" is an empty string, [] an empty list.
	Default string
	// In is the Go type that has the field, and Field the field's name.
	In    reflect.Type
	Field string
}

// Table is a table that a config may have.
type Table struct {
	// Path is as Key.Table.
	Path string
	// Keys are in the order of the Go type.
	Keys []Key
	// In is the Go type whose field holds the table, and Field the field's name.
	In    reflect.Type
	Field string
}

// Tables are all tables that a config may have, in the order of the Go types. The reference and the example
// are checked against them.
func Tables() []Table {
	var tables []Table
	addTables(&tables, newDefaults(), "", reflect.ValueOf(Config{}))
	return tables
}

// addTables adds the tables inside the struct v, which has its defaults.
func addTables(tables *[]Table, defaults defaultsByType, path string, v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		sub, ok := tableType(f)
		if !ok {
			continue
		}
		subPath := join(path, f.key) // not quoted: keys of lb are bare
		switch {
		case f.named:
			subPath += ".NAME"
		case f.Type.Kind() == reflect.Slice:
			subPath += "[]"
		}
		val := reflect.New(sub).Elem()
		defaults.set(val)
		t := Table{Path: subPath, In: f.in, Field: f.Name}
		for _, k := range fieldsOf(sub) {
			if _, ok := tableType(k); !ok {
				t.Keys = append(t.Keys, Key{
					Table: subPath, Name: k.key, Type: typeName(k.Type), Default: formatTOML(val.FieldByIndex(k.Index)),
					In: k.in, Field: k.Name,
				})
			}
		}
		*tables = append(*tables, t)
		addTables(tables, defaults, subPath, val)
	}
}

// field is a field of a struct that has a TOML key.
type field struct {
	reflect.StructField              // Index leads from the outermost struct
	in                  reflect.Type // the struct that declares it
	key                 string
	named               bool // a slice in Go, in TOML a table of tables by name
}

// fieldsOf are the fields of a struct that have a TOML key, with those of its embedded structs, in order. Of
// two with one key the outer is meant, as in Go.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		sf := t.Field(i)
		if sf.Anonymous {
			for _, f := range fieldsOf(sf.Type) {
				f.Index = append([]int{i}, f.Index...)
				fields = append(fields, f)
			}
			continue
		}
		key, options, _ := strings.Cut(sf.Tag.Get("toml"), ",")
		if key == "" || key == "-" {
			continue
		}
		fields = append(fields, field{StructField: sf, in: t, key: key, named: options == "named"})
	}
	return slices.DeleteFunc(fields, func(f field) bool {
		return slices.ContainsFunc(fields, func(other field) bool { return other.key == f.key && len(other.Index) < len(f.Index) })
	})
}

// tableType is the struct that a field holds as a table, by name or in an array of tables. A struct that
// reads itself from text is no table.
func tableType(f field) (t reflect.Type, ok bool) {
	t = f.Type
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t, t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textUnmarshaler)
}

func typeName(t reflect.Type) string {
	switch {
	case t == durationType:
		return "duration"
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		return "string"
	}
	switch k := t.Kind(); {
	case k == reflect.String:
		return "string"
	case k == reflect.Bool:
		return "boolean"
	case k >= reflect.Int && k <= reflect.Uint64:
		return "integer"
	case k == reflect.Float32 || k == reflect.Float64:
		return "number"
	case k == reflect.Slice:
		return "list of " + typeName(t.Elem()) + "s"
	case k == reflect.Map:
		return "table of " + typeName(t.Elem()) + "s"
	}
	panic(fmt.Sprintf("BUG: no config key can have the type %v", t))
}

// formatTOML is a value as TOML writes it.
func formatTOML(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return strconv.Quote(formatDuration(x))
	case fmt.Stringer:
		return strconv.Quote(x.String())
	}
	switch v.Kind() {
	case reflect.String:
		return strconv.Quote(v.String())
	case reflect.Slice:
		elements := make([]string, v.Len())
		for i := range elements {
			elements[i] = formatTOML(v.Index(i))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case reflect.Map:
		var pairs []string
		for _, k := range v.MapKeys() {
			pairs = append(pairs, join("", k.String())+" = "+formatTOML(v.MapIndex(k)))
		}
		slices.Sort(pairs)
		return "{" + strings.Join(pairs, ", ") + "}"
	}
	return fmt.Sprint(v.Interface())
}

// formatDuration is d as a person writes it: "1h", not "1h0m0s", and "75s", not "1m15s".
func formatDuration(d time.Duration) string {
	if d%time.Second == 0 && d%time.Minute != 0 && d.Abs() < 10*time.Minute {
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// nearest is the word that the writer of s may have meant; "" when none is near.
func nearest(s string, words []string) string {
	if len(s) > 64 || len(words) > 1000 {
		return ""
	}
	best, bestDistance := "", max(1, len(s)/3)+1
	for _, w := range words {
		if d := editDistance(strings.ToLower(s), w); d < bestDistance {
			best, bestDistance = w, d
		}
	}
	return best
}

// editDistance is how many letters must be put in, left out, replaced or swapped with the next to turn a into
// b (optimal string alignment).
func editDistance(a, b string) int {
	var before, last, row []int
	row = make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
