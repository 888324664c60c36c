package logs

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestAccessFields_AreThoseOfAnEntry(t *testing.T) {
	text, object := AccessExample(&Entry{Listener: "web", Pool: "app", Backend: "w1"})
	var keys map[string]any
	if err := json.Unmarshal([]byte(object), &keys); err != nil {
		t.Fatal(err)
	}
	var explained []string
	inText := 0
	for _, f := range AccessFields {
		if f.JSON != "" {
			explained = append(explained, f.JSON)
		}
		if f.Text != "" {
			inText++
		}
		if f.Text == "0/0" {
			inText++ // two of them
		}
	}
	if len(explained) != len(keys) {
		t.Errorf("keys of JSON that are explained: got %v; want those of %s", explained, object)
	}
	for key := range keys {
		if !slices.Contains(explained, key) {
			t.Errorf("%s: is in JSON, and nothing explains it", key)
		}
	}
	// The time has slashes of its own.
	before, after, _ := strings.Cut(text, "[")
	_, after, _ = strings.Cut(after, "]")
	words := strings.FieldsFunc(before+"time"+after, func(r rune) bool { return r == ' ' || r == '/' || r == '\n' })
	if len(words) != inText {
		t.Errorf("fields of text that are explained: got %d; want the %d of %s", inText, len(words), text)
	}
}
