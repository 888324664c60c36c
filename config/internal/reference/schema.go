package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/273ebdf9/lb/config"
)

// schema is a part of a JSON Schema (https://json-schema.org/draft/2020-12/schema).
type schema struct {
	Schema               string             `json:"$schema,omitempty"`
	Title                string             `json:"title,omitempty"`
	Description          string             `json:"description,omitempty"`
	Type                 any                `json:"type,omitempty"` // a string or a list of strings
	Enum                 []string           `json:"enum,omitempty"`
	Default              json.RawMessage    `json:"default,omitempty"`
	Minimum              *int64             `json:"minimum,omitempty"`
	Maximum              *int64             `json:"maximum,omitempty"`
	Pattern              string             `json:"pattern,omitempty"`
	Items                *schema            `json:"items,omitempty"`
	MinItems             int                `json:"minItems,omitempty"`
	Required             []string           `json:"required,omitempty"`
	Properties           map[string]*schema `json:"properties,omitempty"`
	PropertyNames        *schema            `json:"propertyNames,omitempty"`
	AdditionalProperties any                `json:"additionalProperties,omitempty"` // false or a *schema
}

const (
	namePattern     = `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`
	durationPattern = `^(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
)

// renderSchema returns the JSON Schema of a config. Types, defaults and descriptions come from the Config
// types. Ranges and the words that a string may be are found by trying them on the parser, which alone
// decides.
func renderSchema() ([]byte, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	s := sources{root: root, docs: docsByType{}}
	top := object("")
	top.Schema = "https://json-schema.org/draft/2020-12/schema"
	top.Title = "The configuration of lb"
	for _, table := range config.Tables() {
		doc, err := s.doc(table.In, table.Field)
		if err != nil {
			return nil, err
		}
		in := top.table(table.Path)
		in.Description = prose(doc, table.Field, table.In)
		for _, k := range table.Keys {
			doc, err := s.doc(k.In, k.Field)
			if err != nil {
				return nil, err
			}
			in.Properties[k.Name] = keySchema(k, doc)
			in.Properties[k.Name].Description = prose(doc, k.Field, k.In)
			if required.MatchString(doc) {
				in.Required = append(in.Required, k.Name)
			}
		}
	}
	top.Required = []string{"listeners", "pools"}
	text, err := json.MarshalIndent(top, "", "  ")
	return append(text, '\n'), err
}

func object(description string) *schema {
	return &schema{Type: "object", Description: description, Properties: map[string]*schema{}, AdditionalProperties: false}
}

// table returns the schema of the table at a path such as pools.NAME.backends[], and makes it if there is
// none.
func (s *schema) table(path string) *schema {
	for part := range strings.SplitSeq(path, ".") {
		name, list := strings.CutSuffix(part, "[]")
		if name == "NAME" {
			sub, ok := s.AdditionalProperties.(*schema)
			if !ok {
				sub = object("")
				s.AdditionalProperties, s.PropertyNames, s.Properties = sub, &schema{Pattern: namePattern}, nil
			}
			s = sub
			continue
		}
		sub := s.Properties[name]
		if sub == nil {
			sub = object("")
			if list {
				sub = &schema{Type: "array", Items: sub}
			}
			s.Properties[name] = sub
		}
		if s = sub; list {
			s = sub.Items
		}
	}
	return s
}

// keySchema returns the schema of a key.
func keySchema(k config.Key, doc string) *schema {
	s := typeSchema(k.Type)
	if !required.MatchString(doc) {
		if text := strings.ReplaceAll(k.Default, " = ", ": "); json.Valid([]byte(text)) {
			s.Default = json.RawMessage(text)
		}
	}
	try := func(literal string) bool { return accepts(k, literal) }
	switch k.Type {
	case "integer":
		s.Minimum, s.Maximum = bounds(func(n int64) bool { return try(strconv.FormatInt(n, 10)) })
	case "string":
		s.Enum = words(doc, try)
	}
	return s
}

func typeSchema(name string) *schema {
	if of, ok := strings.CutPrefix(name, "list of "); ok {
		return &schema{Type: "array", Items: typeSchema(strings.TrimSuffix(of, "s"))}
	}
	if of, ok := strings.CutPrefix(name, "table of "); ok {
		return &schema{Type: "object", AdditionalProperties: typeSchema(strings.TrimSuffix(of, "s"))}
	}
	if name == "duration" {
		return &schema{Type: "string", Pattern: durationPattern}
	}
	return &schema{Type: name}
}

// bounds finds the least and the greatest integer that is accepted; nil is none. What is accepted is a range,
// and has a number between 0 and 1024 in it.
func bounds(accepted func(int64) bool) (least, greatest *int64) {
	some := int64(-1)
	for n := int64(0); n <= 1024 && some < 0; n = max(1, n*2) {
		if accepted(n) {
			some = n
		}
	}
	if some < 0 {
		return nil, nil
	}
	edge := func(in, out int64) *int64 {
		for max(in-out, out-in) > 1 {
			if middle := in + (out-in)/2; accepted(middle) {
				in = middle
			} else {
				out = middle
			}
		}
		return &in
	}
	const far = 1 << 40 // beyond any
	if !accepted(-far) {
		least = edge(some, -far)
	}
	if !accepted(far) {
		greatest = edge(some, far)
	}
	return least, greatest
}

// words returns the words that a string may be, if it may not be any other: those that its doc comment has in
// quotes.
func words(doc string, accepted func(literal string) bool) []string {
	if accepted(`"anything-else"`) {
		return nil
	}
	var found []string
	for _, m := range quotedWord.FindAllStringSubmatch(doc, -1) {
		if accepted(m[0]) && !slices.Contains(found, m[1]) {
			found = append(found, m[1])
		}
	}
	for _, form := range []string{`"404"`, `"/x"`, `"0077"`, `"127.0.0.1:1"`, `"unix:/x"`, `"SIGHUP"`} {
		if accepted(form) {
			return nil // of an open form: a status, a path, a mode, an address, a signal
		}
	}
	if len(found) < 2 {
		return nil
	}
	return found
}

var quotedWord = regexp.MustCompile(`"([a-z0-9_-]*)"`)

// accepts reports whether the parser takes a key with a value, in a pool of backends or of workers, whatever
// it says of the rest of the config.
func accepts(k config.Key, literal string) bool {
	return acceptsIn(k, literal, "pools.NAME.backends[]") || acceptsIn(k, literal, "pools.NAME.workers")
}

func acceptsIn(k config.Key, literal, members string) bool {
	tables := map[string]string{
		"listeners.NAME":        "bind = [\"127.0.0.1:1\"]\npool = \"p\"",
		"pools.NAME.backends[]": "name = \"b\"\naddress = \"127.0.0.1:2\"",
		"pools.NAME.workers":    "command = [\"x\"]",
	}
	var b strings.Builder
	write := func(path string) {
		path = strings.ReplaceAll(strings.ReplaceAll(path, "listeners.NAME", "listeners.l"), "pools.NAME", "pools.p")
		fmt.Fprintf(&b, "%s\n", header(path))
	}
	order := []string{"listeners.NAME", "pools.NAME", members}
	if !slices.Contains(order, k.Table) {
		order = append(order, k.Table)
	}
	at := strings.NewReplacer("listeners.NAME", "listeners.l", "pools.NAME", "pools.p", "[]", "[0]").Replace(k.Table) + "." + k.Name
	for _, table := range order {
		write(table)
		for line := range strings.SplitSeq(tables[table], "\n") {
			if table != k.Table || !strings.HasPrefix(line, k.Name+" = ") {
				b.WriteString(line + "\n")
			}
		}
		if table == k.Table {
			fmt.Fprintf(&b, "%s = %s\n", k.Name, literal)
		}
	}
	_, err := config.Parse("x", []byte(b.String()))
	return err == nil || !strings.Contains(err.Error(), " "+at+":") && !strings.Contains(err.Error(), " "+at+"[")
}

// prose is the doc comment of a field as docs/config.md has it, without its marks.
func prose(doc, field string, in reflect.Type) string {
	return strings.TrimSpace(strings.ReplaceAll(markdown(doc, field, in), "`", ""))
}
