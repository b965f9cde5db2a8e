package config

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// section reads one table of a document: each method takes the value of a key,
// reports what has the wrong type, and returns false where there is nothing to
// go on with. refuseRest then reports the keys that nobody asked for.
type section struct {
	doc   *document
	node  *node
	title string // for messages: "listener", "target shop"; "" at the top
	table map[string]any
	asked []string
}

// top returns the section of the whole file.
func (d *document) top() *section { return &section{doc: d, node: &d.places, table: d.root} }

// value is a value and its place.
type value struct {
	doc  *document
	node *node
	key  string // for messages
	any
}

func (v value) fail(format string, args ...any) { v.failHint("", format, args...) }

func (v value) failHint(hint, format string, args ...any) {
	v.doc.fail(v.node.valueOffset(), hint, v.key+": "+format, args...)
}

// expected reports a value of the wrong type.
func (v value) expected(what string) { v.fail("expected %s, got %s", what, kindOf(v.any)) }

// get returns the value of a key.
func (s *section) get(key string) (value, bool) {
	s.asked = append(s.asked, key)
	found, ok := s.table[key]
	return value{doc: s.doc, node: s.node.field(key), key: key, any: found}, ok
}

// has reports whether the key is there, whatever its value.
func (s *section) has(key string) bool {
	_, ok := s.table[key]
	return ok
}

// keyValue returns the value of the first of keys that is there, for errors
// about it, else the header.
func (s *section) keyValue(keys ...string) value {
	for _, key := range keys {
		if found, ok := s.table[key]; ok {
			return value{doc: s.doc, node: s.node.field(key), key: key, any: found}
		}
	}
	return s.header()
}

// header returns the section itself as a value, for errors about all of it.
func (s *section) header() value {
	return value{doc: s.doc, node: s.node, key: s.title, any: s.table}
}

// missing reports a key that must be there.
func (s *section) missing(key, expected string) {
	s.header().fail("key %s is missing: expected %s", key, expected)
}

// line returns the line of the section's header.
func (s *section) line() int { return s.doc.at(s.node.keyOffset()).line }

// refuseRest reports the keys that nobody asked for.
func (s *section) refuseRest() {
	for key := range s.table {
		if slices.Contains(s.asked, key) {
			continue
		}
		s.doc.fail(s.node.field(key).keyOffset(), "", "unknown key %q%s: expected %s", key, s.in(), strings.Join(s.asked, ", "))
	}
}

func (s *section) in() string {
	if s.title == "" {
		return ""
	}
	return " in " + s.title
}

func (s *section) text(key string) (string, value, bool) {
	v, ok := s.get(key)
	if !ok {
		return "", v, false
	}
	text, ok := v.any.(string)
	if !ok {
		v.expected("a string")
	}
	return text, v, ok
}

// choice reads a string that is one of a few.
func (s *section) choice(key, absent string, allowed []string) string {
	text, v, ok := s.text(key)
	switch {
	case !ok:
		return absent
	case slices.Contains(allowed, text):
		return text
	default:
		v.fail("%q: expected %s", text, quoted(allowed))
	}
	return absent
}

// integer reads a number from low to high.
func (s *section) integer(key string, absent, low, high int) int {
	v, ok := s.get(key)
	if !ok {
		return absent
	}
	n, ok := v.any.(int64)
	switch {
	case !ok:
		v.expected("an integer")
	case n < int64(low) || n > int64(high):
		v.fail("%d: expected %d to %d", n, low, high)
	default:
		return int(n)
	}
	return absent
}

func (s *section) boolean(key string) (set, present bool) {
	v, ok := s.get(key)
	if !ok {
		return false, false
	}
	set, ok = v.any.(bool)
	if !ok {
		v.expected("true or false")
	}
	return set, ok
}

// duration reads a time from 0 to high.
func (s *section) duration(key string, absent, high time.Duration) time.Duration {
	v, ok := s.get(key)
	if !ok {
		return absent
	}
	const form = `a duration such as "30s" or "1m30s"`
	text, ok := v.any.(string)
	if !ok {
		v.expected(form)
		return absent
	}
	t, err := time.ParseDuration(text)
	switch {
	case err != nil:
		v.fail("%q: expected %s", text, form)
	case t < 0 || t > high:
		v.fail("%q: expected 0s to %s", text, high)
	default:
		return t
	}
	return absent
}

// list reads one value or a list of them. An empty list is an error: it would
// read as nothing, and a missing key means everything.
func (s *section) list(key string) []value {
	v, ok := s.get(key)
	if !ok {
		return nil
	}
	items, ok := v.any.([]any)
	if !ok {
		return []value{v}
	}
	if len(items) == 0 {
		v.fail("the list is empty: expected at least one entry, or no key")
	}
	out := make([]value, len(items))
	for i, item := range items {
		out[i] = value{doc: s.doc, node: v.node.item(i), key: key, any: item}
	}
	return out
}

// section reads a table; ok is false where there is none.
func (s *section) section(key, title string) (*section, bool) {
	v, ok := s.get(key)
	if !ok {
		return nil, false
	}
	return v.section(title)
}

func (v value) section(title string) (*section, bool) {
	table, ok := v.any.(map[string]any)
	if !ok {
		v.expected("a table")
		return nil, false
	}
	return &section{doc: v.doc, node: v.node, title: title, table: table}, true
}

// sections reads an array of tables, in file order, at most limit of them.
func (s *section) sections(key string, limit int) []*section {
	v, ok := s.get(key)
	if !ok {
		return nil
	}
	items, ok := v.any.([]any)
	if !ok {
		v.fail("expected tables, each headed [[%s]], got %s", key, kindOf(v.any))
		return nil
	}
	if len(items) > limit {
		v.fail("%d of them, at most %d", len(items), limit)
		return nil
	}
	var out []*section
	for i, item := range items {
		element := value{doc: s.doc, node: v.node.item(i), key: key, any: item}
		if x, ok := element.section(key); ok {
			out = append(out, x)
		}
	}
	return out
}

// named reads a table of tables, in file order, with their names.
func (s *section) named(key string) (names []string, out []*section) {
	all, ok := s.section(key, key)
	if !ok {
		return nil, nil
	}
	for name := range all.table {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(all.node.field(a).keyOffset(), all.node.field(b).keyOffset()), cmp.Compare(a, b))
	})
	kept := names[:0]
	for _, name := range names {
		v, _ := all.get(name)
		if x, ok := v.section(fmt.Sprintf("%s %q", key, name)); ok {
			kept, out = append(kept, name), append(out, x)
		}
	}
	return kept, out
}

// kindOf names the type of a value as TOML has it.
func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%.40q", v)
	case int64:
		return strconv.FormatInt(v, 10)
	case bool:
		return strconv.FormatBool(v)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "a number that is none"
		}
		return "a fraction"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strconv.Quote(w)
	}
	last := len(out) - 1
	if last < 1 {
		return strings.Join(out, "")
	}
	return strings.Join(out[:last], ", ") + " or " + out[last]
}
