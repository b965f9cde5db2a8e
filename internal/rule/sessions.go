package rule

import (
	"errors"
	"fmt"
	"net/netip"
)

// Sessions bounds how many connections of a rule live at once, after hand-off
// too. The zero value is no limit. What is over it waits or, with Reject, is
// reset.
type Sessions struct {
	Max       int // in all; 0: no limit
	PerSource int // of one source; 0: no limit
	Reject    bool
}

// MaxSessions bounds both numbers, and how many sessions are remembered for all
// rules together.
const MaxSessions = 1 << 20

// IsZero reports whether s limits nothing.
func (s Sessions) IsZero() bool { return s.Max == 0 && s.PerSource == 0 }

func (s Sessions) check() error {
	switch {
	case s.Max < 0 || s.PerSource < 0 || s.Max > MaxSessions || s.PerSource > MaxSessions:
		return fmt.Errorf("%d sessions, %d of a source, at most %d", s.Max, s.PerSource, MaxSessions)
	case s.Reject && s.IsZero():
		return errors.New("sessions rejected without a limit")
	}
	return nil
}

// Source is whom an address is counted for: itself, or the IPv6 /64 that it is
// in, of which a client can take any address.
func Source(a netip.Addr) netip.Addr {
	const network = 64
	return networkOf(a, network)
}

// networkOf is the IPv6 network of so many bits that a is in; IPv4 stays as it is.
func networkOf(a netip.Addr, bits int) netip.Addr {
	if !a.Is6() { // Prefix would allocate an error
		return a
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return a
	}
	return p.Addr()
}

func appendSessions(b []byte, s Sessions) []byte {
	kind := byte(0)
	switch {
	case s.IsZero():
		return append(b, kind)
	case s.Reject:
		kind = 2
	default:
		kind = 1
	}
	return appendInt(appendInt(append(b, kind), s.Max), s.PerSource)
}

func (d *decoder) sessions() Sessions {
	kind := d.byte()
	if kind == 0 || d.err != nil {
		return Sessions{}
	}
	s := Sessions{Reject: kind == 2, Max: d.int(), PerSource: d.int()}
	if d.err == nil && (kind > 2 || s.IsZero()) {
		d.err = errForm
	}
	return s
}
