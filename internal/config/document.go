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

	// maxKeys bounds the keys of one table, hence the named targets: the
	// parser's time grows with their square. More targets than that are paths.
	maxKeys = 4096
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
	for len(d.errs) == 0 && p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.locateHeader(e)
		case unstable.KeyValue:
			d.locateKeyValue(table, e)
		}
	}
	return len(d.errs) == 0
}

// locateHeader returns the table that a header opens. A key that names an
// array of tables stands for its last element, but for the last key of a
// [[header]], which adds one.
func (d *document) locateHeader(e *unstable.Node) *node {
	n := &d.places
	key := e.Key()
	for parts := 1; key.Next(); parts++ {
		if n = d.grow(n, key.Node(), parts); n == nil {
			return nil
		}
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
	for parts := 1; key.Next(); parts++ {
		if n = d.grow(n, key.Node(), parts); n == nil {
			return
		}
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
		for len(d.errs) == 0 && children.Next() {
			item := &node{key: n.value, value: n.value}
			n.items = append(n.items, item)
			d.locateValue(item, children.Node())
		}
	case unstable.InlineTable:
		for len(d.errs) == 0 && children.Next() {
			d.locateKeyValue(n, children.Node())
		}
	}
}

// grow returns the field of n with the given key, which is a dotted one's
// part of that number. It makes one where there is none, and returns nil after
// it has reported that a bound is passed.
func (d *document) grow(n *node, key *unstable.Node, part int) *node {
	if f := n.fields[string(key.Data)]; f != nil && part <= maxKeyParts {
		return f
	}
	at := key.Raw.Offset
	switch {
	case part > maxKeyParts:
		d.fail(at, "", "key of more than %d parts", maxKeyParts)
		return nil
	case len(n.fields) >= maxKeys:
		d.fail(at, "", "table of more than %d keys", maxKeys)
		return nil
	case n.fields == nil:
		n.fields = map[string]*node{}
	}
	f := &node{key: at, value: at}
	n.fields[string(key.Data)] = f
	return f
}
