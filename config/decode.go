package config

import (
	"encoding"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	durationType    = reflect.TypeFor[time.Duration]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// decoder puts what the TOML parser read into a Config, and collects the faults. The parser's own decoder
// stops at the first one, takes Weight for weight, says no index in an array of tables, and reads a bare
// integer as nanoseconds.
type decoder struct {
	defaults defaultsByType
	tables   []Table
	at       map[string]int // path → line
	faults   []Fault
	faulty   map[string]bool // paths of faults: true; the tables and arrays around them: false
	warnings []Fault
	textOnly bool // ask nothing of the host
}

func (d *decoder) fault(path, format string, args ...any) {
	d.faults = append(d.faults, Fault{Line: d.line(path), Path: path, Message: fmt.Sprintf(format, args...)})
	d.faulty[path] = true
	for path = parent(path); path != ""; path = parent(path) {
		if _, ok := d.faulty[path]; !ok {
			d.faulty[path] = false
		}
	}
}

// isFaulty reports whether there is a fault at path, in it or around it already, so that what else is said
// about path may be a consequence.
func (d *decoder) isFaulty(path string) bool {
	if _, ok := d.faulty[path]; ok {
		return true
	}
	for ; path != ""; path = parent(path) {
		if d.faulty[path] {
			return true
		}
	}
	return false
}

func (d *decoder) warn(path, format string, args ...any) {
	d.warnings = append(d.warnings, Fault{Line: d.line(path), Path: path, Message: fmt.Sprintf(format, args...)})
}

// line is the line of a key; of one that is not in the file, the line of the table that it belongs in, or 0.
func (d *decoder) line(path string) int {
	for ; path != ""; path = parent(path) {
		if n, ok := d.at[path]; ok {
			return n
		}
	}
	return 0
}

// isSet reports whether the file has the key.
func (d *decoder) isSet(path string) bool {
	_, ok := d.at[path]
	return ok
}

// sortedKeys are a table's keys in the order of the file.
func (d *decoder) sortedKeys(path string, table map[string]any) []string {
	return slices.SortedFunc(maps.Keys(table), func(a, b string) int {
		if la, lb := d.at[join(path, a)], d.at[join(path, b)]; la != lb {
			return la - lb
		}
		return strings.Compare(a, b)
	})
}

// value puts one TOML value into v.
func (d *decoder) value(path string, raw any, v reflect.Value) {
	if v.Type() == durationType {
		d.duration(path, raw, v)
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if s, ok := raw.(string); !ok {
			d.wrongType(path, raw, "a string", quotedForm(raw))
		} else if err := u.UnmarshalText([]byte(s)); err != nil {
			d.fault(path, "%s", oneLine(err.Error()))
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		if s, ok := raw.(string); ok {
			v.SetString(s)
		} else {
			d.wrongType(path, raw, "a string", quotedForm(raw))
		}
	case reflect.Bool:
		if b, ok := raw.(bool); ok {
			v.SetBool(b)
		} else {
			d.wrongType(path, raw, "true or false", "")
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.integer(path, raw, v)
	case reflect.Float32, reflect.Float64:
		switch n := raw.(type) {
		case float64:
			v.SetFloat(n)
		case int64:
			v.SetFloat(float64(n))
		default:
			d.wrongType(path, raw, "a number", bareForm(raw, func(s string) error { _, err := strconv.ParseFloat(s, 64); return err }))
		}
	case reflect.Pointer: // an optional table
		v.Set(reflect.New(v.Type().Elem()))
		d.defaults.set(v.Elem())
		d.value(path, raw, v.Elem())
	case reflect.Struct:
		d.table(path, raw, v)
	case reflect.Slice:
		d.list(path, raw, v)
	case reflect.Map:
		d.mapping(path, raw, v)
	default:
		panic(fmt.Sprintf("BUG: no config key can have the type %v of %s", v.Type(), path))
	}
}

// duration refuses a bare integer: it has no unit.
func (d *decoder) duration(path string, raw any, v reflect.Value) {
	switch x := raw.(type) {
	case string:
		n, err := time.ParseDuration(x)
		if err != nil {
			d.fault(path, `%s is not a duration; write a number and a unit of ms, s, m or h, such as "30s"`, brief(x))
			return
		}
		v.SetInt(int64(n))
	case int64, float64:
		d.fault(path, `%v is a number without a unit; write "%vs" for seconds`, x, x)
	default:
		d.wrongType(path, raw, "a duration", `"30s"`)
	}
}

func (d *decoder) integer(path string, raw any, v reflect.Value) {
	n, ok := raw.(int64)
	switch {
	case !ok:
		d.wrongType(path, raw, "an integer", bareForm(raw, func(s string) error { _, err := strconv.Atoi(s); return err }))
	case v.CanInt() && !v.OverflowInt(n):
		v.SetInt(n)
	case v.CanUint() && n >= 0 && !v.OverflowUint(uint64(n)):
		v.SetUint(uint64(n))
	case v.CanUint() && n < 0:
		d.fault(path, "%d is negative", n)
	default:
		limit := uint64(math.MaxUint64) >> (64 - v.Type().Bits())
		if v.CanInt() {
			limit >>= 1
		}
		d.fault(path, "%d is out of range; the limit is %d", n, limit)
	}
}

// table puts a TOML table into the struct v, which has its defaults.
func (d *decoder) table(path string, raw any, v reflect.Value) {
	table, ok := raw.(map[string]any)
	if !ok {
		d.wrongType(path, raw, "a table", "")
		return
	}
	fields := fieldsOf(v.Type())
	for _, key := range d.sortedKeys(path, table) {
		keyPath := join(path, key)
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		switch {
		case i < 0:
			d.unknownKey(keyPath, key, fields)
		case fields[i].named:
			d.namedTables(keyPath, table[key], v.FieldByIndex(fields[i].Index))
		default:
			d.value(keyPath, table[key], v.FieldByIndex(fields[i].Index))
		}
	}
}

// unknownKey names the key that was meant, the tables where the key belongs, or all the keys of this table.
func (d *decoder) unknownKey(path, key string, fields []field) {
	var keys, elsewhere []string
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	for _, t := range d.tables {
		if slices.ContainsFunc(t.Keys, func(k Key) bool { return k.Name == key }) {
			elsewhere = append(elsewhere, header(t.Path))
		}
	}
	switch near := nearest(key, keys); {
	case near != "":
		d.fault(path, "unknown key; did you mean %q?", near)
	case len(elsewhere) > 0:
		d.fault(path, "unknown key here; it belongs in %s", strings.Join(elsewhere, " or "))
	default:
		d.fault(path, "unknown key; here may stand %s", strings.Join(keys, ", "))
	}
}

// header is a table of Tables as a file has it: [pools.NAME], [[pools.NAME.backends]].
func header(path string) string {
	if inner, ok := strings.CutSuffix(path, "[]"); ok {
		return "[[" + inner + "]]"
	}
	return "[" + path + "]"
}

// namedTables puts tables such as [pools.NAME] into a slice of structs that have a field Name, in the order
// of the file.
func (d *decoder) namedTables(path string, raw any, v reflect.Value) {
	table, ok := raw.(map[string]any)
	if !ok {
		d.fault(path, "%s where tables belong; write [%s.NAME]", describe(raw), path)
		return
	}
	names := d.sortedKeys(path, table)
	v.Set(reflect.MakeSlice(v.Type(), len(names), len(names)))
	for i, name := range names {
		element := v.Index(i)
		d.defaults.set(element)
		element.FieldByName("Name").SetString(name)
		if _, ok := table[name].(map[string]any); !ok {
			d.fault(join(path, name), "%s where a table belongs; write [%s.NAME] above it", describe(table[name]), path)
			continue
		}
		d.value(join(path, name), table[name], element)
	}
}

// list puts a TOML array, or an array of tables, into a slice.
func (d *decoder) list(path string, raw any, v reflect.Value) {
	array := reflect.ValueOf(raw) // []any, or []map[string]any for [[tables]]
	if array.Kind() != reflect.Slice {
		form := ""
		switch {
		case v.Type().Elem().Kind() == reflect.Struct:
			form = "[[" + path + "]]"
		case v.Type().Elem().Kind() == reflect.String:
			form = "[" + quotedForm(raw) + "]"
		}
		d.wrongType(path, raw, "a list", form)
		return
	}
	if array.Len() == 0 { // nil, as it is where the key is absent and as the defaults have it
		v.SetZero()
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), array.Len(), array.Len()))
	for i := range array.Len() {
		d.defaults.set(v.Index(i))
		d.value(index(path, i), array.Index(i).Interface(), v.Index(i))
	}
}

// mapping puts a TOML table with keys of the writer's choice into a map.
func (d *decoder) mapping(path string, raw any, v reflect.Value) {
	table, ok := raw.(map[string]any)
	if !ok {
		d.wrongType(path, raw, "a table", "")
		return
	}
	if len(table) == 0 { // as for lists
		v.SetZero()
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(table)))
	for _, key := range d.sortedKeys(path, table) {
		element := reflect.New(v.Type().Elem()).Elem()
		d.defaults.set(element)
		d.value(join(path, key), table[key], element)
		v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), element)
	}
}

// wrongType describes what was found, what belongs there, and how to write it where that is known.
func (d *decoder) wrongType(path string, raw any, want, write string) {
	if write != "" {
		write = "; write " + write
	}
	d.fault(path, "%s where %s belongs%s", describe(raw), want, write)
}

// describe is a value and its type in words.
func describe(raw any) string {
	switch x := raw.(type) {
	case string:
		return brief(x) + " is a string"
	case int64:
		return fmt.Sprintf("%d is an integer", x)
	case float64:
		return fmt.Sprintf("%v is a number", x)
	case bool:
		return fmt.Sprintf("%v is a boolean", x)
	case time.Time:
		return "this is a date"
	case map[string]any:
		return "this is a table"
	case []map[string]any:
		return "this is an array of tables"
	}
	return "this is a list"
}

// brief is s quoted, cut where it is too long for a message.
func brief(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:60]) + "…"
	}
	return strconv.Quote(s)
}

// quotedForm is a value that should have been a string, as one.
func quotedForm(raw any) string {
	switch x := raw.(type) {
	case string:
		return brief(x)
	case int64, float64, bool:
		return fmt.Sprintf(`"%v"`, x)
	}
	return ""
}

// bareForm is a string that should have been a number, as one.
func bareForm(raw any, parse func(string) error) string {
	if s, ok := raw.(string); ok && parse(s) == nil {
		return s
	}
	return ""
}
