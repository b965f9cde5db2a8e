package docs_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"socketbox/internal/binder"
	"socketbox/internal/doctor"
)

// schemas are the commands' JSON, by the name of its schema in docs/schema.
var schemas = map[string]any{
	"status":   binder.Status{},
	"sessions": binder.Sessions{},
	"explain":  binder.Explanation{},
	"diff":     binder.Diff{},
	"doctor":   doctor.Report{},
	"trace":    binder.TraceLine{},
}

// TestSchemasAreWhole: each field that a command prints is in its schema, and
// the schema has no other.
func TestSchemasAreWhole(t *testing.T) {
	for name, v := range schemas {
		var schema map[string]any
		if err := json.Unmarshal([]byte(read(t, "docs/schema/"+name+".json")), &schema); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := shape{t: t, root: schema}
		s.compare(name, reflect.TypeOf(v), schema)
	}
}

// shape compares types with a schema.
type shape struct {
	t    *testing.T
	root map[string]any
}

// resolve follows a reference into $defs, and merges what allOf adds.
func (s *shape) resolve(schema map[string]any) map[string]any {
	if ref, ok := schema["$ref"].(string); ok {
		defs := s.root["$defs"].(map[string]any)
		return s.resolve(defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any))
	}
	return schema
}

func (s *shape) properties(schema map[string]any) map[string]any {
	all := map[string]any{}
	more, _ := schema["allOf"].([]any)
	for _, part := range append(more, schema) {
		own, _ := s.resolve(part.(map[string]any))["properties"].(map[string]any)
		for name, p := range own {
			all[name] = p
		}
	}
	return all
}

func (s *shape) compare(place string, typ reflect.Type, schema map[string]any) {
	schema = s.resolve(schema)
	switch {
	case typ.Kind() == reflect.Pointer:
		s.compare(place, typ.Elem(), schema)
	case typ.Kind() == reflect.Slice:
		items, ok := schema["items"].(map[string]any)
		if !ok {
			s.t.Errorf("%s: the schema has no items", place)
			return
		}
		s.compare(place+"[]", typ.Elem(), items)
	case typ.Kind() == reflect.Struct && typ != reflect.TypeFor[time.Time]() && schema["properties"] != nil:
		s.compareFields(place, typ, s.properties(schema))
	}
}

func (s *shape) compareFields(place string, typ reflect.Type, properties map[string]any) {
	fields := map[string]bool{}
	for _, f := range reflect.VisibleFields(typ) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "-" {
			continue
		}
		fields[name] = true
		p, ok := properties[name].(map[string]any)
		if !ok {
			s.t.Errorf("%s.%s is not in the schema", place, name)
			continue
		}
		s.compare(place+"."+name, f.Type, p)
	}
	for name := range properties {
		if !fields[name] {
			s.t.Errorf("the schema has %s.%s, the program has not", place, name)
		}
	}
}
