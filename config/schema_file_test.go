package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

var compiledSchema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("lb.schema.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("lb.schema.json")
})

// matchSchema reports how a config differs from the schema, as an editor with a TOML plug-in would.
func matchSchema(text string) error {
	schema, err := compiledSchema()
	if err != nil {
		return err
	}
	var raw map[string]any
	if err := decodeTOML(text, &raw); err != nil {
		return err
	}
	data, err := json.Marshal(raw)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return schema.Validate(doc)
}

func TestSchema_TakesTheExample(t *testing.T) {
	if err := matchSchema(strings.Join(readExample(t), "\n")); err != nil {
		t.Error(err)
	}
}

// Whatever the type of a key, its name or its range says, an editor shows; all of it is a fault of lb check
// too.
func TestSchema_RefusesWhatItCanSee(t *testing.T) {
	const base = "[listeners.web]\nbind = [\"127.0.0.1:8080\"]\npool = \"app\"\n[pools.app]\n%s\n[[pools.app.backends]]\nname = \"w1\"\naddress = \"127.0.0.1:1\"\n%s\n"
	if err := matchSchema(fmt.Sprintf(base, "", "")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		fmt.Sprintf(base, "polcy = \"first\"", ""),
		fmt.Sprintf(base, "policy = \"fastest\"", ""),
		fmt.Sprintf(base, "policy = 1", ""),
		fmt.Sprintf(base, "max_conns = -1", ""),
		fmt.Sprintf(base, "max_conns = \"many\"", ""),
		fmt.Sprintf(base, "connect_timeout = 5", ""),
		fmt.Sprintf(base, "connect_timeout = \"5 minutes\"", ""),
		fmt.Sprintf(base, "handoff_window = 65", ""),
		fmt.Sprintf(base, "", "weight = 1001"),
		fmt.Sprintf(base, "", "weight = 1.5"),
		fmt.Sprintf(base, "", "backup = \"yes\""),
		fmt.Sprintf(base, "[pools.app.health]\ntype = \"ping\"", ""),
		fmt.Sprintf(base, "[pools.app.health]\nrise = 0", ""),
		fmt.Sprintf(base, "[pools.app.workers]\ncount = 2", ""), // no command
		fmt.Sprintf(base, "[pools.app.workers]\ncommand = \"app\"", ""),
		"[pools.app]\n",
		"[listeners.\"a b\"]\nbind = [\"127.0.0.1:8080\"]\npool = \"app\"\n[pools.app]\n",
	} {
		if _, err := Parse("lb.toml", []byte(bad)); err == nil {
			t.Errorf("lb takes this config; want a bad one:\n%s", bad)
		}
		if matchSchema(bad) == nil {
			t.Errorf("the schema takes a config that lb refuses:\n%s", bad)
		}
	}
}
