package rule

import (
	"encoding/binary"
	"net/netip"
)

// MaxPlaces bounds the sockets of one target.
const MaxPlaces = 64

// AnyPlace is the place of a connection that has not been balanced yet.
const AnyPlace = ^uint32(0)

// Balanced reports whether connections to t choose among several places by
// its Balance. The paths of a map are places too, but the map chooses.
func (t *Target) Balanced() bool { return t.Places > 1 && t.Balance != ByMap }

// String is the balance as the configuration spells it.
func (b Balance) String() string {
	return [...]string{"failover", "round-robin", "source-hash", "by table"}[min(b, ByMap)]
}

// HashWeight says how much place i wants a client: SourceHash sends it to the
// living place that wants it most (rendezvous hashing), so that a place that
// dies moves its own clients only, and they come back when it does. An IPv6
// client is its /64, of which it can take any address.
func HashWeight(client netip.Addr, i int) uint64 {
	a := Source(client).As16() // an invalid address, of a Unix client, is ::
	h := mix(binary.BigEndian.Uint64(a[:8]))
	h = mix(h ^ binary.BigEndian.Uint64(a[8:]))
	return mix(h ^ uint64(i+1))
}

// mix is the finaliser of splitmix64 (Steele, Lea and Flood, 2014): each bit of
// v changes half the bits of the result.
func mix(v uint64) uint64 {
	v += 0x9e3779b97f4a7c15
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}
