// Reference writes docs/config.md, the reference of every config key, and the JSON Schema of the config, from
// the Config types and their doc comments.
//
//	reference MARKDOWN SCHEMA
//
// It is run by `go generate ./config`. Its test fails when one of the files is stale.
package main

import (
	_ "embed"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"github.com/273ebdf9/lb/config"
)

//go:embed intro.md
var intro string

const notice = "<!-- Generated from the doc comments of the Config types by `go generate ./config`. Do not edit. -->\n\n"

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: reference MARKDOWN SCHEMA")
	}
	for i, render := range []func() ([]byte, error){render, renderSchema} {
		text, err := render()
		if err == nil {
			err = os.WriteFile(os.Args[i+1], text, 0o644)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
}

// render is docs/config.md. The working directory must be in the module, as the sources are read.
func render() ([]byte, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	s := sources{root: root, docs: docsByType{}}
	var b strings.Builder
	b.WriteString(notice + intro)
	for _, table := range config.Tables() {
		doc, err := s.doc(table.In, table.Field)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s", header(table.Path), markdown(doc, table.Field, table.In))
		for _, k := range table.Keys {
			doc, err := s.doc(k.In, k.Field)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&b, "\n### %s\n\n%s\n\n%s", k.Name, summary(k, doc), markdown(doc, k.Field, k.In))
		}
	}
	return []byte(b.String()), nil
}

// header is a table's path as a file has it.
func header(path string) string {
	if inner, ok := strings.CutSuffix(path, "[]"); ok {
		return "[[" + inner + "]]"
	}
	return "[" + path + "]"
}

// summary is a key's type, and its default unless it is required or the doc says what its absence means.
func summary(k config.Key, doc string) string {
	switch {
	case required.MatchString(doc):
		return k.Type + ", required"
	case k.Default == `""` && strings.Contains(doc, "Default: "), k.Default == `""` && requiredFor.MatchString(doc):
		return k.Type
	}
	return k.Type + ", default `" + k.Default + "`"
}

var (
	required    = regexp.MustCompile(`(Required|At least one)\.`)
	requiredFor = regexp.MustCompile(`Required for `)
)

// sources are the doc comments of the module's Config types.
type sources struct {
	root string // the directory of go.mod
	docs docsByType
}

// docsByType has the doc comments of a struct's fields by their names.
type docsByType map[reflect.Type]map[string]string

// doc is the doc comment of a field of a struct.
func (s *sources) doc(t reflect.Type, field string) (string, error) {
	fields, ok := s.docs[t]
	if !ok {
		var err error
		if fields, err = s.parse(t); err != nil {
			return "", err
		}
		s.docs[t] = fields
	}
	doc := fields[field]
	if doc == "" {
		return "", fmt.Errorf("cannot find the doc comment of the field %v.%s", t, field)
	}
	return doc, nil
}

// parse reads the doc comments of a struct's fields from the sources of its package.
func (s *sources) parse(t reflect.Type) (map[string]string, error) {
	module := strings.TrimSuffix(reflect.TypeFor[config.Config]().PkgPath(), "/config")
	dir := filepath.Join(s.root, strings.TrimPrefix(t.PkgPath(), module))
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	docs := map[string]string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("cannot read the doc comments of %v: %w", t, err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != t.Name() {
				return true
			}
			if st, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					for _, name := range f.Names {
						docs[name.Name] = f.Doc.Text()
					}
				}
			}
			return false
		})
	}
	return docs, nil
}

// markdown is the doc comment of a field for readers of TOML: without the name that Go's comments begin with,
// and with keys in place of the struct's field names.
func markdown(doc, field string, in reflect.Type) string {
	if text, ok := cutSubject(doc, field); ok {
		doc = strings.ToUpper(text[:1]) + text[1:]
	}
	var p comment.Parser
	text := string((&comment.Printer{}).Markdown(p.Parse(doc)))
	text = underscored.ReplaceAllStringFunc(text, func(word string) string { return "`" + strings.ReplaceAll(word, `\_`, "_") + "`" })
	for i := range in.NumField() {
		f := in.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if key != "" && key != "-" {
			word := regexp.MustCompile(`(^|[\s("])` + f.Name + `($|[\s.,:;)"'])`)
			text = word.ReplaceAllString(text, "${1}`"+key+"`${2}")
		}
	}
	return text
}

// underscored is a word such as max_conns as Markdown escapes it; it is a name of something.
var underscored = regexp.MustCompile(`[A-Za-z]+(\\_[A-Za-z]+)+`)

// cutSubject cuts "Field is" or "Field are" from the beginning.
func cutSubject(doc, field string) (rest string, ok bool) {
	for _, verb := range []string{" is ", " are "} {
		if rest, ok = strings.CutPrefix(doc, field+verb); ok && rest != "" {
			return rest, true
		}
	}
	return "", false
}

// moduleRoot is the directory of the go.mod above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("cannot find go.mod above the working directory")
		}
	}
}
