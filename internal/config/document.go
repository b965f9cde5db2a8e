package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	// MaxFile bounds a file, in bytes. The parser needs up to a hundred times
	// as much memory for the worst of them. 30,000 rules fit; large maps of
	// addresses belong in tables.
	MaxFile = 4 << 20

	// maxKeyParts bounds a dotted key: the deepest one that means anything has
	// four parts (target.NAME.hold.time), and the parser takes seconds for
	// millions of them.
	maxKeyParts = 16
)

// position is a place in the file: line and byte column from 1.
type position struct{ line, column int }

// node is where a key and its value stand, and what is in the value. For a
// table, key and value are both its header; the parser does not say where a
// list begins: that is its key, too. Methods take a nil node, which stands for
// a part that is not there, and is at the beginning of the file.
type node struct {
	key, value uint32 // offsets
	fields     map[string]*node
	items      []*node
}

func (n *node) field(key string) *node {
	if n == nil {
		return nil
	}
	return n.fields[key]
}

func (n *node) item(i int) *node {
	if n == nil || i >= len(n.items) {
		return nil
	}
	return n.items[i]
}

func (n *node) keyOffset() uint32 {
	if n == nil {
		return 0
	}
	return n.key
}

func (n *node) valueOffset() uint32 {
	if n == nil {
		return 0
	}
	return n.value
}

// grow returns the field with the given key. It makes one at offset where
// there is none.
func (n *node) grow(key *unstable.Node) *node {
	f := n.fields[string(key.Data)]
	if f != nil {
		return f
	}
	if n.fields == nil {
		n.fields = map[string]*node{}
	}
	f = &node{key: key.Raw.Offset, value: key.Raw.Offset}
	n.fields[string(key.Data)] = f
	return f
}

// document is a file that was parsed: its values, and the places of them all.
type document struct {
	name   string
	lines  []int // offset of each line's first byte
	root   map[string]any
	places node
	errs   []*Error
}

// readDocument parses text. The document comes back also with an error, which
// is then the only one.
func readDocument(name string, text []byte) (*document, error) {
	d := &document{name: name, lines: []int{0}}
	if len(text) > MaxFile {
		d.fail(0, "", "the file has %d bytes, at most %d", len(text), MaxFile)
		return d, join(d.errs)
	}
	for i, c := range text {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	if !d.locate(text) {
		return d, join(d.errs)
	}
	if err := toml.Unmarshal(text, &d.root); err != nil {
		d.failTOML(err)
		return d, join(d.errs)
	}
	return d, nil
}

// failTOML reports what the TOML parser found.
func (d *document) failTOML(err error) {
	at := position{1, 1}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		at.line, at.column = decode.Position()
	}
	d.failAt(at, "", "%s", strings.TrimPrefix(err.Error(), "toml: "))
}

// fail reports an error at an offset of the file; hint may be "".
func (d *document) fail(offset uint32, hint, format string, args ...any) {
	d.failAt(d.at(offset), hint, format, args...)
}

func (d *document) failAt(at position, hint, format string, args ...any) {
	d.errs = append(d.errs, &Error{
		Where:    fmt.Sprintf("%s:%d:%d", d.name, at.line, at.column),
		Err:      fmt.Errorf(format, args...),
		hint:     hint,
		position: at,
	})
}

// at returns the position of a byte of the file.
func (d *document) at(offset uint32) position {
	i, found := slices.BinarySearch(d.lines, int(offset))
	if !found {
		i--
	}
	return position{line: i + 1, column: int(offset) - d.lines[i] + 1}
}

// locate walks over the syntax tree and notes where everything stands. What is
// no TOML it leaves to the parser proper. It returns false where it found an
// error of its own.
func (d *document) locate(text []byte) bool {
	var p unstable.Parser
	p.Reset(text)
	table := &d.places
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.locateHeader(e)
		case unstable.KeyValue:
			d.locateKeyValue(table, e)
		}
		if len(d.errs) > 0 {
			return false
		}
	}
	return true
}

// locateHeader returns the table that a header opens. A key that names an
// array of tables stands for its last element, but for the last key of a
// [[header]], which adds one.
func (d *document) locateHeader(e *unstable.Node) *node {
	n := &d.places
	key := e.Key()
	for parts := 1; key.Next() && d.shallow(parts, key.Node()); parts++ {
		n = n.grow(key.Node())
		if e.Kind == unstable.ArrayTable && key.IsLast() {
			at := key.Node().Raw.Offset
			n.items = append(n.items, &node{key: at, value: at})
		}
		if count := len(n.items); count > 0 {
			n = n.items[count-1]
		}
	}
	return n
}

func (d *document) locateKeyValue(n *node, e *unstable.Node) {
	key := e.Key()
	for parts := 1; key.Next() && d.shallow(parts, key.Node()); parts++ {
		n = n.grow(key.Node())
	}
	d.locateValue(n, e.Value())
}

func (d *document) locateValue(n *node, v *unstable.Node) {
	if v.Raw.Length > 0 {
		n.value = v.Raw.Offset
	}
	children := v.Children()
	switch v.Kind {
	case unstable.Array:
		for children.Next() {
			item := &node{key: n.value, value: n.value}
			n.items = append(n.items, item)
			d.locateValue(item, children.Node())
		}
	case unstable.InlineTable:
		for children.Next() {
			d.locateKeyValue(n, children.Node())
		}
	}
}

// shallow refuses a key with too many parts.
func (d *document) shallow(parts int, key *unstable.Node) bool {
	if parts <= maxKeyParts {
		return true
	}
	d.fail(key.Raw.Offset, "", "key of more than %d parts", maxKeyParts)
	return false
}
