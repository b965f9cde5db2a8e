package relay

import (
	"errors"
	"fmt"
	"net/netip"
)

// nat64 finds IPv4 destinations in the IPv6 addresses that clients dial.
type nat64 struct{ prefix netip.Prefix }

// wellKnown is the prefix of RFC 6052, section 2.1, which must not stand for
// addresses that are not global (3.1).
var wellKnown = netip.MustParsePrefix("64:ff9b::/96")

// parseNAT64 reads a prefix of 64 or 96 bits.
func parseNAT64(text string) (nat64, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil || !prefix.Addr().Is6() || prefix.Addr().Is4In6() || prefix.Addr().Zone() != "" ||
		prefix.Bits() != 96 && prefix.Bits() != 64 {
		return nat64{}, fmt.Errorf("prefix %q: want an IPv6 prefix of 96 or 64 bits, as 64:ff9b::/96", text)
	}
	if prefix != prefix.Masked() {
		return nat64{}, fmt.Errorf("prefix %q: want it as %s", text, prefix.Masked())
	}
	return nat64{prefix}, nil
}

// embedded returns the IPv4 address in the last 32 bits of a, an address in
// the prefix. Behind 64 bits it may also be where RFC 6052, section 2.2, puts
// it: in bits 72 to 103. Bits 64 to 95 are zero in the first form and never
// in the second, whose address would begin with 0.0.0.
func (n nat64) embedded(a netip.Addr) (netip.Addr, error) {
	if !n.prefix.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%s is not in %s", a, n.prefix)
	}
	b := a.As16()
	four := [4]byte(b[12:16])
	if [4]byte(b[8:12]) != [4]byte{} && n.prefix.Bits() == 64 {
		four = [4]byte(b[9:13])
		if b[8] != 0 || [3]byte(b[13:16]) != [3]byte{} {
			return netip.Addr{}, fmt.Errorf("%s has an IPv4 address neither in its last 32 bits nor as RFC 6052 has it", a)
		}
	}
	v4 := netip.AddrFrom4(four)
	if err := n.allowed(v4); err != nil {
		return netip.Addr{}, fmt.Errorf("%s: %w", v4, err)
	}
	return v4, nil
}

// allowed refuses what a stranger must not reach by choosing an address: this
// machine's loopback, and all that is nobody's.
func (n nat64) allowed(a netip.Addr) error {
	switch {
	case a.IsLoopback(), a.As4()[0] == 0:
		return errors.New("this machine itself can't be reached through NAT64")
	case !a.IsGlobalUnicast(), a.As4()[0] >= 240, a.IsLinkLocalUnicast():
		return errors.New("no unicast address beyond this link")
	case a.IsPrivate() && n.prefix == wellKnown:
		return fmt.Errorf("a private address must not be reached through %s (RFC 6052, section 3.1); use a prefix of your own", n.prefix)
	}
	return nil
}
