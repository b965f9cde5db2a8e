package binder

import (
	"net/netip"

	"socketbox/internal/listen"
)

// places finds the listener of one namespace that a connection came by, as the
// kernel does: the one of that very address before the one of all addresses.
type places struct {
	exact   map[netip.AddrPort]*listener
	any4    map[uint16]*listener
	any6    map[uint16]*listener
	steered []*listener
}

func newPlaces() *places {
	return &places{exact: map[netip.AddrPort]*listener{}, any4: map[uint16]*listener{}, any6: map[uint16]*listener{}}
}

func (p *places) add(l *listener) {
	d := l.description
	switch a := d.Address.Unmap().WithZone(""); {
	case d.Network != listen.TCP:
	case d.Steered():
		p.steered = append(p.steered, l)
	case d.Both:
		p.any6[d.Port] = l
		if p.any4[d.Port] == nil {
			p.any4[d.Port] = l
		}
	case !a.IsUnspecified():
		p.exact[netip.AddrPortFrom(a, d.Port)] = l
	case a.Is4():
		p.any4[d.Port] = l
	default:
		p.any6[d.Port] = l
	}
}

// of returns the listener of a connection's local end, nil if it came by none.
func (p *places) of(local netip.AddrPort) *listener {
	local = unmapped(local)
	for _, l := range p.steered {
		if d := l.description; d.Prefix.Contains(local.Addr()) && d.First <= local.Port() && local.Port() <= d.Last {
			return l
		}
	}
	if l := p.exact[local]; l != nil {
		return l
	}
	if local.Addr().Is4() {
		return p.any4[local.Port()]
	}
	return p.any6[local.Port()]
}
