package binder

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
)

// State is what becomes of a listener's clients.
type State string

// The states of a listener. It begins undecided unless the configuration
// decides; the binder alone changes it, and only a reload or a restart makes
// anything else of a listener that is lent.
const (
	Undecided  State = "undecided"  // they wait in the backlog for a receiver or a borrower
	Connection State = "connection" // the dispatcher has the listener, and hands them off
	Lent       State = "lent"       // whoever borrowed the listener accepts them
)

// standing is a listener's state with its history. Copies of a listener under
// another name share it; successors get it.
type standing struct {
	State     State
	Why       string
	Since     time.Time
	Fixed     bool       // by the configuration, not by what happened
	Borrowers []Borrower // the last maxBorrowers of them
	Loans     uint64     // in all
	Elders    []elder    // sockets of earlier runs that still take its clients

	idleWarned  string    // name of a receiver that gets nothing
	firstClient time.Time // since when a client has waited, while undecided
	wishes      listen.Wishes
	revival     revival
}

// verdict is what the configuration says of a listener.
type verdict struct {
	state State
	why   string
	fixed bool
}

// verdictOn reads listener i of cfg. A listener that a rule may take
// connections of is not lent: rules would not be asked.
func verdictOn(cfg *config.Config, i int) verdict {
	l := &cfg.Listeners[i]
	switch {
	case l.Network == listen.Unix:
		return verdict{Connection, "a Unix socket is never lent", true}
	case l.Handoff == config.HandoffConnection:
		return verdict{Connection, `handoff = "connection"`, true}
	case l.Network == listen.UDP:
		return verdict{Lent, "a UDP socket has no connections to hand off", true}
	case l.Handoff == config.HandoffListener:
		return verdict{Lent, `handoff = "listener"`, true}
	case !l.Limit.IsZero():
		return verdict{Connection, "it has a limit of rate, for which its connections are counted", true}
	case l.Steered():
		return verdict{Connection, "it takes more than one address or port", true}
	case l.Transparent:
		return verdict{Connection, "a transparent listener has no port of its own", true}
	}
	if r, ok := cfg.RuleOf(i); ok {
		if r.Line == 0 {
			return verdict{Connection, "--target", true}
		}
		return verdict{Connection, fmt.Sprintf("the rule in line %d takes its connections", r.Line), true}
	}
	return verdict{Undecided, "nobody has borrowed it, and no receiver is live", false}
}

// under returns what the listener's state is under a configuration that says
// v: what happened stays as it was, unless the configuration decides.
func (s *standing) under(v verdict) verdict {
	if v.fixed || s.Fixed || s.State == "" || s.State == Undecided {
		return v
	}
	return verdict{s.State, s.Why, false}
}

// become changes the state of a listener of the table in force.
func (b *binder) become(l *listener, v verdict) {
	s := l.standing
	s.Why, s.Fixed = v.why, v.fixed
	if s.State == v.state {
		return
	}
	was := s.State
	s.State, s.Since, s.firstClient = v.state, time.Now(), time.Time{}
	if was != "" {
		b.log.Info("a listener changes its state", "listener", l.description.Name, "from", was, "to", v.state, "because", v.why)
	}
	b.observe(l)
	if s.State == Connection {
		b.warnOfBorrowers(l)
		b.open(l)
	}
}

// warnOfBorrowers says that what was lent is still out: nothing can call it
// back.
func (b *binder) warnOfBorrowers(l *listener) {
	if out := l.standing.living(); len(out) > 0 {
		b.log.Warn("a listener is handed off that somebody has borrowed: its clients go to either until he ends",
			"listener", l.description.Name, "borrower", out[len(out)-1].String())
	}
}

// open gives the dispatcher a listener that it has not, by the table in force.
// A copy of what it has it closes.
func (b *binder) open(l *listener) {
	c, i := b.child, b.active.indexOf(l)
	if c == nil || c.table != b.active.id || i < 0 || !b.active.plan.Listeners[i].Kept || b.draining || b.yield != nil {
		return // it has it, or gets it when it serves
	}
	fd, err := b.dispatchable(l)
	if err != nil {
		b.log.Error("can't give a listener to the dispatcher", "listener", l.description.Name, "reason", err)
		return
	}
	c.link.send(privsep.Message{Kind: privsep.Listener, Table: b.active.id, ID: l.id, FDs: []int{fd}})
}

// openKept gives the dispatcher what has become its business since its table
// was made.
func (b *binder) openKept() {
	for _, l := range b.active.listeners {
		if l.standing.State == Connection {
			b.open(l)
		}
	}
}

// dispatchable returns a copy of l's descriptor that accept does not block on:
// a borrower may have changed that for all.
func (b *binder) dispatchable(l *listener) (int, error) {
	if err := unix.SetNonblock(l.fd, true); err != nil {
		return -1, fmt.Errorf("fcntl: %w", err)
	}
	return duplicate(l.fd)
}

// settleStates puts the states that the table now in force asks for in force.
func (b *binder) settleStates() {
	for i, l := range b.active.listeners {
		l.allowed = b.active.allowed[i]
		b.become(l, l.standing.under(verdictOn(b.active.cfg, i)))
		b.observe(l)
	}
	b.openKept()
}

// standings returns the states of the listeners, for a successor.
func (b *binder) standings() map[string]standing {
	all := map[string]standing{}
	for _, l := range b.active.listeners {
		all[l.key()] = *l.standing
	}
	return all
}

// takeStandings takes over what a predecessor has decided, and to whom he has
// lent, since this instance began.
func (b *binder) takeStandings(all map[string]standing) {
	for _, l := range b.active.listeners {
		was, known := all[l.key()]
		if !known {
			continue
		}
		own := l.standing
		own.Borrowers, own.Loans = was.Borrowers, was.Loans
		if own.State == Undecided && was.State != Undecided {
			b.become(l, verdict{was.State, was.Why, false})
		}
		if own.State == was.State {
			own.Since = was.Since
		}
	}
}

// boundPort returns the port that a socket is bound to, 0 if it has none.
func boundPort(fd int) uint16 {
	address, err := unix.Getsockname(fd)
	if err != nil {
		return 0
	}
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}
