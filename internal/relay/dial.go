package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

const (
	// maxAttempts bounds how many sockets of one connection are on their way
	// to addresses of the same name at once.
	maxAttempts = 4
	// attemptDelay is how long one address is given before the next is tried
	// beside it (RFC 8305, section 5).
	attemptDelay = 250 * time.Millisecond
	// retryDelay is how soon an address is tried again after the kernel had
	// no room: a Unix listener's full backlog, descriptors, memory.
	retryDelay = 10 * time.Millisecond
	// downTime is how long a destination that failed is tried after others.
	downTime = 5 * time.Second
)

// dial is a connection's search for its destination: one destination after
// another, each within the connect timeout, and of each all addresses, raced.
type dial struct {
	c        *connection
	order    []*Destination // still to be tried
	current  *Destination
	aim      aim
	next     []netip.Addr // addresses still to be tried
	again    bool         // the Unix address is to be tried, perhaps again
	attempts [maxAttempts]attempt
	flying   int   // attempts on their way
	deadline int64 // of the current destination
	nextAt   int64 // another attempt then; 0: none is planned
	looking  bool  // for the name's addresses
	serial   int   // of the current destination: tells late answers
	err      error // of the last that failed
	won      string
}

// begin tries the first destination; those that failed lately come last.
func (d *dial) begin() {
	all := d.c.w.relay.destinations
	for _, late := range []bool{false, true} {
		for i := range all {
			if (all[i].down.Load() > d.c.w.now) == late {
				d.order = append(d.order, &all[i])
			}
		}
	}
	d.nextDestination()
}

// nextDestination goes on to the next one, or gives up.
func (d *dial) nextDestination() {
	d.stop()
	d.serial++
	if len(d.order) == 0 {
		d.c.w.attrs.unreachable.Add(1)
		d.c.fail("can't connect", d.err)
		return
	}
	d.current, d.order = d.order[0], d.order[1:]
	d.deadline = d.c.w.now + int64(d.c.w.relay.o.ConnectTimeout)
	var err error
	if d.aim, err = d.current.aim(&d.c.facts, d.c.listener, d.c.w.relay.nat64); err != nil {
		d.failed(err)
		return
	}
	switch {
	case d.aim.unix != "":
		d.again = true
	case d.aim.host != "":
		d.lookUp()
		return
	default:
		d.next = d.aim.addr
	}
	d.tryNext()
}

// failed gives the current destination up.
func (d *dial) failed(err error) {
	d.err = fmt.Errorf("%s: %w", d.current, err)
	if d.current.fixed() && len(d.c.w.relay.destinations) > 1 {
		d.current.down.Store(d.c.w.now + int64(downTime))
		d.c.w.relay.warn("destination failed", "to", d.current, "error", err)
	}
	d.nextDestination()
}

// lookUp has the name looked up; the worker goes on meanwhile.
func (d *dial) lookUp() {
	w, serial, left := d.c.w, d.serial, time.Duration(d.deadline-d.c.w.now)
	d.looking = true
	d.schedule()
	w.relay.names.lookUp(d.aim.host, left, func(addrs []netip.Addr, err error) {
		w.post(func() {
			if d.c.state != dialling || d.serial != serial {
				return
			}
			d.looking = false
			if err != nil {
				d.failed(err)
				return
			}
			d.next = interleave(addrs)
			d.tryNext()
		})
	})
}

// tryNext makes one more attempt, or finds that there is nothing left to try.
func (d *dial) tryNext() {
	d.nextAt = 0
	for d.flying < maxAttempts {
		to, ok := d.take()
		if !ok {
			break
		}
		switch err := d.launch(to); {
		case err == nil && d.c.state != dialling:
			return // connected at once
		case err == nil:
			if len(d.next) > 0 {
				d.nextAt = d.c.w.now + int64(attemptDelay)
			}
			d.schedule()
			return
		case isShortage(err, to):
			d.err = err
			d.giveBack(to)
			d.c.w.attrs.shortages.Add(1)
			d.nextAt = d.c.w.now + int64(retryDelay)
			d.schedule()
			return
		default:
			d.err = err
		}
	}
	if d.flying == 0 && d.nextAt == 0 {
		d.failed(d.err)
		return
	}
	d.schedule()
}

// goal is one address to connect to.
type goal struct {
	unix string
	addr netip.AddrPort
}

func (g goal) String() string {
	if g.unix != "" {
		return "unix:" + g.unix
	}
	return g.addr.String()
}

func (d *dial) take() (goal, bool) {
	switch {
	case d.again:
		d.again = false
		return goal{unix: d.aim.unix}, true
	case len(d.next) > 0:
		addr := d.next[0]
		d.next = d.next[1:]
		return goal{addr: netip.AddrPortFrom(addr, d.aim.port)}, true
	}
	return goal{}, false
}

func (d *dial) giveBack(g goal) {
	if g.unix != "" {
		d.again = true
		return
	}
	d.next = append([]netip.Addr{g.addr.Addr()}, d.next...)
}

// isShortage tells whether the kernel lacks something that it will have again.
func isShortage(err error, to goal) bool {
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	// All ports in use; with IPv6 it also says that there is no IPv6.
	return errors.Is(err, unix.EADDRNOTAVAIL) && to.addr.Addr().Is4()
}

// schedule sets the timer for the next attempt or the end of all.
func (d *dial) schedule() {
	due := d.deadline
	if d.nextAt != 0 {
		due = min(due, d.nextAt)
	}
	d.c.w.timers.set(d.c, due)
}

// onTime: another attempt is due, or the time is over.
func (d *dial) onTime() {
	if d.c.w.now < d.deadline {
		d.tryNext()
		return
	}
	err := errors.New("connect timeout")
	if d.looking {
		err = fmt.Errorf("look up %s: timeout", d.aim.host)
	} else if d.err != nil && d.flying == 0 {
		err = fmt.Errorf("connect timeout, last: %w", d.err)
	}
	d.failed(err)
}

// stop closes all attempts.
func (d *dial) stop() {
	for i := range d.attempts {
		d.attempts[i].close()
	}
	d.flying, d.nextAt, d.next, d.again, d.looking = 0, 0, nil, false, false
}

// errSameNamespace is why the default destination is not taken.
var errSameNamespace = &handoff.HintError{
	Err:  errors.New("the listener is in this very network namespace, where its loopback is for its own"),
	Text: "connecting to it would expose services that listen on loopback only; start socketbox-relay in the daemon's namespace, or name it with --netns, or the destination with --to",
}
