package dispatch

import (
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
)

// traceRoom is how many decisions a trace keeps: at 40,000 connections a
// second those of 100 ms.
const traceRoom = 4096

// trace is how decisions get out of a process that may write to nothing: a
// ring in the memory file of counters. The binder sets on while somebody
// watches and reads what is new; what it does not read in time is overwritten,
// and the numbers tell how much that was. While it is off it costs a
// connection one look at a word that nobody writes.
type trace struct {
	on   uint32 // written by the binder
	_    [60]byte
	next uint64 // number of the latest decision; written by the dispatcher
	_    [56]byte
	ring [traceRoom]Decision
}

const traceSize = int(unsafe.Sizeof(trace{}))

// Outcome is what became of a connection in a Decision.
type Outcome uint8

// The outcomes. Held is followed by another one, sooner or later.
const (
	Delivered Outcome = iota + 1
	Held
	Rejected
	Failed
)

// String is the outcome as trace and its JSON spell it.
func (o Outcome) String() string {
	if names := [...]string{"", "delivered", "held", "rejected", "failed"}; int(o) < len(names) {
		return names[o]
	}
	return "unknown"
}

// Decision is one decision of a dispatcher. Who reads it believes nothing: a
// dispatcher in hostile hands can write anything here.
type Decision struct {
	number     uint64 // 0 while it is written
	Time       int64  // Unix, nanoseconds
	Wait       int64  // nanoseconds on hold
	Listener   uint32 // ID; 0: one that a reload removed
	Rule       int32  // -1: none
	Target     int32  // -1: none, rejected
	Sink       uint32 // 0: not resolved yet
	Errno      uint32
	Outcome    Outcome
	Cause      Cause // of Failed
	RemotePort uint16
	LocalPort  uint16
	_          uint16
	remote     [16]byte
	local      [16]byte
}

// Remote is the client's address, invalid for a Unix client.
func (d *Decision) Remote() netip.Addr { return unpack(d.remote) }

// Local is the address that the client dialled, invalid for a Unix client.
func (d *Decision) Local() netip.Addr { return unpack(d.local) }

func pack(a netip.Addr) [16]byte {
	if !a.IsValid() {
		return [16]byte{}
	}
	return a.As16()
}

func unpack(b [16]byte) netip.Addr {
	if b == ([16]byte{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(b).Unmap()
}

// tracing says whether somebody watches.
func (w *worker) tracing() bool { return atomic.LoadUint32(&w.counters.trace.on) != 0 }

// decide writes a decision about c, if somebody watches.
func (w *worker) decide(c *connection, outcome Outcome, cause Cause, errno unix.Errno) {
	if !w.tracing() {
		return
	}
	t := w.counters.trace
	number := t.next + 1
	d := &t.ring[number%traceRoom]
	atomic.StoreUint64(&d.number, 0)
	now := time.Now()
	d.Time, d.Wait = now.UnixNano(), 0
	if !c.since.IsZero() {
		d.Wait = int64(now.Sub(c.since))
	}
	d.Rule, d.Target, d.Outcome, d.Cause, d.Errno = int32(c.rule), int32(c.target), outcome, cause, uint32(errno)
	d.Listener, d.Sink = 0, 0
	if !c.l.removed {
		d.Listener = c.l.ID
	}
	if c.route != nil {
		d.Sink = c.route.sink.id
	}
	d.remote, d.local = pack(c.facts.Remote), pack(c.facts.Local)
	d.RemotePort, d.LocalPort = c.port, c.facts.Port
	if c.family == privsep.Unix {
		d.remote, d.local = [16]byte{}, [16]byte{}
	}
	atomic.StoreUint64(&d.number, number)
	atomic.StoreUint64(&t.next, number)
}

// Trace turns the trace on or off; the binder's side.
func (c *Counters) Trace(on bool) {
	v := uint32(0)
	if on {
		v = 1
	}
	atomic.StoreUint32(&c.trace.on, v)
}

// Latest is the number of the latest decision.
func (c *Counters) Latest() uint64 { return atomic.LoadUint64(&c.trace.next) }

// Decisions returns the decisions behind number after, the latest one's number,
// and how many are lost: overwritten before they were read.
func (c *Counters) Decisions(after uint64) (found []Decision, latest, lost uint64) {
	latest = c.Latest()
	if latest <= after { // none, or a dispatcher that lies
		return nil, latest, 0
	}
	if latest-after > traceRoom {
		lost = latest - after - traceRoom
		after = latest - traceRoom
	}
	for n := after + 1; n <= latest && n != 0; n++ {
		d := &c.trace.ring[n%traceRoom]
		if atomic.LoadUint64(&d.number) != n {
			lost++
			continue
		}
		copied := *d
		if atomic.LoadUint64(&d.number) != n {
			lost++
			continue
		}
		found = append(found, copied)
	}
	return found, latest, lost
}
