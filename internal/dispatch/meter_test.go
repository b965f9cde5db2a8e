package dispatch

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"socketbox/internal/rule"
)

func address6(n uint64) netip.Addr {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], 0x2001_0db8_0000_0000+n)
	return netip.AddrFrom16(a)
}

// A bucket gives out its count at once, and then one in each part of its time; what
// nobody took is not saved beyond the count.
func TestBucket(t *testing.T) {
	r := rule.Rate{Count: 4, Per: time.Second}
	var b bucket
	take := func(now time.Duration, want int) {
		t.Helper()
		n := 0
		for b.due(r) <= now {
			b.take(now, r)
			n++
		}
		if n != want {
			t.Errorf("at %v: %d, expected %d", now, n, want)
		}
	}
	take(0, 4)
	take(249*time.Millisecond, 0)
	take(250*time.Millisecond, 1)
	take(800*time.Millisecond, 2)
	take(time.Minute, 4)
	take(time.Minute+time.Second, 4)
}

// A million sources take no more memory than a few, and one who has just used up
// his tokens is remembered while others come and go.
func TestBucketsBounded(t *testing.T) {
	const sources = 1_000_000
	r := rule.Rate{Count: 2, Per: time.Minute}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	all := newBuckets()
	over := 0
	for i := range uint64(sources) {
		now := time.Duration(i) * time.Microsecond
		for range 3 {
			if b := all.of(address6(i)); b.due(r) <= now {
				b.take(now, r)
			} else {
				over++
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 2<<20 {
		t.Errorf("%d sources take %d bytes", sources, grown)
	}
	if over != sources {
		t.Errorf("%d were over their limit, expected one of each of %d sources", over, sources)
	}
	if n := testing.AllocsPerRun(100, func() { all.of(rule.Source(address6(7))); all.of(rule.Source(netip.MustParseAddr("192.0.2.1"))) }); n != 0 {
		t.Errorf("%v allocations for a look-up", n)
	}
	runtime.KeepAlive(all)
}
