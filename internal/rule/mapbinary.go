package rule

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// A map goes from the binder to the dispatcher as
//
//	version, number of entries, entries in ascending order
//
// where an entry is: bits and, for IPv6, mapIPv6; a byte that is 1 if a port
// follows; as many bytes of the address as the bits need; the port; a varint
// that is its To. Every map has exactly one encoding.
const (
	mapVersion = 1
	mapIPv6    = 64 // added to the bits: IPv4 has 0 to 32, IPv6 64 to 192

	// MaxEncodedMap bounds an encoded map: the largest entry has 25 bytes.
	MaxEncodedMap = 16 + 25*MaxMapEntries
)

// MapEntry is one entry of a map that is being made. It is packed: there are
// millions of them.
type MapEntry struct {
	high, low uint64 // of the address; IPv4 has its 32 bits on top of high
	to        To
	line      uint32
	port      uint16
	bits      uint8
	ipv4      bool
}

// NewMapEntry makes an entry of a masked prefix of unmapped addresses. Port 0
// stands for all that no other entry of the prefix has. line is for errors.
func NewMapEntry(prefix netip.Prefix, port uint16, to To, line int) MapEntry {
	e := MapEntry{to: to, line: uint32(line), port: port, bits: uint8(prefix.Bits()), ipv4: prefix.Addr().Is4()}
	if e.ipv4 {
		a := prefix.Addr().As4()
		e.high = uint64(binary.BigEndian.Uint32(a[:])) << 32
	} else {
		a := prefix.Addr().As16()
		e.high, e.low = binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	}
	return e
}

// To returns where the entry leads.
func (e *MapEntry) To() To { return e.to }

// Port returns the port that the entry is for, 0 if it is for all.
func (e *MapEntry) Port() uint16 { return e.port }

// Line returns the line that the entry was made with.
func (e *MapEntry) Line() int { return int(e.line) }

// Prefix returns the entry's prefix.
func (e *MapEntry) Prefix() netip.Prefix {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], e.high)
	if e.ipv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), int(e.bits))
	}
	binary.BigEndian.PutUint64(a[8:], e.low)
	return netip.PrefixFrom(netip.AddrFrom16(a), int(e.bits))
}

// order puts IPv4 first, wider prefixes before those in them, and entries
// without a port before those of the same prefix that have one.
func (e MapEntry) order(o MapEntry) int {
	switch {
	case e.ipv4 != o.ipv4:
		if e.ipv4 {
			return -1
		}
		return 1
	case e.high != o.high:
		return cmp.Compare(e.high, o.high)
	case e.low != o.low:
		return cmp.Compare(e.low, o.low)
	case e.bits != o.bits:
		return cmp.Compare(e.bits, o.bits)
	}
	return cmp.Compare(e.port, o.port)
}

// SortMap sorts entries and returns pairs that are for the same connections,
// the one of the lower line first.
func SortMap(entries []MapEntry) (twice [][2]MapEntry) {
	if !slices.IsSortedFunc(entries, MapEntry.order) {
		slices.SortFunc(entries, func(a, b MapEntry) int {
			if c := a.order(b); c != 0 {
				return c
			}
			return cmp.Compare(a.line, b.line)
		})
	}
	for i := 1; i < len(entries); i++ {
		if entries[i-1].order(entries[i]) == 0 {
			twice = append(twice, [2]MapEntry{entries[i-1], entries[i]})
		}
	}
	return twice
}

// EncodeMap returns the encoding of sorted entries, none of which is there
// twice.
func EncodeMap(entries []MapEntry) []byte {
	b := make([]byte, 0, 16+16*len(entries))
	b = binary.AppendUvarint(append(b, mapVersion), uint64(len(entries)))
	for i := range entries {
		b = appendMapEntry(b, &entries[i])
	}
	return b
}

func appendMapEntry(b []byte, e *MapEntry) []byte {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], e.high)
	binary.BigEndian.PutUint64(a[8:], e.low)
	head := e.bits
	if !e.ipv4 {
		head += mapIPv6
	}
	hasPort := byte(0)
	if e.port != 0 {
		hasPort = 1
	}
	b = append(b, head, hasPort)
	b = append(b, a[:addressBytes(int(e.bits))]...)
	if e.port != 0 {
		b = binary.BigEndian.AppendUint16(b, e.port)
	}
	return binary.AppendUvarint(b, uint64(e.to))
}

func addressBytes(bits int) int { return (bits + 7) / 8 }

// SearchMap finds the entry that Map.Lookup goes by, in an encoded map and by
// going through it from its beginning: for explaining, and for a test that both
// agree.
func SearchMap(b []byte, local netip.Addr, port uint16) (best MapEntry, ok bool, err error) {
	d := decoder{rest: b}
	d.byte()
	for n := d.int(); n > 0 && d.err == nil; n-- {
		e := d.mapEntry()
		// Entries ascend: of those that hold an address the longest prefix comes
		// last, and of those that are for its port the one with the port.
		if (e.port == 0 || e.port == port) && e.Prefix().Contains(local) {
			best, ok = e, true
		}
	}
	return best, ok, d.err
}

// CompileMap makes of what EncodeMap wrote a map whose entries lead to one of
// so many targets and paths. b may come from a hostile hand, and is not kept.
func CompileMap(b []byte, targets, paths int) (*Map, error) {
	d := decoder{rest: b}
	if v := d.byte(); d.err == nil && v != mapVersion {
		return nil, fmt.Errorf("decode map: version %d, expected %d", v, mapVersion)
	}
	n := d.int()
	if n > MaxMapEntries {
		return nil, fmt.Errorf("decode map: %d entries, at most %d", n, MaxMapEntries)
	}
	builder := mapBuilder{m: new(Map)}
	var before MapEntry
	for i := 0; i < n && d.err == nil; i++ {
		e := d.mapEntry()
		if d.err == nil && i > 0 && before.order(e) >= 0 {
			d.err = errors.New("entries that do not ascend")
		}
		if d.err == nil && !e.to.check(targets, paths) {
			d.err = fmt.Errorf("an entry leads to %#x of %d targets and %d paths", uint32(e.to), targets, paths)
		}
		if d.err == nil {
			builder.add(e.Prefix(), e.port, e.to)
			before = e
		}
	}
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.rest))
	}
	if d.err != nil {
		return nil, fmt.Errorf("decode map: %w", d.err)
	}
	return builder.finish(), nil
}

func (d *decoder) mapEntry() MapEntry {
	bits, hasPort := int(d.byte()), d.byte()
	ipv4, most := true, 32
	if bits >= mapIPv6 {
		bits, ipv4, most = bits-mapIPv6, false, 128
	}
	if d.err == nil && (bits > most || hasPort > 1) {
		d.err = errForm
	}
	var a [16]byte
	copy(a[:], d.bytes(addressBytes(bits)))
	e := MapEntry{bits: uint8(bits), ipv4: ipv4, high: binary.BigEndian.Uint64(a[:8]), low: binary.BigEndian.Uint64(a[8:])}
	if hasPort == 1 {
		if e.port = d.port(); d.err == nil && e.port == 0 {
			d.err = errForm
		}
	}
	to := d.uint64()
	if d.err == nil && (to > 1<<32-1 || to&pathBit == 0 && to&portedBit != 0) {
		d.err = errForm
	}
	e.to = To(to)
	if p := e.Prefix(); d.err == nil && p != p.Masked() {
		d.err = errors.New("prefix has bits behind its length")
	}
	return e
}
