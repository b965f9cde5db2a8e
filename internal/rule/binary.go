package rule

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// A table goes from the binder to the dispatcher as
//
//	version, targets, maps, rules
//
// where a list is its length and its items, a number is an unsigned varint in
// its shortest form, a string is its length and its bytes, and an address
// prefix is a family byte (4 or 6), its bits and all bytes of its address.
// Every table has exactly one encoding.
const (
	tableVersion = 3

	// MaxEncoded bounds an encoded table. 100,000 rules with a few prefixes
	// each fit.
	MaxEncoded = 16 << 20

	// maxName bounds a target's name: a path is at most 107 bytes, template
	// words come on top.
	maxName = 255
)

var (
	errShort = errors.New("ends too early")
	errForm  = errors.New("number not in its shortest form or too large")
)

// AppendBinary appends the encoding of t to b. It fails on a table that Check
// refuses.
func (t *Table) AppendBinary(b []byte) ([]byte, error) {
	if err := t.Check(); err != nil {
		return b, fmt.Errorf("encode rule table: %w", err)
	}
	start := len(b)
	b = append(b, tableVersion)
	b = appendInt(b, len(t.Targets))
	for i := range t.Targets {
		b = appendTarget(b, &t.Targets[i])
	}
	b = appendInt(b, len(t.Maps))
	for i := range t.Maps {
		b = appendInt(appendString(b, t.Maps[i].Name), t.Maps[i].Target)
	}
	b = appendInt(b, len(t.Rules))
	for i := range t.Rules {
		b = appendRule(b, &t.Rules[i])
	}
	if len(b)-start > MaxEncoded {
		return b[:start], fmt.Errorf("encode rule table: %d bytes, at most %d", len(b)-start, MaxEncoded)
	}
	return b, nil
}

func appendTarget(b []byte, t *Target) []byte {
	b = appendString(b, t.Name)
	b = append(b, byte(t.Keys))
	b = append(appendInt(b, t.Places), byte(t.Balance))
	b = appendInt(b, t.Hold.Connections)
	b = binary.AppendUvarint(b, uint64(t.Hold.Time))
	return binary.AppendUvarint(b, uint64(t.Hold.Busy))
}

func appendRule(b []byte, r *Rule) []byte {
	reject := byte(0)
	if r.Reject {
		reject = 1
	}
	b = append(b, reject)
	b = appendInt(b, r.Target)
	b = r.Limit.AppendBinary(appendInt(b, r.Map))
	b = appendInt(b, r.Line)
	b = appendInt(b, len(r.Listeners))
	for _, l := range r.Listeners {
		b = appendInt(b, l)
	}
	b = appendPrefixes(b, r.Local)
	b = appendPrefixes(b, r.Remote)
	b = appendInt(b, len(r.Ports))
	for _, p := range r.Ports {
		b = binary.BigEndian.AppendUint16(b, p.First)
		b = binary.BigEndian.AppendUint16(b, p.Last)
	}
	return appendSessions(b, r.Sessions)
}

func appendPrefixes(b []byte, prefixes []netip.Prefix) []byte {
	b = appendInt(b, len(prefixes))
	for _, p := range prefixes {
		family := byte(6)
		if p.Addr().Is4() {
			family = 4
		}
		b = append(b, family, byte(p.Bits()))
		b = append(b, p.Addr().AsSlice()...)
	}
	return b
}

func appendString(b []byte, s string) []byte { return append(appendInt(b, len(s)), s...) }

func appendInt(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }

// DecodeTable reads what AppendBinary wrote. b may come from a hostile hand:
// what is returned passes Check and encodes to b again, and no more is
// allocated than a small multiple of len(b). Empty lists come back nil.
func DecodeTable(b []byte) (*Table, error) {
	if len(b) > MaxEncoded {
		return nil, fmt.Errorf("decode rule table: %d bytes, at most %d", len(b), MaxEncoded)
	}
	d := decoder{rest: b}
	if v := d.byte(); d.err == nil && v != tableVersion {
		return nil, fmt.Errorf("decode rule table: version %d, expected %d", v, tableVersion)
	}
	t := &Table{
		Targets: list(&d, (*decoder).target),
		Maps:    list(&d, (*decoder).mapInfo),
		Rules:   list(&d, (*decoder).rule),
	}
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.rest))
	}
	if d.err == nil {
		d.err = t.Check()
	}
	if d.err != nil {
		return nil, fmt.Errorf("decode rule table: %w", d.err)
	}
	return t, nil
}

// decoder reads from rest until the first error, then yields zeros.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) bytes(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.err = errShort
	}
	if d.err != nil {
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.rest)
	switch {
	case n == 0:
		d.err = errShort
	case n < 0 || n > 1 && d.rest[n-1] == 0 || v > math.MaxInt64:
		d.err = errForm
	default:
		d.rest = d.rest[n:]
		return v
	}
	return 0
}

func (d *decoder) int() int {
	v := d.uint64()
	if v > math.MaxInt32 {
		d.err = errForm
		return 0
	}
	return int(v)
}

func (d *decoder) port() uint16 {
	if b := d.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// list reads a length and that many items. It grows with what is really there,
// since the length alone may lie.
func list[T any](d *decoder, item func(*decoder) T) []T {
	var items []T
	for n := d.int(); n > 0 && d.err == nil; n-- {
		items = append(items, item(d))
	}
	return items
}

func (d *decoder) target() Target {
	return Target{
		Name:    string(d.bytes(d.int())),
		Keys:    Keys(d.byte()),
		Places:  d.int(),
		Balance: Balance(d.byte()),
		Hold: Hold{
			Connections: d.int(),
			Time:        time.Duration(d.uint64()),
			Busy:        time.Duration(d.uint64()),
		},
	}
}

func (d *decoder) mapInfo() MapInfo {
	return MapInfo{Name: string(d.bytes(d.int())), Target: d.int()}
}

func (d *decoder) rule() Rule {
	reject := d.byte()
	if reject > 1 && d.err == nil {
		d.err = fmt.Errorf("reject is %d, expected 0 or 1", reject)
	}
	return Rule{
		Reject:    reject == 1,
		Target:    d.int(),
		Map:       d.int(),
		Limit:     d.limit(),
		Line:      d.int(),
		Listeners: list(d, (*decoder).int),
		Local:     list(d, (*decoder).prefix),
		Remote:    list(d, (*decoder).prefix),
		Ports:     list(d, (*decoder).portRange),
		Sessions:  d.sessions(),
	}
}

func (d *decoder) portRange() PortRange {
	return PortRange{First: d.port(), Last: d.port()}
}

func (d *decoder) prefix() netip.Prefix {
	size := 0
	switch family := d.byte(); family {
	case 4:
		size = 4
	case 6:
		size = 16
	default:
		if d.err == nil {
			d.err = fmt.Errorf("address family %d, expected 4 or 6", family)
		}
		return netip.Prefix{}
	}
	bits := int(d.byte())
	addr, _ := netip.AddrFromSlice(d.bytes(size))
	return netip.PrefixFrom(addr, bits)
}
