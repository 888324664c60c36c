package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/273ebdf9/lb/backends"
)

// Change is one difference between two configs.
type Change struct {
	// Path is the TOML path, with a backend by its name: pools.app.backends.w1.weight.
	Path string
	// From and To are the values as TOML writes them. From is empty for what was added, To for what was
	// removed.
	From, To string
}

// String is PATH: FROM → TO, or PATH: added, or PATH: removed.
func (c Change) String() string {
	switch {
	case c.From == "" && c.To == "":
		return c.Path
	case c.From == "":
		return c.Path + ": added (" + c.To + ")"
	case c.To == "":
		return c.Path + ": removed (" + c.From + ")"
	}
	return c.Path + ": " + c.From + " → " + c.To
}

// Diff lists what is different in to, in the order of to, with what was removed at the end of its table.
// Comments and the order of the tables are no differences; the order of a pool's backends is one.
func Diff(from, to *Config) []Change {
	var d differ
	d.table("", reflect.ValueOf(from).Elem(), reflect.ValueOf(to).Elem())
	return d.changes
}

type differ struct{ changes []Change }

func (d *differ) add(path, from, to string) {
	d.changes = append(d.changes, Change{Path: path, From: from, To: to})
}

// table compares two structs of one type.
func (d *differ) table(path string, from, to reflect.Value) {
	for _, f := range fieldsOf(from.Type()) {
		a, b, key := from.FieldByIndex(f.Index), to.FieldByIndex(f.Index), join(path, f.key)
		_, isTable := tableType(f)
		switch {
		case isTable && f.Type.Kind() == reflect.Slice:
			d.tables(key, a, b)
		case isTable && f.Type.Kind() == reflect.Pointer:
			d.optional(key, a, b)
		case isTable:
			d.table(key, a, b)
		case f.Type.Kind() == reflect.Map:
			d.entries(key, a, b)
		default:
			d.value(key, a, b)
		}
	}
}

// value compares two values of a key. A nil slice is an empty one.
func (d *differ) value(path string, from, to reflect.Value) {
	if a, b := formatTOML(from), formatTOML(to); a != b {
		d.add(path, a, b)
	}
}

// optional compares two tables that may be absent.
func (d *differ) optional(path string, from, to reflect.Value) {
	switch {
	case from.IsNil() && to.IsNil():
	case from.IsNil():
		d.add(path, "", "table")
	case to.IsNil():
		d.add(path, "table", "")
	default:
		d.table(path, from.Elem(), to.Elem())
	}
}

// entries compares two tables of values.
func (d *differ) entries(path string, from, to reflect.Value) {
	var keys []string
	for _, m := range []reflect.Value{from, to} {
		for _, k := range m.MapKeys() {
			keys = append(keys, k.String())
		}
	}
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		var texts [2]string
		for i, m := range []reflect.Value{from, to} {
			if v := m.MapIndex(reflect.ValueOf(k)); v.IsValid() {
				texts[i] = formatTOML(v)
			}
		}
		if texts[0] != texts[1] {
			d.add(join(path, k), texts[0], texts[1])
		}
	}
}

// tables compares two lists of tables, each found by its name.
func (d *differ) tables(path string, from, to reflect.Value) {
	old, now := namesIn(from), namesIn(to)
	for i, name := range now {
		if j := slices.Index(old, name); j >= 0 {
			d.table(join(path, name), from.Index(j), to.Index(i))
		} else {
			d.add(join(path, name), "", summary(to.Index(i)))
		}
	}
	for j, name := range old {
		if !slices.Contains(now, name) {
			d.add(join(path, name), summary(from.Index(j)), "")
		}
	}
	if from.Type().Elem() != reflect.TypeFor[backends.BackendConfig]() {
		return
	}
	old = slices.DeleteFunc(old, func(s string) bool { return !slices.Contains(now, s) })
	now = slices.DeleteFunc(slices.Clone(now), func(s string) bool { return !slices.Contains(old, s) })
	if !slices.Equal(old, now) {
		d.add(path+" (order)", strings.Join(old, ", "), strings.Join(now, ", "))
	}
}

// namesIn are the names of the tables in a list.
func namesIn(list reflect.Value) []string {
	names := make([]string, list.Len())
	for i := range names {
		switch x := list.Index(i).Interface().(type) {
		case backends.BackendConfig:
			names[i] = x.EffectiveName()
		default:
			names[i] = list.Index(i).FieldByName("Name").String()
		}
	}
	return names
}

// summary says of a table that comes or goes what it is.
func summary(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case backends.BackendConfig:
		return x.Address
	case Listener:
		return strings.Join(x.Bind, ", ")
	case Pool:
		var names []string
		for i := range x.Backends {
			names = append(names, x.Backends[i].EffectiveName())
		}
		if x.Workers != nil {
			names = append(names, fmt.Sprintf("%d workers of %q", x.Workers.EffectiveCount(), x.Workers.Command))
		}
		return "backends: " + strings.Join(names, ", ")
	}
	return "table"
}
