package admin

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// The OpenAPI document (OpenAPI Specification 3.1.0, JSON Schema 2020-12) is made from the table of routes
// and from the Go types that they read and write, so that it cannot say anything else than they do.

// object is a JSON object.
type object = map[string]any

// describe makes the document of a table.
func describe(routes []route, version string) object {
	d := &document{schemas: object{}}
	paths := object{}
	for i := range routes {
		rt := &routes[i]
		path := strings.TrimSuffix(routes[i].path, "{$}") // of http.ServeMux
		item, ok := paths[path].(object)
		if !ok {
			item = object{}
			paths[path] = item
		}
		item[strings.ToLower(rt.method)] = d.operation(rt)
	}
	return object{
		"openapi": "3.1.0",
		"info":    object{"title": "lb", "version": version, "summary": "The control API of lb, a Layer-4 TCP load balancer"},
		"paths":   paths,
		"components": object{
			"schemas": d.schemas,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer",
				"description": "The token of admin.token_file. Over the control socket the kernel tells who the caller is, and no token is needed."}},
		},
	}
}

// document collects the schemas of the types that were met.
type document struct{ schemas object }

// operation is a route in the words of OpenAPI.
func (d *document) operation(rt *route) object {
	media := rt.media
	if media == "" {
		media = "application/json"
	}
	content := func(media string, v any) object {
		return object{media: object{"schema": d.schema(reflect.TypeOf(v))}}
	}
	op := object{
		"operationId": operationID(rt),
		"summary":     rt.doc,
		"x-access":    rt.access.String(),
		"responses": object{
			"200":     object{"description": rt.doc, "content": content(media, rt.answer)},
			"default": object{"description": "refused or failed; nothing was changed", "content": content("application/json", api.Error{})},
		},
	}
	if params := parameters(rt); len(params) > 0 {
		op["parameters"] = params
	}
	if rt.body != nil {
		op["requestBody"] = object{"required": true, "content": content("application/json", rt.body)}
	}
	if rt.access > AccessRead {
		op["security"] = []object{{"token": []string{}}}
	}
	return op
}

var wildcard = regexp.MustCompile(`\{(\w+)\}`)

func parameters(rt *route) []object {
	var all []object
	for _, m := range wildcard.FindAllStringSubmatch(rt.path, -1) {
		all = append(all, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"},
			"description": "the name of the " + m[1]})
	}
	for _, p := range rt.query {
		all = append(all, object{"name": p.name, "in": "query", "schema": object{"type": p.typ}, "description": p.doc})
	}
	return all
}

// operationID is the method and the fixed words of the path: putPoolsBackendsWeight.
func operationID(rt *route) string {
	id := strings.ToLower(rt.method)
	for _, word := range strings.FieldsFunc(strings.TrimPrefix(rt.path, "/v1"), func(r rune) bool { return strings.ContainsRune("/-_.", r) }) {
		if !strings.HasPrefix(word, "{") {
			id += strings.ToUpper(word[:1]) + word[1:]
		} else if strings.HasSuffix(rt.path, word) {
			id += "One"
		}
	}
	if rt.path == "/{$}" {
		return "getPage"
	}
	if rt.path == "/v1" {
		id += "Index"
	}
	return id
}

var timeType = reflect.TypeFor[time.Time]()

// schema is the JSON Schema of what encoding/json makes of a type; a struct's stands in the components.
func (d *document) schema(t reflect.Type) object {
	switch {
	case t == timeType:
		return object{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return object{"anyOf": []object{d.schema(t.Elem()), {"type": "null"}}}
	}
	switch t.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Interface:
		return object{}
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
		if d.schemas[name] == nil {
			d.schemas[name] = object{} // for a type that has itself in it
			d.schemas[name] = d.object(t)
		}
		return object{"$ref": "#/components/schemas/" + name}
	}
	panic(fmt.Sprintf("BUG: admin: no schema for %v", t))
}

// object is the schema of a struct's fields. Those that are always there are required.
func (d *document) object(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			panic(fmt.Sprintf("BUG: admin: %v.%s has no name in JSON", t, f.Name))
		}
		ft, optional := f.Type, options == "omitempty"
		if optional && ft.Kind() == reflect.Pointer { // absent, not null
			ft = ft.Elem()
		}
		properties[name] = d.schema(ft)
		if !optional {
			required = append(required, name)
		}
	}
	schema := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema
}
