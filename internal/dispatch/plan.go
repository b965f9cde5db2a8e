package dispatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// Plan is all that a dispatcher needs to know to work: the binder makes it
// from the configuration and passes it in a sealed memory file. It holds no
// path.
type Plan struct {
	LogLevel       string
	LogFormat      string
	LogConnections bool
	HoldTotal      int // connections held for all sinks together
	Listeners      []ListenerPlan
	Maps           []uint32 // IDs of the table's maps, in order, whose files come apart
	Table          *rule.Table
}

// ListenerPlan describes a listener, whose descriptor comes apart.
type ListenerPlan struct {
	ID      uint32 // the binder's number for it, never used twice
	Name    string
	Family  privsep.Family // NoFamily: both, the accepted socket tells
	Port    uint16         // 0: not fixed (transparent), or no TCP
	Address netip.Addr     // where it is bound; unspecified or invalid: ask each connection
	Kept    bool           // the binder keeps its descriptor, for now or for good
	Limit   rule.Limit     // of all its connections
}

// MaxPlan bounds a plan's encoded size: 100,000 rules of several hundred
// bytes each.
const MaxPlan = 64 << 20

const planVersion = 3

// Encode returns the plan's binary form, for DecodePlan of the same build.
func (p *Plan) Encode() ([]byte, error) {
	b := []byte{planVersion, boolByte(p.LogConnections)}
	b = appendString(appendString(b, p.LogLevel), p.LogFormat)
	b = binary.AppendUvarint(b, uint64(p.HoldTotal))
	b = binary.AppendUvarint(b, uint64(len(p.Listeners)))
	for _, l := range p.Listeners {
		b = binary.AppendUvarint(b, uint64(l.ID))
		b = append(b, byte(l.Family), boolByte(l.Kept))
		b = binary.LittleEndian.AppendUint16(b, l.Port)
		b = appendString(appendString(b, l.Name), string(l.Address.AsSlice()))
		b = l.Limit.AppendBinary(b)
	}
	b = binary.AppendUvarint(b, uint64(len(p.Maps)))
	for _, id := range p.Maps {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return p.Table.AppendBinary(b)
}

// DecodePlan reads what Encode wrote. The plan comes from the binder, which
// is trusted; the checks keep a mistake from becoming a crash later.
func DecodePlan(b []byte) (*Plan, error) {
	d := decoder{b: b}
	if v := d.byte(); v != planVersion {
		return nil, fmt.Errorf("plan of version %d, this program reads %d", v, planVersion)
	}
	p := &Plan{LogConnections: d.byte() != 0, LogLevel: d.string(), LogFormat: d.string()}
	p.HoldTotal = int(d.uint())
	n := d.uint()
	if n > rule.MaxListeners {
		return nil, fmt.Errorf("plan with %d listeners, at most %d", n, rule.MaxListeners)
	}
	for range n {
		l := ListenerPlan{ID: uint32(d.uint()), Family: privsep.Family(d.byte()), Kept: d.byte() != 0, Port: d.uint16(), Name: d.string()}
		l.Address, _ = netip.AddrFromSlice([]byte(d.string()))
		var err error
		if l.Limit, d.b, err = rule.DecodeLimit(d.b); err != nil {
			return nil, fmt.Errorf("plan: listener %s: %w", l.Name, err)
		}
		if l.Family > privsep.Unix || len(l.Name) > handoff.MaxName {
			d.bad = true
		}
		p.Listeners = append(p.Listeners, l)
	}
	maps := d.uint()
	if maps > rule.MaxMaps {
		return nil, fmt.Errorf("plan with %d maps, at most %d", maps, rule.MaxMaps)
	}
	for range maps {
		p.Maps = append(p.Maps, uint32(d.uint()))
	}
	if d.bad {
		return nil, errors.New("plan is damaged")
	}
	var err error
	if p.Table, err = rule.DecodeTable(d.b); err == nil && len(p.Table.Maps) != len(p.Maps) {
		err = fmt.Errorf("plan with %d maps, table with %d", len(p.Maps), len(p.Table.Maps))
	}
	return p, err
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder takes fields from the front of b; after a field that is not there
// everything is zero and bad is set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.bad, d.b = true, nil
		return nil
	}
	field := d.b[:n]
	d.b = d.b[n:]
	return field
}

func (d *decoder) byte() byte {
	if f := d.take(1); f != nil {
		return f[0]
	}
	return 0
}

func (d *decoder) uint16() uint16 {
	if f := d.take(2); f != nil {
		return binary.LittleEndian.Uint16(f)
	}
	return 0
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	return string(d.take(int(n)))
}
