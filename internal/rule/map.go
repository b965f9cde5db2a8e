package rule

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// MaxMapEntries bounds a map: four times the largest that was measured.
const MaxMapEntries = 1 << 22

// To says where an entry of a map leads: to a target of the table, as a rule
// would, or to one of the map's own paths, or nowhere.
type To uint32

// ToReject resets the connection.
const ToReject To = 0

const (
	pathBit   = 1 << 31 // of a To: the rest is the number of a path
	portedBit = 1 << 30 // of a value in a Map: the rest is an index into ported
	nowhere   = ^uint32(0)
)

// ToTarget leads to target i of the table, ToPath to path i of the map.
func ToTarget(i int) To { return To(i + 1) }

// ToPath leads to path i of the map.
func ToPath(i int) To { return To(i | pathBit) }

// Path returns the number of the path that to leads to.
func (to To) Path() (i int, ok bool) { return int(to &^ pathBit), to&pathBit != 0 }

// Target returns the target that to leads to; not ok for a path and ToReject.
func (to To) Target() (i int, ok bool) { return int(to) - 1, to&pathBit == 0 && to != ToReject }

// check reports whether to leads to one of so many targets or paths.
func (to To) check(targets, paths int) bool {
	if i, ok := to.Path(); ok {
		return i < paths
	}
	return int(to) <= targets
}

// Map leads from the address and port that a client dialled to a target: the
// longest prefix wins, and of entries of one prefix that with the port. It is
// read-only: any number of goroutines may use it.
type Map struct {
	table  bart.Table[uint32] // a To, or portedBit and an index
	ported []portedPrefix
	ports  []portTo
}

// portedPrefix is a prefix of which at least one entry has a port.
type portedPrefix struct {
	first, last uint32 // in ports, which ascend
	any         uint32 // where the other ports lead; nowhere if no entry says
	wider       uint32 // value of the next wider prefix, nowhere if there is nowhere
}

// portTo is where one port of a portedPrefix leads.
type portTo struct {
	port uint16
	to   To
}

// Lookup returns where a connection to that address and port goes; ok is
// false where no entry takes it. It does not allocate.
func (m *Map) Lookup(local netip.Addr, port uint16) (to To, ok bool) {
	v, found := m.table.Lookup(local)
	if !found {
		return 0, false
	}
	for v != nowhere && v&pathBit == 0 && v&portedBit != 0 {
		p := &m.ported[v&^portedBit]
		if to, ok := p.find(m.ports, port); ok {
			return to, true
		}
		if v = p.any; v == nowhere {
			v = p.wider
		}
	}
	if v == nowhere {
		return 0, false
	}
	return To(v), true
}

func (p *portedPrefix) find(ports []portTo, port uint16) (to To, ok bool) {
	low, high := p.first, p.last
	for low < high {
		middle := (low + high) / 2
		if ports[middle].port < port {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low < p.last && ports[low].port == port {
		return ports[low].to, true
	}
	return 0, false
}

// mapBuilder takes entries in ascending order.
type mapBuilder struct {
	m       *Map
	last    netip.Prefix   // that was added
	value   uint32         // of last, if it is not ported
	ported  bool           // last is
	which   []netip.Prefix // of m.ported
	started bool
}

func (b *mapBuilder) add(prefix netip.Prefix, port uint16, to To) {
	if !b.started || prefix != b.last {
		b.flush()
		b.last, b.started, b.ported, b.value = prefix, true, false, nowhere
	}
	if port == 0 { // the first of its prefix
		b.value = uint32(to)
		return
	}
	n := uint32(len(b.m.ports))
	if !b.ported {
		b.ported = true
		b.m.ported = append(b.m.ported, portedPrefix{first: n, last: n, any: b.value, wider: nowhere})
		b.which = append(b.which, prefix)
	}
	b.m.ports = append(b.m.ports, portTo{port, to})
	b.m.ported[len(b.m.ported)-1].last++
}

// flush files the prefix that is complete.
func (b *mapBuilder) flush() {
	switch {
	case !b.started:
	case b.ported:
		b.m.table.Insert(b.last, uint32(len(b.m.ported)-1)|portedBit)
	default:
		b.m.table.Insert(b.last, b.value)
	}
}

// finish lets every ported prefix know the next wider one.
func (b *mapBuilder) finish() *Map {
	b.flush()
	for i, prefix := range b.which {
		for wider, v := range b.m.table.Supernets(prefix) { // narrowest first, prefix itself leading
			if wider != prefix {
				b.m.ported[i].wider = v
				break
			}
		}
	}
	return b.m
}
