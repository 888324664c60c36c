package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// checkLines compares the lines that locate finds, each as "path line", in the order of lines and paths.
func checkLines(t *testing.T, text string, want ...string) {
	t.Helper()
	at, _ := locate(text)
	var got []string
	for path, line := range at {
		got = append(got, fmt.Sprintf("%03d %s", line, path))
	}
	slices.Sort(got)
	for i, s := range got {
		line, path, _ := strings.Cut(s, " ")
		got[i] = path + " " + strings.TrimLeft(line, "0")
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s\nin:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), text)
	}
}

func TestLocate_Keys(t *testing.T) {
	checkLines(t, "a = 1\r\n\tb-2_ =\t'x'\n\n# c = 1\nd=2 # e = 3", "a 1", "b-2_ 2", "d 5")
	checkLines(t, `"a b" = 1`+"\n"+`'c"d' = 2`+"\n"+`"e\"\u0041" = 3`+"\n"+`"f" = 4`+"\n"+`"" = 5`,
		`"a b" 1`, `"c\"d" 2`, `"e\"A" 3`, `f 4`, `"" 5`)
	checkLines(t, "a.b . \"c.d\" = 1\na.e = 2", "a 1", "a.b 1", `a.b."c.d" 1`, "a.e 2")
}

func TestLocate_Tables(t *testing.T) {
	checkLines(t, "[a]\nx = 1\n[ b . 'c.d' ] # [e]\nx = 2", "a 1", "a.x 2", "b 3", `b."c.d" 3`, `b."c.d".x 4`)
	checkLines(t, "[a.b]\nx = 1\n[a]\ny = 2", "a.b 1", "a.b.x 2", "a 3", "a.y 4") // a header beats a mention
}

func TestLocate_ArraysOfTables(t *testing.T) {
	checkLines(t, "[[a]]\nx = 1\n[[a]]\n[a.b]\ny = 2\n[[a.c]]\nz = 3\n[[a.c]]\n",
		"a 1", "a[0] 1", "a[0].x 2", "a[1] 3", "a[1].b 4", "a[1].b.y 5", "a[1].c 6", "a[1].c[0] 6", "a[1].c[0].z 7", "a[1].c[1] 8")
}

func TestLocate_ArraysAndInlineTables(t *testing.T) {
	checkLines(t, "a = [1, [\n2], # ]\n'x,]',\n]\nb = 5", "a 1", "a[0] 1", "a[1] 1", "a[1][0] 2", "a[2] 3", "b 5")
	checkLines(t, "a = {b = 1, c.d = [{e = 1}\n, {e = '}'}]}\nf = {}",
		"a 1", "a.b 1", "a.c 1", "a.c.d 1", "a.c.d[0] 1", "a.c.d[0].e 1", "a.c.d[1] 2", "a.c.d[1].e 2", "f 3")
	checkLines(t, "a = {\n  b = 1, # }\n  c = 2,\n}\nd = 1", "a 1", "a.b 2", "a.c 3", "d 5")
}

func TestLocate_Strings(t *testing.T) {
	for _, value := range []string{
		`"# \" ["`, `'# \'`, `""`, `''`, `"\\"`,
		`"""x"""`, `""""""`, `"""""x"""""`, `"""\""""`, `"""\\"""`, `'''\'''`, `'''''x'''''`,
	} {
		checkLines(t, "a = "+value+"\nb = 2", "a 1", "b 2")
	}
	checkLines(t, "a = \"\"\"\n[x]\ny = 1\n\\\n\"\"\"\nb = 2", "a 1", "b 6")
	checkLines(t, "a = '''\n\\'''\nb = 2", "a 1", "b 3")
	checkLines(t, "a = 1979-05-27 07:32:00Z\nb = 0x_\nc = +inf # d = 1\n", "a 1", "b 2", "c 3")
}

func TestLocate_StopsWhereTheTextIsNoTOML(t *testing.T) {
	for _, text := range []string{
		"a = 1\n= 2", "a = 1\nb", "a = 1\n[", "a = 1\n[b", "a = 1\n[[b]\nc = 1", "a = 1\n\"b", "a = 1\n\"b\\", "a = 1\n\"\\x\" = 1",
		"a = 1\n[]", "a = 1\nä = 2",
	} {
		checkLines(t, text, "a 1")
	}
	for _, text := range []string{"a =", "a = \"", "a = \"\\", "a = \"\n\"", "a = '", `a = """x""`, `a = """\`, "a = {", "a = {b", "a = {]"} {
		checkLines(t, text, "a 1")
	}
	checkLines(t, "a = [1 2]\nb = 1", "a 1", "a[0] 1", "b 2") // a scalar's form is the parser's business
	checkLines(t, "a = [''''b]\nb = 1", "a 1", "a[0] 1")
}

func TestLocate_SaysWhereTextNestsTooDeep(t *testing.T) {
	for _, f := range []struct {
		text string
		want int
	}{
		{"\na = " + strings.Repeat("[\n", maxDepth-1), 0},
		{"\na = " + strings.Repeat("[", maxDepth), 2},
		{"\na = " + strings.Repeat("[\n", maxDepth), 2 + maxDepth},
		{"\na" + strings.Repeat(".a", maxDepth-1) + " = 1", 0},
		{"\na" + strings.Repeat(".a", maxDepth) + " = 1", 2},
	} {
		if _, got := locate(f.text); got != f.want {
			t.Errorf("got line %d; want %d in:\n%s", got, f.want, f.text)
		}
	}
}

func TestPath_ParentOfKeysAndElements(t *testing.T) {
	for path, want := range map[string]string{
		"a":               "",
		"a.b.c":           "a.b",
		"a.b[12]":         "a.b",
		"a.b[12].c":       "a.b[12]",
		`a."b.c[0]"`:      "a",
		`a."b.c".d`:       `a."b.c"`,
		`a."b\".\\\".c"`:  "a",
		`a."b\\".c`:       `a."b\\"`,
		`a."b\\"`:         "a",
		`"a.b"`:           "",
		`""`:              "",
		`a.""`:            "a",
		`"a[0]"[1]`:       `"a[0]"`,
		join("a", "x\\"):  "a",
		join("a", `"."`):  "a",
		index("a", 1):     "a",
		join("a.b", "\n"): "a.b",
	} {
		if got := parent(path); got != want {
			t.Errorf("parent of %s: got %s; want %s", path, got, want)
		}
	}
}
