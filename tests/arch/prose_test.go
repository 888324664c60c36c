package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// columns is how wide a line with a comment may be. A tab counts as four.
const columns = 110

// oldNames are identifiers of words that lb invented for what the field has a word for. A pattern matches a
// whole identifier.
var oldNames = []struct{ pattern, instead string }{
	{`live|liveHead`, "snapshot, or what is live: liveSessions"},
	{`[aA]dopt\w*`, "takeOver"},
	{`goOn`, "takeOver, or resume"},
	{`goBack`, "rollBack"},
	{`[hH]eld`, "buffered, pending, or deferred"},
	{`[rR]oll`, "rollout, or restart"},
	{`arrange`, "replaceMembers"},
	{`advice|advised`, "warnings"},
	{`\w*[fF]leet\w*`, "workers, workerPool, or benchWorkers"},
	{`tell|told`, "emit, report, or log"},
}

func TestProse_CommentsAreNarrowAndNamesAreTheFields(t *testing.T) {
	const root = "../.."
	cmd := exec.Command("git", "ls-files", "*.go")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("git ls-files: %v: which files are the project's is not known outside a checkout", err)
	}
	patterns := make([]*regexp.Regexp, len(oldNames))
	for i, old := range oldNames {
		patterns[i] = regexp.MustCompile(`^(?:` + old.pattern + `)$`)
	}
	for name := range strings.FieldsSeq(string(out)) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, group := range file.Comments {
			if strings.HasPrefix(group.Text(), "Output:") {
				continue // what an example prints is as wide as it is
			}
			for _, comment := range group.List {
				at := fset.Position(comment.Pos())
				for i, line := range strings.Split(comment.Text, "\n") {
					width := columnsOf(line)
					if i == 0 {
						width += columnsOf(lines[at.Line-1][:at.Column-1])
					}
					if width > columns && !strings.HasPrefix(line, "//go:") && !strings.HasPrefix(line, "//  ") && !strings.HasPrefix(line, "//\t") {
						t.Errorf("%s:%d: the comment ends in column %d; wrap it at %d", name, at.Line+i, width, columns)
					}
				}
			}
		}
		if !strings.HasSuffix(name, "_test.go") {
			checkErrorPrefixes(t, fset, file)
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		ast.Inspect(file, func(node ast.Node) bool {
			var ident *ast.Ident
			switch node := node.(type) {
			case *ast.FuncDecl:
				ident = node.Name
			case *ast.Ident:
				ident = node
			}
			if ident == nil || ident == node && (ident.Obj == nil || ident.Obj.Pos() != ident.Pos()) {
				return true // a use; its declaration says it once
			}
			for i, old := range oldNames {
				if patterns[i].MatchString(ident.Name) {
					t.Errorf("%s: %s: say %s instead", fset.Position(ident.Pos()), ident.Name, old.instead)
				}
			}
			return true
		})
	}
}

func columnsOf(text string) int { return utf8.RuneCountInString(text) + 3*strings.Count(text, "\t") }

// checkErrorPrefixes finds errors that begin with the name of their Go package, which says nothing to a user.
func checkErrorPrefixes(t *testing.T, fset *token.FileSet, file *ast.File) {
	t.Helper()
	ast.Inspect(file, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		maker, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || maker.Sel.Name != "New" && maker.Sel.Name != "Errorf" {
			return true
		}
		text, ok := call.Args[0].(*ast.BasicLit)
		if ok && strings.HasPrefix(text.Value, `"`+file.Name.Name+": ") {
			t.Errorf("%s: the error %s begins with its package; say what happened and where", fset.Position(text.Pos()), text.Value)
		}
		return true
	})
}
