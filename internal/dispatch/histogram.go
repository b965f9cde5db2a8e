package dispatch

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// Bounds are the upper bounds of a Histogram's buckets. The first ones are what
// a hand-off takes, the last ones what a hold may.
var Bounds = [...]time.Duration{
	5 * time.Microsecond, 10 * time.Microsecond, 25 * time.Microsecond, 100 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 5 * time.Second, 30 * time.Second, time.Minute,
}

// Histogram counts durations: one bucket for each of Bounds and one for what
// is longer. Buckets are not cumulative.
type Histogram struct {
	Buckets [len(Bounds) + 1]uint64
	Sum     uint64 // of all durations, in nanoseconds
}

const histogramSize = int(unsafe.Sizeof(Histogram{}))

func (h *Histogram) observe(d time.Duration) {
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.Buckets[i]++
	h.Sum += uint64(max(d, 0))
}

// Snapshot reads the histogram while the dispatcher goes on writing it.
func (h *Histogram) Snapshot() Histogram {
	var s Histogram
	for i := range h.Buckets {
		s.Buckets[i] = atomic.LoadUint64(&h.Buckets[i])
	}
	s.Sum = atomic.LoadUint64(&h.Sum)
	return s
}

// Add returns the sum of two histograms.
func (h Histogram) Add(o Histogram) Histogram {
	for i := range h.Buckets {
		h.Buckets[i] += o.Buckets[i]
	}
	h.Sum += o.Sum
	return h
}

// handedOff notes how long a connection took from accept to hand-off, which was
// now. For one that was not held that is the time since the worker came for it
// or finished what went before, accept4 included: one look at the clock for
// all that are sent together.
func (w *worker) handedOff(c *connection, now time.Duration) {
	took := now - w.mark
	if !c.since.IsZero() {
		took = w.held(c)
	}
	if !c.l.removed {
		w.counters.HandOff(c.l.index).observe(took)
	}
}

// held notes how long c was on hold.
func (w *worker) held(c *connection) time.Duration {
	took := time.Since(c.since)
	w.counters.Hold(c.target).observe(took)
	return took
}

// begin sets the mark that the next connection's time counts from.
func (w *worker) begin() { w.mark = time.Since(w.born) }
