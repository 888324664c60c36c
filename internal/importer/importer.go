// Package importer translates configs of other programs into lb's: the TCP parts of an haproxy.cfg, the
// stream part of an nginx.conf, and pm2's ecosystem file.
//
// What has no counterpart is not lost: it becomes a comment at its place, with the reason, and a [Note]. A
// draft says nothing that the source does not; whether it is a valid config is for package config to say. The
// package reads no file and starts nothing, except for [ReadEcosystem].
package importer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/273ebdf9/lb/internal/printable"
)

// Draft is a config of lb in the making. The zero value has nothing.
type Draft struct {
	source    string // the name of the file that it comes from
	proxy     table
	listeners []*listener
	pools     []*pool
	loose     []Note // of no table
}

// Note is a part of the source that has no counterpart, or not the same.
type Note struct {
	Line   int    // in the source; 0 where there is none
	Text   string // as the source has it
	Reason string // why it is not there, and what to do
}

func (n Note) String() string {
	if n.Line == 0 {
		return fmt.Sprintf("%s: %s", n.Text, n.Reason)
	}
	return fmt.Sprintf("line %d: %s: %s", n.Line, n.Text, n.Reason)
}

// table has the settings of a table, in order, and what could not become one.
type table struct {
	settings []setting
	notes    []Note
}

type setting struct{ key, value string } // value as TOML

// set sets a key to a value, which is written as TOML. A second one replaces the first.
func (t *table) set(key string, value any) {
	text := Value(value)
	for i := range t.settings {
		if t.settings[i].key == key {
			t.settings[i].value = text
			return
		}
	}
	t.settings = append(t.settings, setting{key, text})
}

func (t *table) note(line int, text, reason string) {
	t.notes = append(t.notes, Note{line, text, reason})
}

type listener struct {
	name   string
	bind   []string
	client time.Duration // after which HAProxy ends a session whose client is silent; 0: it is not said
	table
}

type pool struct {
	name     string
	table    // of the pool itself
	health   table
	workers  table
	recycle  table
	backends []*backend
}

type backend struct {
	table
	off bool // it is there, and out of service
}

// Notes returns what has no counterpart, in the order of the draft.
func (d *Draft) Notes() []Note {
	notes := append([]Note(nil), d.loose...)
	notes = append(notes, d.proxy.notes...)
	for _, l := range d.listeners {
		notes = append(notes, l.notes...)
	}
	for _, p := range d.pools {
		notes = append(notes, p.notes...)
		notes = append(notes, p.health.notes...)
		notes = append(notes, p.workers.notes...)
		notes = append(notes, p.recycle.notes...)
		for _, b := range p.backends {
			notes = append(notes, b.notes...)
		}
	}
	return notes
}

// TOML returns the draft as a config file.
func (d *Draft) TOML() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by lb init from %s. What has no counterpart stands as a comment at its place.\n", comment(d.source))
	notes(&b, d.loose)
	b.WriteString("\n[admin]\nsocket = \"/run/lb/admin.sock\"\n")
	d.proxy.write(&b, "[proxy]")
	for _, l := range d.listeners {
		fmt.Fprintf(&b, "\n[listeners.%s]\nbind = %s\n", name(l.name), Value(l.bind))
		l.lines(&b)
	}
	for _, p := range d.pools {
		at := "pools." + name(p.name)
		fmt.Fprintf(&b, "\n[%s]\n", at)
		p.lines(&b)
		p.health.write(&b, "["+at+".health]")
		p.workers.write(&b, "["+at+".workers]")
		p.recycle.write(&b, "["+at+".workers.recycle]")
		for _, backend := range p.backends {
			fmt.Fprintf(&b, "\n[[%s.backends]]\n", at)
			backend.lines(&b)
		}
	}
	if all := d.Notes(); len(all) > 0 {
		fmt.Fprintf(&b, "\n# Not the same as in %s, for the reasons above:\n", comment(d.source))
		for _, n := range all {
			fmt.Fprintf(&b, "#   %s\n", comment(short(n)))
		}
	}
	return b.Bytes()
}

// short is a note without its reason.
func short(n Note) string {
	if n.Line == 0 {
		return n.Text
	}
	return fmt.Sprintf("line %d: %s", n.Line, n.Text)
}

// write writes a table with its header, unless it is empty.
func (t *table) write(b *bytes.Buffer, header string) {
	switch {
	case len(t.settings) > 0:
		fmt.Fprintf(b, "\n%s\n", header)
	case len(t.notes) > 0:
		b.WriteString("\n")
	}
	t.lines(b)
}

func (t *table) lines(b *bytes.Buffer) {
	for _, s := range t.settings {
		fmt.Fprintf(b, "%s = %s\n", s.key, s.value)
	}
	notes(b, t.notes)
}

func notes(b *bytes.Buffer, list []Note) {
	for _, n := range list {
		fmt.Fprintf(b, "# %s\n", comment(n.String()))
	}
}

// comment is text that stays within one comment.
func comment(s string) string { return printable.Text(strings.Join(strings.Fields(s), " ")) }

// Value returns a value as TOML writes it: a string, a number, a boolean, or a list of strings. Strings of
// TOML are those of JSON (https://toml.io/en/v1.0.0#string). Bytes that are not UTF-8 become question marks.
func Value(v any) string {
	switch v := v.(type) {
	case []string:
		parts := make([]string, len(v))
		for i, s := range v {
			parts[i] = Value(s)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case []setting: // a table in one line
		parts := make([]string, len(v))
		for i, s := range v {
			parts[i] = s.key + " = " + s.value
		}
		return "{ " + strings.Join(parts, ", ") + " }"
	case string:
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.Encode(strings.ToValidUTF8(v, "?")) // a string never fails
		return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
	}
	return fmt.Sprint(v)
}

// word returns the word at i; empty where there are fewer.
func word(words []string, i int) string {
	if i < len(words) {
		return words[i]
	}
	return ""
}

// name makes a name of lb of a word: letters, digits, dashes and underscores, of at most 64.
func name(word string) string {
	var b strings.Builder
	for _, r := range word {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', b.Len() > 0 && (r == '-' || r == '_'):
			b.WriteRune(r)
		case b.Len() > 0:
			b.WriteByte('-')
		}
	}
	if b.Len() == 0 {
		return "main"
	}
	return strings.TrimRight(b.String()[:min(64, b.Len())], "-")
}

// duration is a time as a person writes it: 1m, not 1m0s.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// pool returns the pool with a name, and makes it if there is none.
func (d *Draft) pool(of string) *pool {
	of = name(of)
	for _, p := range d.pools {
		if p.name == of {
			return p
		}
	}
	p := &pool{name: of}
	d.pools = append(d.pools, p)
	return p
}

// listener adds a listener under a name that no other has.
func (d *Draft) listener(of string) *listener {
	of = name(of)
	free := of
	for n := 2; ; n++ {
		taken := false
		for _, l := range d.listeners {
			taken = taken || l.name == free
		}
		if !taken {
			break
		}
		free = fmt.Sprintf("%s-%d", of[:min(60, len(of))], n)
	}
	l := &listener{name: free}
	d.listeners = append(d.listeners, l)
	return l
}
