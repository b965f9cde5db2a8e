package binder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/listen"
	"socketbox/internal/privsep"
)

// This file is the running instance's side of `socketbox bind --takeover`. The
// successor asks for the estate, starts a dispatcher of its own on the same
// listeners, and only then has this one yield: it gives back what is on hold,
// and ends once the successor says that it has everything. Whatever fails
// before that word leaves this instance serving, with what was on hold.

// estate is what a successor needs to know. The listeners' descriptors follow
// in packets, in the same order.
type estate struct {
	PID       int
	User, Dir string
	Control   string // path of the control socket, whose descriptor comes along
	Listeners []listen.Description
	Standings []standing // of the listeners
}

// held is a connection on its way from one instance's hold to the next's.
type held struct {
	Listener string // key of its description; "" if the listener is gone
	Mapped   bool
	Key      privsep.Key
	fd       int
}

// key tells listeners apart by everything but their names.
func (l *listener) key() string { return keyOf(l.description) }

func keyOf(d listen.Description) string {
	d.Name = ""
	return fmt.Sprintf("%+v", d)
}

// legacy is what an instance leaves; the descriptors of what was on hold
// follow in packets, in the same order.
type legacy struct {
	Accounts  accounts
	Held      []held
	Standings map[string]standing // of the listeners, by key of description
}

// yielding is a takeover that the dispatcher has been told of.
type yielding struct {
	held []held
	done func() // the dispatcher has ended
}

// yieldTime bounds how long a dispatcher may take to give everything back.
const yieldTime = 20 * time.Second

func (b *binder) estate() (*estate, []int, error) {
	switch {
	case b.reload != nil:
		return nil, nil, errors.New("a reload is under way, try again")
	case b.child == nil || b.child.table == 0 || b.draining || b.yield != nil:
		return nil, nil, errors.New("not serving at the moment, try again")
	}
	e := &estate{PID: os.Getpid(), User: b.active.cfg.User, Dir: b.active.cfg.Dir, Control: b.h.Control}
	var fds []int
	for _, l := range b.active.listeners {
		fd, err := duplicate(l.fd)
		if err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		e.Listeners = append(e.Listeners, l.description)
		e.Standings = append(e.Standings, *l.standing)
		fds = append(fds, fd)
	}
	return e, fds, nil
}

// beginYield has the dispatcher give back what it holds; done follows when it
// has ended.
func (b *binder) beginYield(done func()) error {
	if b.child == nil || b.child.table == 0 || b.draining || b.reload != nil || b.yield != nil {
		return errors.New("not serving at the moment")
	}
	y := &yielding{done: done}
	b.yield = y
	b.suspendLending()
	b.log.Info("another instance takes over: giving back what is held")
	b.child.link.send(privsep.Message{Kind: privsep.Yield})
	c := b.child
	time.AfterFunc(yieldTime, func() {
		b.calls <- func() {
			if b.yield == y && b.child == c {
				b.condemn(c, errors.New("it did not give back in time what it holds"))
			}
		}
	})
	return nil
}

// keepHeld notes a connection that the dispatcher gave back.
func (b *binder) keepHeld(m privsep.Message) error {
	if b.yield == nil {
		closeAll(m.FDs)
		return fmt.Errorf("%w: a connection that nobody asked for", privsep.ErrProtocol)
	}
	h := held{Mapped: m.Value == privsep.Mapped, Key: m.Key, fd: m.FDs[0]}
	for _, l := range b.active.listeners {
		if l.id == m.ID {
			h.Listener = l.key()
		}
	}
	b.yield.held = append(b.yield.held, h)
	return nil
}

// resume serves on after a successor has failed.
func (b *binder) resume(given []held, reason error) {
	b.log.Error("the instance that was to take over failed, serving on", "reason", reason)
	b.yield = nil
	b.adopted = append(b.adopted, given...)
	b.respawn()
	b.bindLoans()
}

// adoptHeld gives the dispatcher what earlier ones had on hold.
func (b *binder) adoptHeld() {
	for _, h := range b.adopted {
		m := privsep.Message{Kind: privsep.Adopt, Key: h.Key, FDs: []int{h.fd}}
		if h.Mapped {
			m.Value = privsep.Mapped
		}
		for _, l := range b.active.listeners {
			if l.key() == h.Listener {
				m.ID = l.id
			}
		}
		b.child.link.send(m)
	}
	b.adopted = nil
}

// bequeath answers a "takeover" request: what there is, and the control
// socket; then the listeners.
func (c *client) bequeath() bool {
	type result struct {
		e   *estate
		fds []int
		err error
	}
	results := make(chan result, 1)
	c.b.calls <- func() {
		e, fds, err := c.b.estate()
		results <- result{e, fds, err}
	}
	r := <-results
	if r.err != nil {
		c.answer(r.err, nil)
		return false
	}
	defer closeAll(r.fds)
	text, err := sealedJSON(r.e)
	if err != nil {
		c.answer(err, nil)
		return false
	}
	defer unix.Close(text)
	if !c.answer(nil, []int{text, c.b.control}) {
		return false
	}
	for fds := r.fds; len(fds) > 0; {
		n := min(len(fds), fdsPerPacket)
		if !c.answer(nil, fds[:n]) {
			return false
		}
		fds = fds[n:]
	}
	return true
}

func sealedJSON(v any) (int, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return -1, err
	}
	return privsep.SealedFile(text)
}

// yield answers a "yield" request: everything that was on hold, then the
// final counts. The successor's "farewell" ends this instance.
func (c *client) yield() bool {
	ended := make(chan []held, 1)
	started := make(chan error, 1)
	b := c.b
	b.calls <- func() {
		started <- b.beginYield(func() { ended <- b.yield.held })
	}
	if err := <-started; err != nil {
		c.answer(err, nil)
		return false
	}
	given := <-ended
	err := c.handOver(given)
	b.calls <- func() {
		if err != nil {
			b.resume(given, err)
			return
		}
		for _, h := range given {
			unix.Close(h.fd)
		}
		b.log.Info("another instance has taken over", "held", len(given))
		b.succeeded = true
	}
	return false
}

// handOver sends the counts and what was on hold, and waits for the farewell.
func (c *client) handOver(given []held) error {
	left := make(chan legacy, 1)
	c.b.calls <- func() { left <- legacy{c.b.accounts(), given, c.b.standings()} }
	text, err := sealedJSON(<-left)
	if err != nil {
		return err
	}
	defer unix.Close(text)
	if !c.answer(nil, []int{text}) {
		return errors.New("it ended before it had the counts")
	}
	for rest := given; len(rest) > 0; {
		var fds []int
		for _, h := range rest[:min(len(rest), fdsPerPacket)] {
			fds = append(fds, h.fd)
		}
		if !c.answer(nil, fds) {
			return errors.New("it ended before it had everything that was held")
		}
		rest = rest[len(fds):]
	}
	buf := make([]byte, maxControlPacket)
	m, err := receivePacket(c.raw, buf, fdsPerPacket)
	if err != nil {
		return err
	}
	defer m.Close()
	var q request
	if json.Unmarshal(buf[:m.N], &q) != nil || q.Op != "farewell" {
		return errors.New("it ended before it said that it has everything")
	}
	return nil
}
