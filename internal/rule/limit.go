package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Rate is so many connections in a time; the zero value is no limit.
type Rate struct {
	Count int
	Per   time.Duration
}

// String spells r as the configuration does.
func (r Rate) String() string {
	units := map[time.Duration]string{time.Second: "s", time.Minute: "m", time.Hour: "h"}
	if unit := units[r.Per]; unit != "" {
		return fmt.Sprintf("%d/%s", r.Count, unit)
	}
	return fmt.Sprintf("%d in %v", r.Count, r.Per)
}

// MaxRateCount bounds a rate, far above what one machine accepts.
const MaxRateCount = 1 << 24

// Tiers of a source, each with a rate of its own: a client can take any
// address of its network, and may have been given more than one network.
const (
	TierHost = iota // an IPv4 address, an IPv6 /64
	Tier56          // an IPv6 /56
	Tier48          // an IPv6 /48
	Tiers
)

// Limit bounds how many connections a listener or a rule takes; the zero
// value is no limit. What is over it waits or, with Reject, is reset.
type Limit struct {
	Rate      Rate
	PerSource [Tiers]Rate
	Reject    bool
}

// IsZero reports whether l limits nothing.
func (l *Limit) IsZero() bool { return l.Rate == Rate{} && !l.HasSources() }

// HasSources reports whether l tells sources apart.
func (l *Limit) HasSources() bool { return l.PerSource != [Tiers]Rate{} }

func (l *Limit) check() error {
	for _, r := range append(l.PerSource[:], l.Rate) {
		if r.Count < 0 || r.Count > MaxRateCount || r.Per < 0 || (r.Count == 0) != (r.Per == 0) {
			return fmt.Errorf("rate of %d connections in %s", r.Count, r.Per)
		}
	}
	if l.Reject && l.IsZero() {
		return errors.New("reject without a limit")
	}
	return nil
}

// AppendBinary appends the encoding of l: a byte, 0 for no limit, 1 and 2 with
// Reject, and then all rates.
func (l *Limit) AppendBinary(b []byte) []byte {
	switch {
	case l.IsZero():
		return append(b, 0)
	case l.Reject:
		b = append(b, 2)
	default:
		b = append(b, 1)
	}
	for _, r := range append([]Rate{l.Rate}, l.PerSource[:]...) {
		b = appendInt(appendInt(b, r.Count), int(r.Per))
	}
	return b
}

// DecodeLimit reads what AppendBinary wrote from the front of b.
func DecodeLimit(b []byte) (l Limit, rest []byte, err error) {
	d := decoder{rest: b}
	l = d.limit()
	if d.err == nil {
		d.err = l.check()
	}
	return l, d.rest, d.err
}

func (d *decoder) limit() Limit {
	kind := d.byte()
	if kind == 0 || d.err != nil {
		return Limit{}
	}
	l := Limit{Reject: kind == 2, Rate: d.rate()}
	for i := range l.PerSource {
		l.PerSource[i] = d.rate()
	}
	if d.err == nil && (kind > 2 || l.IsZero()) {
		d.err = errForm
	}
	return l
}

func (d *decoder) rate() Rate { return Rate{Count: d.int(), Per: time.Duration(d.uint64())} }

// SourceTier is whom an address is counted for in a tier; ok is false where the
// tier is not for its family.
func SourceTier(a netip.Addr, tier int) (source netip.Addr, ok bool) {
	return networkOf(a, [Tiers]int{TierHost: 64, Tier56: 56, Tier48: 48}[tier]), tier == TierHost || a.Is6()
}
