package main

import (
	"bytes"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/config"
)

func TestReference_IsUpToDate(t *testing.T) {
	want, err := render()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("docs/config.md is stale: run go generate ./config")
	}
}

func TestSchema_IsUpToDate(t *testing.T) {
	want, err := renderSchema()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(config.Schema, want) {
		t.Errorf("config/lb.schema.json is stale: run go generate ./config")
	}
}

func TestReference_HasEveryKey(t *testing.T) {
	text, err := render()
	if err != nil {
		t.Fatal(err)
	}
	_, sections, _ := strings.Cut(string(text), "\n## ")
	for _, table := range config.Tables() {
		for _, section := range strings.Split(sections, "\n## ") {
			if !strings.HasPrefix(section, header(table.Path)+"\n") {
				continue
			}
			for _, k := range table.Keys {
				if !strings.Contains(section, "\n### "+k.Name+"\n\n"+k.Type) {
					t.Errorf("%s: got no heading %s with its type; want one", table.Path, k.Name)
				}
			}
		}
	}
}

// The doc comment of a field says its default in words of its own, so it could fall behind the code.
func TestReference_DocCommentsSayTheDefault(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	s := sources{root: root, docs: map[reflect.Type]map[string]string{}}
	for _, table := range config.Tables() {
		for _, k := range table.Keys {
			doc, err := s.doc(k.In, k.Field)
			if err != nil {
				t.Fatal(err)
			}
			doc = strings.ReplaceAll(doc, "\n", " ")
			bare := strings.Trim(k.Default, `"`)
			says := regexp.MustCompile(`(Default:? "?` + regexp.QuoteMeta(bare) + `"?[.:;, ]|"?` + regexp.QuoteMeta(bare) + `"? \(default\))`)
			if k.Default == `""` {
				says = regexp.MustCompile(`Default(: | "":)`)
			}
			if !says.MatchString(doc+" ") && !required.MatchString(doc) && !requiredFor.MatchString(doc) {
				t.Errorf("%v.%s: got the doc comment %q; want it to say that the default is %s", k.In, k.Field, doc, k.Default)
			}
		}
	}
}

func TestMarkdown_SpeaksOfKeysAndNotOfFields(t *testing.T) {
	type in struct {
		IdleTimeout int `toml:"idle_timeout"`
		Type        int `toml:"type"`
		Other       int
	}
	for _, f := range []struct{ field, doc, want string }{
		{"IdleTimeout", "IdleTimeout is the time.\n", "The time.\n"},
		{"IdleTimeout", "IdleTimeout closes it, as Type says; Other not.\n", "`idle_timeout` closes it, as `type` says; Other not.\n"},
		{"Type", "Type is one of:\n\n  - \"a\": IdleTimeout\n  - \"b\"\n", "One of:\n\n  - \"a\": `idle_timeout`\n  - \"b\"\n"},
	} {
		if got := markdown(f.doc, f.field, reflect.TypeFor[in]()); got != f.want {
			t.Errorf("%q: got %q; want %q", f.doc, got, f.want)
		}
	}
}
