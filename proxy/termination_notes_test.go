package proxy

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestTerminationNotes_HaveEveryTerminationOfTheCode reads which terminations the package can give, and finds
// each of them explained, once, and no other.
func TestTerminationNotes_HaveEveryTerminationOfTheCode(t *testing.T) {
	var noted []string
	for _, n := range TerminationNotes {
		noted = append(noted, n.Codes...)
		if n.Means == "" || n.Do == "" {
			t.Errorf("%v: has no meaning or nothing to do", n.Codes)
		}
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(noted))); len(sorted) != len(noted) {
		t.Errorf("terminations that are explained: got %v; want each once", noted)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	given, by := map[string]bool{}, map[byte]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.CompositeLit:
				if kind, ok := node.Type.(*ast.Ident); ok && kind.Name == "Termination" && len(node.Elts) == 2 {
					first, second := letter(node.Elts[0]), letter(node.Elts[1])
					if first != 0 && second != 0 {
						given[string([]byte{first, second})] = true
					}
				}
			case *ast.CallExpr:
				var name string
				switch f := node.Fun.(type) {
				case *ast.SelectorExpr:
					name = f.Sel.Name
				case *ast.Ident:
					name = f.Name
				}
				if name != "endedBy" && name != "closeAll" {
					break
				}
				if c := letter(node.Args[len(node.Args)-1]); c != 0 {
					by[c] = true
				}
			}
			return true
		})
	}
	if len(given) < 16 || len(by) < 3 {
		t.Fatalf("terminations in the code: got %v and %v; want at least 16 and 3", given, by)
	}
	for code := range given {
		if !slices.Contains(noted, code) {
			t.Errorf("%s: the code gives it, and nothing explains it", code)
		}
	}
	for c := range by {
		if !slices.ContainsFunc(noted, func(code string) bool { return code[0] == c }) {
			t.Errorf("%c and a phase: the code gives it, and nothing explains it", c)
		}
	}
	for _, code := range noted {
		if !given[code] && !(by[code[0]] && slices.Contains(phaseLetters[1:], code[1])) {
			t.Errorf("%s: is explained, and the code does not give it", code)
		}
	}
}

// letter returns the character of a literal; 0 for anything else.
func letter(e ast.Expr) byte {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != gotoken.CHAR {
		return 0
	}
	c, _, _, err := strconv.UnquoteChar(strings.Trim(lit.Value, "'"), '\'')
	if err != nil {
		return 0
	}
	return byte(c)
}
