package binder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/privsep"
)

// This file is the successor's side of `socketbox bind --takeover`; yield.go
// is the other one.

// maxEstate bounds what a predecessor may send.
const maxEstate = 64 << 20

// predecessor is the running instance, seen from the privileged stage of the
// one that takes over.
type predecessor struct {
	session *session
	estate  estate
	control int
	fds     []int // of estate.Listeners
}

// findPredecessor asks the instance of cfg for its listeners and its control
// socket. It goes on serving.
func findPredecessor(cfg *config.Config) (*predecessor, error) {
	s, err := dial(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	p := &predecessor{session: s, control: -1}
	if err = p.ask(cfg); err != nil {
		p.close()
		return nil, fmt.Errorf("take over from the running instance: %w", err)
	}
	return p, nil
}

func (p *predecessor) ask(cfg *config.Config) error {
	fds, err := p.session.askFor(2, request{Op: "takeover"})
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	p.control = fds[1]
	if err := readJSON(fds[0], &p.estate); err != nil {
		return err
	}
	if p.estate.User != cfg.User || p.estate.Dir != cfg.Dir {
		return withHint(fmt.Errorf("it runs as user %q with directory %q, not %q and %q", p.estate.User, p.estate.Dir, cfg.User, cfg.Dir),
			"a change of user or dir needs a restart")
	}
	p.fds, err = p.session.collect(len(p.estate.Listeners))
	return err
}

func (p *predecessor) close() {
	p.session.file.Close()
	closeAll(p.fds)
	if p.control >= 0 {
		unix.Close(p.control)
	}
}

// inherited makes the predecessor's listeners ones that the configuration may
// choose from.
func (p *predecessor) inherited() []*inherited {
	var all []*inherited
	for i, d := range p.estate.Listeners {
		all = append(all, &inherited{fd: p.fds[i], d: d, key: keyOf(d)})
	}
	return all
}

// standings returns the states of the predecessor's listeners, by key of their
// descriptions; one that lends nothing tells none.
func (p *predecessor) standings() map[string]standing {
	all := map[string]standing{}
	for i, s := range p.estate.Standings[:min(len(p.estate.Standings), len(p.estate.Listeners))] {
		all[keyOf(p.estate.Listeners[i])] = s
	}
	return all
}

// fd gives the conversation's descriptor to the stage that follows.
func (p *predecessor) fd() (int, error) { return duplicate(int(p.session.file.Fd())) }

// succeed has the predecessor yield, takes what it had on hold, and bids it
// farewell. It runs beside the loop, once this instance serves.
func (b *binder) succeed(fd int) {
	file := os.NewFile(uintptr(fd), "predecessor")
	defer file.Close()
	s, err := newSession(file)
	var l *legacy
	if err == nil {
		l, err = s.inheritLegacy()
	}
	ended := make(chan struct{})
	b.calls <- func() {
		defer close(ended)
		switch {
		case err == nil:
			b.takeLegacy(l)
		case unix.Kill(b.h.Predecessor, 0) == unix.ESRCH:
			b.log.Error("the instance before has died while it gave back what it held", "reason", err)
		default:
			b.failed = fmt.Errorf("take over from the running instance, which serves on: %w", err)
			return
		}
		if err := b.serveControl(); err != nil {
			b.failed = err
			return
		}
		b.announce()
		b.settleSessions()
	}
	<-ended
	if err == nil {
		sendPacket(s.raw, request{Op: "farewell"}, nil)
	}
}

// inheritLegacy receives the final counts and what was on hold.
func (s *session) inheritLegacy() (*legacy, error) {
	fds, err := s.askFor(1, request{Op: "yield"})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fds[0])
	l := &legacy{}
	if err := readJSON(fds[0], l); err != nil {
		return nil, err
	}
	fds, err = s.collect(len(l.Held))
	if err != nil {
		return nil, err
	}
	for i := range l.Held {
		l.Held[i].fd = fds[i]
	}
	return l, nil
}

// takeLegacy adds the counts of the instance before to this one's and puts
// what it had on hold on hold here.
func (b *binder) takeLegacy(l *legacy) {
	for _, own := range b.active.listeners {
		own.base = own.base.Add(l.Accounts.Listeners[own.key()])
		own.handOff = own.handOff.Add(l.Accounts.HandOff[own.key()])
	}
	if b.active.before.Counts == nil {
		b.active.before = earlier{l.Accounts.Targets, l.Accounts.Causes, l.Accounts.Hold}
	}
	b.takeStandings(l.Standings)
	b.restarts += l.Accounts.Restarts
	b.adopted = append(b.adopted, l.Held...)
	if b.child != nil && b.child.table != 0 {
		b.adoptHeld()
	}
	b.log.Info("taken over from the instance before", "pid", b.h.Predecessor, "held", len(l.Held))
}

// askFor is ask for an answer with n descriptors.
func (s *session) askFor(n int, q request) ([]int, error) {
	fds, err := s.ask(q)
	if err == nil && len(fds) != n {
		closeAll(fds)
		err = fmt.Errorf("the binder's answer has %d descriptors, expected %d", len(fds), n)
	}
	return fds, err
}

// collect receives n descriptors, which come in several packets.
func (s *session) collect(n int) ([]int, error) {
	var all []int
	for len(all) < n {
		fds, err := s.answer()
		if err == nil && (len(fds) == 0 || len(all)+len(fds) > n) {
			closeAll(fds)
			err = errors.New("the binder sent other descriptors than it said")
		}
		if err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

func readJSON(fd int, v any) error {
	text, err := privsep.ReadFile(fd, maxEstate)
	if err != nil {
		return fmt.Errorf("the binder's answer: %w", err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("the binder's answer: %w", err)
	}
	return nil
}
