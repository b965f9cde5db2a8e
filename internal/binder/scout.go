package binder

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// defaultTime is how long the first client of an undecided listener waits for a
// borrower, or a receiver of its port, before default.sock takes it. A binder
// that has just started would otherwise be decided by whoever is there already.
const defaultTime = time.Second

// scout looks whether an undecided listener has a receiver: a live one of its
// port makes it one whose connections are handed off; a live default.sock does
// so only once a client has waited.
func (b *binder) scout(l *listener) {
	st := l.standing
	if st.State != Undecided || b.before >= 0 || b.yield != nil {
		return // with a predecessor it is he who decides
	}
	if dir := b.active.cfg.Dir; unix.Access(dir, unix.X_OK) == unix.EACCES {
		b.become(l, verdict{Connection, "the binder may not enter " + dir, false}) // clients hear of it
		return
	}
	for _, name := range receiversOf(l) {
		if name == defaultReceiver && !b.clientHasWaited(l) {
			return
		}
		if b.received(filepath.Join(b.active.cfg.Dir, name)) {
			b.become(l, verdict{Connection, name + " is live", false})
			return
		}
	}
}

const defaultReceiver = "default.sock"

// receiversOf returns the names under which connections of l are looked for in
// the main socket directory, the default last.
func receiversOf(l *listener) []string {
	var names []string
	seen := map[string]bool{defaultReceiver: true}
	for _, family := range []privsep.Family{privsep.IPv4, privsep.IPv6} {
		if p := planOf(l); p.Family != privsep.NoFamily && p.Family != family {
			continue
		}
		for _, path := range rule.Candidates("/", l.bound, family.String()) {
			if name := filepath.Base(path); !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return append(names, defaultReceiver)
}

// clientHasWaited says whether somebody has been in the backlog for defaultTime
// and still is there.
func (b *binder) clientHasWaited(l *listener) bool {
	st := l.standing
	if st.firstClient.IsZero() || time.Since(st.firstClient) < defaultTime {
		return false
	}
	p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 0); err == nil && n == 0 {
		st.firstClient = time.Time{} // gone, or served by an earlier borrower
		return false
	}
	return true
}

// received says whether somebody receives at path. A receiver that the binder
// may not reach is one all the same: that its clients can't is worth a line in
// the log, not a wait without end.
func (b *binder) received(path string) bool {
	fd, err := handoff.Connect(path)
	if err == nil {
		unix.Close(fd)
	}
	if errors.Is(err, unix.EACCES) {
		_, err = identityOf(path)
	}
	return err == nil || errors.Is(err, unix.EAGAIN)
}

// scoutAll looks at all undecided listeners.
func (b *binder) scoutAll() {
	for _, l := range b.active.listeners {
		b.scout(l)
	}
}

// appeared notes that something happened at path, in the main socket directory.
func (b *binder) appeared(path string) {
	name := filepath.Base(path)
	port, rest, _ := strings.Cut(name, ".")
	n, err := strconv.ParseUint(port, 10, 16)
	if name != defaultReceiver && (err != nil || !strings.HasSuffix(rest, "sock")) {
		return
	}
	for _, l := range b.active.listeners {
		if name == defaultReceiver || l.bound == uint16(n) {
			b.scout(l)
			b.warnIdle(l, name)
		}
	}
}

// warnIdle says that a receiver gets nothing because the listener is lent.
func (b *binder) warnIdle(l *listener, name string) {
	if name == defaultReceiver || l.standing.State != Lent || l.bound == 0 || !b.received(filepath.Join(b.active.cfg.Dir, name)) {
		return
	}
	if last := l.standing.idleWarned; last == name {
		return
	}
	l.standing.idleWarned = name
	b.log.Warn("a receiver gets nothing: the listener is lent", "listener", l.description.Name, "receiver", name, "because", l.standing.Why,
		"hint", fmt.Sprintf("handoff = %q in its section hands its connections off", "connection"))
}

// scoutTime returns when an undecided listener is to be looked at again, zero
// if nothing is to be waited for.
func (b *binder) scoutTime() time.Time {
	next := time.Time{}
	for _, l := range b.active.listeners {
		if st := l.standing; st.State == Undecided && !st.firstClient.IsZero() {
			due := st.firstClient.Add(defaultTime)
			if now := time.Now(); due.Before(now) {
				due = now.Add(defaultTime) // nobody there yet: inotify tells, this is for what it misses
			}
			next = earliest(next, due)
		}
	}
	return next
}
