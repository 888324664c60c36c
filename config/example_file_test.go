package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The example's form: above a key stand comments; a key that is commented out shows its default. A table may
// be commented out with its keys.
var (
	keyOff  = regexp.MustCompile(`^# ([a-z0-9_]+) = (.*)$`)
	keyLive = regexp.MustCompile(`^([a-z0-9_]+) = (.*)$`)
	headers = regexp.MustCompile(`^(# )?(\[+[a-z.]+\]+)$`)
)

func readExample(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("../config.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(data), "\n")
}

func TestExampleFile_IsAValidConfigWithoutWarnings(t *testing.T) {
	c := parseOK(t, strings.Join(readExample(t), "\n"))
	if len(c.Warnings) > 0 {
		t.Errorf("got warnings %v; want none", c.Warnings)
	}
	pool := c.Pool(c.Listener("web").Pool)
	if got := c.Listeners[0].Bind; !slices.Equal(got, []string{"127.0.0.1:8080"}) || pool.Workers == nil || pool.Workers.Count != 4 || c.Log.Access != "stdout" {
		t.Errorf("got bind %q, workers %+v, access %q; want 127.0.0.1:8080, 4, stdout", got, pool.Workers, c.Log.Access)
	}
}

func TestExampleFile_WhatIsCommentedOutIsTheDefault(t *testing.T) {
	lines := readExample(t)
	want := parseOK(t, strings.Join(lines, "\n"))
	tableOff := false
	for i, line := range lines {
		if m := headers.FindStringSubmatch(line); m != nil {
			tableOff = m[1] != ""
		}
		if !tableOff && keyOff.MatchString(line) {
			lines[i] = strings.TrimPrefix(line, "# ")
		}
	}
	got := parseOK(t, strings.Join(lines, "\n"))
	got.Source, want.Source = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("with every key live: got\n%+v\nwant\n%+v", got, want)
	}
}

func TestExampleFile_HasEveryKeyWithItsDefault(t *testing.T) {
	found := map[string]bool{} // table and key
	tables := Tables()
	var keys map[string]Key // of the table that the line is in
	table, comment := "", ""
	for i, line := range readExample(t) {
		m := keyLive.FindStringSubmatch(line)
		if m == nil {
			m = keyOff.FindStringSubmatch(line)
		}
		switch {
		case headers.MatchString(line):
			line = headers.FindStringSubmatch(line)[2]
			table, keys = tableOf(tables, line)
			if keys == nil {
				t.Errorf("line %d: got the table %s; want one that a config may have", i+1, line)
			}
		case m == nil && strings.HasPrefix(line, "#"):
			comment += strings.TrimPrefix(line, "#")
			continue
		case m != nil:
			k, ok := keys[m[1]]
			if !ok {
				t.Errorf("line %d: got %s; want a key that [%s] may have", i+1, m[1], table)
			}
			if first := !found[table+" "+m[1]]; first {
				found[table+" "+m[1]] = true
				says := regexp.MustCompile(`Default ` + regexp.QuoteMeta(k.Default) + `[.:;]( |$)`)
				if !says.MatchString(comment) && !strings.HasSuffix(comment, "Required.") {
					t.Errorf("line %d: got %q above %s; want it to say Default %s, or Required", i+1, comment, m[1], k.Default)
				}
			}
		}
		comment = ""
	}
	for _, table := range tables {
		for _, k := range table.Keys {
			if !found[table.Path+" "+k.Name] {
				t.Errorf("got no %q in %s; want it with its meaning, its unit and \"Default %s\" above", k.Name, header(table.Path), k.Default)
			}
		}
	}
}

// tableOf is the table that a header of the example stands for, and its keys.
func tableOf(tables []Table, line string) (path string, keys map[string]Key) {
	line = regexp.MustCompile(`^(\[+(?:listeners|pools)\.)[a-z]+`).ReplaceAllString(line, "${1}NAME")
	for _, table := range tables {
		if header(table.Path) == line {
			keys = map[string]Key{}
			for _, k := range table.Keys {
				keys[k.Name] = k
			}
			return table.Path, keys
		}
	}
	return line, nil
}
