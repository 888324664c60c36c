package config

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// FuzzParse: whatever the text, there is a valid Config or a list of faults inside of the file; and every key
// that the parser reads has a line. The go command minimizes what it finds for up to a minute each, at 0
// execs/sec: shorten that with -fuzzminimizetime 20x.
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../config.example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	for _, seed := range []string{
		app, app + app, "", "\xef\xbb\xbf", "[a]\r\n\"b\\u0041\".'c' = 1\n[[d.e]]\n[[d.e]]\nf.g = [{h = '''\n'''}, 1]\n",
		"[[a]]\n[a.b]\n[[a.b.c]]\nx = {y = [1, 2,\n3], z = 1979-05-27 07:32:00}\n", "a = \"\"\"\\\n  x\"\"\"\"\"\nb = 1",
		"[listeners]\nx.bind = ':1'\n[pools.\"a.b\"]\nhealth.jitter = nan\n", "[proxy]\nloops = 99999999999\nstop_timeout = '-1h'",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x", data)
		if err != nil {
			checkError(t, err, data)
		} else if len(c.Listeners) == 0 || len(c.Pools) == 0 || c.Pool(c.Listeners[0].Pool) == nil {
			t.Errorf("got no fault; want a listener with a pool in %+v", c)
		}

		if _, ok := checkText(data); !ok {
			return
		}
		at, tooDeep := locate(string(data))
		var raw map[string]any
		if tooDeep == 0 && decodeTOML(string(data), &raw) == nil {
			checkLocated(t, at, "", raw)
		}
	})
}

func checkError(t *testing.T, err error, data []byte) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || len(e.Faults) == 0 {
		t.Fatalf("got %v; want an *Error with faults", err)
	}
	lines := strings.Count(string(data), "\n") + 1
	for _, f := range e.Faults {
		if f.Line < 0 || f.Line > lines || f.Message == "" || strings.ContainsAny(f.String(), "\n\r\x1b") {
			t.Errorf("got fault %q; want one line, with a line number within 0..%d", f, lines)
		}
		if strings.Contains(f.Message, "parser failed") {
			t.Errorf("got %q; want the parser not to panic", f)
		}
	}
}

// checkLocated checks that every key of a value has a line.
func checkLocated(t *testing.T, at map[string]int, path string, value any) {
	t.Helper()
	if _, ok := at[path]; !ok && path != "" {
		t.Errorf("got no line for %s; want one", path)
	}
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			checkLocated(t, at, join(path, key), inner)
		}
	case []map[string]any:
		for i, inner := range v {
			checkLocated(t, at, index(path, i), inner)
		}
	case []any:
		for i, inner := range v {
			checkLocated(t, at, index(path, i), inner)
		}
	}
}
