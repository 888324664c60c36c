package config

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// shapes has what a Config type may have and none has yet, so that the next one needs no change here.
type shapes struct {
	Mode     uint8                   `toml:"mode"`
	Small    int8                    `toml:"small"`
	Ratio    float32                 `toml:"ratio"`
	On       bool                    `toml:"on"`
	Waits    []time.Duration         `toml:"waits"`
	Split    map[string]int          `toml:"split"`
	Allow    []netip.Prefix          `toml:"allow"`
	Optional *part                   `toml:"optional"`
	Absent   *part                   `toml:"absent"`
	ByName   map[string]part         `toml:"by_name"`
	Nested   map[string][]netip.Addr `toml:"nested"`
	Ignored  chan int                `toml:"-"`
}

type part struct {
	Count int `toml:"count"`
}

func decodeShapes(t *testing.T, text string) (shapes, []string) {
	t.Helper()
	var raw map[string]any
	if err := decodeTOML(text, &raw); err != nil {
		t.Fatal(err)
	}
	at, _ := locate(text)
	d := decoder{defaults: byType(part{Count: 7}), at: at, faulty: map[string]bool{}}
	var s shapes
	d.value("", raw, reflect.ValueOf(&s).Elem())
	sortFaults(d.faults)
	var faults []string
	for _, f := range d.faults {
		f.File = "x"
		faults = append(faults, f.String())
	}
	return s, faults
}

func TestDecoder_TypesThatAConfigMayHave(t *testing.T) {
	got, faults := decodeShapes(t, `
mode = 255
small = -128
ratio = 1
on = true
waits = ["1s", "2s"]
split = {blue = 90, "light green" = 10}
allow = ["10.0.0.0/8", "::1/128"]
by_name.a = {}
by_name.b = {count = 0}
nested.x = ["::1"]
[optional]
`)
	want := shapes{
		Mode: 255, Small: -128, Ratio: 1, On: true, Waits: []time.Duration{time.Second, 2 * time.Second},
		Split:    map[string]int{"blue": 90, "light green": 10},
		Allow:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Optional: &part{Count: 7},
		ByName:   map[string]part{"a": {7}, "b": {0}},
		Nested:   map[string][]netip.Addr{"x": {netip.MustParseAddr("::1")}},
	}
	if len(faults) > 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, faults %v; want %+v", got, faults, want)
	}
}

func TestDecoder_FaultsOfThoseTypes(t *testing.T) {
	_, got := decodeShapes(t, `
mode = 256
small = -129
on = "yes"
waits = ["1s",
2]
split = {blue = 90,
  "light green" = "10"}
allow = ["10.0.0.0/8",
  "10.0.0.1",
  8]
by_name.a = {cuont = 1}
nested = "::1"
optional = 1
`)
	want := []string{
		`x:2: mode: 256 is out of range; the limit is 255`,
		`x:3: small: -129 is out of range; the limit is 127`,
		`x:4: on: "yes" is a string where true or false belongs`,
		`x:6: waits[1]: 2 is a number without a unit; write "2s" for seconds`,
		`x:8: split."light green": "10" is a string where an integer belongs; write 10`,
		`x:10: allow[1]: netip.ParsePrefix("10.0.0.1"): no '/'`,
		`x:11: allow[2]: 8 is an integer where a string belongs; write "8"`,
		`x:12: by_name.a.cuont: unknown key; did you mean "count"?`,
		`x:13: nested: "::1" is a string where a table belongs`,
		`x:14: optional: 1 is an integer where a table belongs`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, got := decodeShapes(t, "mode = -1"); !slices.Equal(got, []string{"x:1: mode: -1 is negative"}) {
		t.Errorf("got %v; want -1 to be negative", got)
	}
}

func TestTables_EveryConfigTypeHasItsDefault(t *testing.T) {
	defaults := newDefaults()
	for _, table := range Tables() {
		for _, k := range table.Keys {
			if _, ok := defaults[k.In]; !ok {
				t.Errorf("%v, which has the key %s of [%s]: got no default; want one in newDefaults", k.In, k.Name, table.Path)
			}
		}
	}
}

func TestTables_KeysAreBareAndTyped(t *testing.T) {
	var paths []string
	for _, table := range Tables() {
		paths = append(paths, table.Path)
		for _, k := range table.Keys {
			if !isBare(k.Name) || k.Type == "" || k.Default == "" || k.Table != table.Path {
				t.Errorf("got %+v; want a bare name, a type, a default and the table %s", k, table.Path)
			}
		}
	}
	want := []string{"proxy", "admin", "log", "listeners.NAME", "pools.NAME", "pools.NAME.health", "pools.NAME.backends[]"}
	for _, path := range want {
		if !slices.Contains(paths, path) {
			t.Errorf("got %v; want %s in it", paths, path)
		}
	}
}

func TestFormatTOML_WritesAsPeopleDo(t *testing.T) {
	for _, f := range []struct {
		value any
		want  string
	}{
		{time.Hour, `"1h"`}, {75 * time.Second, `"75s"`}, {10 * time.Minute, `"10m"`}, {time.Duration(0), `"0s"`},
		{90 * time.Minute, `"1h30m"`}, {250 * time.Millisecond, `"250ms"`}, {3601 * time.Second, `"1h0m1s"`},
		{5, "5"}, {0.1, "0.1"}, {true, "true"}, {"x", `"x"`}, {[]string{"a", "b"}, `["a", "b"]`}, {[]string(nil), "[]"},
		{map[string]int{"b c": 1, "a": 2}, `{"b c" = 1, a = 2}`}, {netip.MustParseAddr("::1"), `"::1"`},
	} {
		if got := formatTOML(reflect.ValueOf(f.value)); got != f.want {
			t.Errorf("%v: got %s; want %s", f.value, got, f.want)
		}
	}
}

func TestNearest_FindsTheWordThatWasMeant(t *testing.T) {
	words := []string{"idle_timeout", "connect_timeout", "max_conns", "http", "rise"}
	for s, want := range map[string]string{
		"idle_timout": "idle_timeout", "IdleTimeout": "idle_timeout", "maxconn": "max_conns", "maxconns": "max_conns",
		"htpt": "http", "ries": "rise", "risa": "rise", "rose": "rise", "fall": "", "x": "", "": "",
	} {
		if got := nearest(s, words); got != want {
			t.Errorf("%q: got %q; want %q", s, got, want)
		}
	}
}
