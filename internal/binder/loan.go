package binder

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/listen"
)

// beginLending is the start of lending, once this instance serves.
func (b *binder) beginLending() {
	b.loans.seize = b.h.Predecessor != 0
	go b.lookOut()
	b.settleLoans()
	b.scoutAll()
	b.checkElders()
}

// loansDue does what the clock asks for.
func (b *binder) loansDue() {
	if !b.loans.retry.IsZero() && !time.Now().Before(b.loans.retry) {
		for dir := range b.loans.dirs {
			b.watchLoanDir(dir)
		}
		b.bindLoans()
	}
	if !b.draining {
		b.scoutAll()
		b.checkElders()
	}
}

// decideWaiting gives undecided listeners with clients to default.sock while
// there still is time: whoever waits when the binder ends is delivered.
func (b *binder) decideWaiting() {
	for _, l := range b.active.listeners {
		if st := l.standing; st.State == Undecided && !st.firstClient.IsZero() {
			st.firstClient = st.firstClient.Add(-defaultTime)
			b.scout(l)
		}
	}
}

// plea is what a borrower asks for, read and bounded.
type plea struct {
	who    Borrower
	form   handoff.Form
	wishes listen.Wishes
}

// loan is the answer to a plea: fd, with the verdict Lent, is the caller's, as
// is the word whether it arrived.
type loan struct {
	answer handoff.LoanAnswer
	fd     int
	l      *listener
}

func refuse(v handoff.Verdict, format string, args ...any) loan {
	return loan{answer: handoff.LoanAnswer{Verdict: v, Reason: fmt.Sprintf(format, args...)}, fd: -1}
}

// lend decides on a plea at a loan socket. The first borrower of an undecided
// listener makes it lent, with the clients that wait in its backlog.
func (b *binder) lend(s *loanSocket, p plea) loan {
	l, why := choose(s.listeners, p.form)
	if l == nil {
		return refuse(handoff.TakeConnections, "%s", why)
	}
	st := l.standing
	switch {
	case st.State == Connection:
		return refuse(handoff.TakeConnections, "%s: %s", l.description.Name, st.Why)
	case !l.allowed.has(&p.who):
		b.log.Warn("refused to lend a listener: allow has neither user nor groups", "listener", l.description.Name, "borrower", p.who.String(), "gid", p.who.gid)
		return refuse(handoff.Denied, "%s: uid %d is not in allow", l.description.Name, p.who.UID)
	}
	if err := l.description.Prepare(l.fd, p.wishes); err != nil {
		b.log.Error("can't lend", "listener", l.description.Name, "reason", err)
		return refuse(handoff.Failed, "%v", err)
	}
	fd, err := duplicate(l.fd)
	if err != nil {
		return refuse(handoff.Failed, "%v", err)
	}
	st.wishes = p.wishes
	st.note(p.who)
	b.log.Info("lent", "listener", l.description.Name, "borrower", p.who.String(), "at", p.who.Path, "form", p.form.String())
	if st.State == Undecided {
		b.become(l, verdict{Lent, "a borrower came first", false})
	}
	return loan{handoff.LoanAnswer{Verdict: handoff.Lent}, fd, l}
}

// choose finds the listener of a borrower's form among those of one path.
func choose(all []*listener, f handoff.Form) (l *listener, why string) {
	var fit []*listener
	for _, l := range all {
		form, err := handoff.FormOf(l.fd)
		switch {
		case err != nil:
			why = err.Error()
		case form != f:
			why = fmt.Sprintf("%s is a socket of %s, the borrower's is one of %s", l.description.Name, form, f)
		case l.standing.Fixed && l.standing.State == Connection && len(all) > 1:
			why = fmt.Sprintf("%s: %s", l.description.Name, l.standing.Why)
		default:
			fit = append(fit, l)
		}
	}
	if len(fit) > 1 {
		return nil, fmt.Sprintf("%d listeners have this port: give each a name, and borrow it by that", len(fit))
	}
	if len(fit) == 0 {
		return nil, why
	}
	return fit[0], ""
}

// undelivered takes a loan back whose borrower went away before it had it.
func (b *binder) undelivered(g loan, who Borrower, reason error) {
	st, i := g.l.standing, b.active.indexOf(g.l)
	b.log.Warn("a borrower went away before it had the listener", "listener", g.l.description.Name, "borrower", who.String(), "reason", reason)
	st.Loans--
	kept := st.Borrowers[:0]
	for _, other := range st.Borrowers {
		if other.PID != who.PID || !other.Since.Equal(who.Since) {
			kept = append(kept, other)
		}
	}
	st.Borrowers = kept
	if i >= 0 && st.State == Lent && !st.Fixed && st.Loans == 0 {
		l := b.active.listeners[i]
		b.become(l, verdictOn(b.active.cfg, i))
		b.scout(l)
	}
}

// revival bounds how often a listener is made to listen again.
type revival struct {
	count int
	since time.Time
}

const (
	// revivals in revivalTime are without delay; a borrower that ends the
	// listener over and over is to keep itself busy, not the binder.
	revivals     = 8
	revivalTime  = time.Second
	revivalPause = 100 * time.Millisecond
)

// revive makes a listener listen again that a borrower has ended for all, by
// connect(2) to AF_UNSPEC or by shutdown(2). Who waited in its backlog was
// reset by the kernel.
func (b *binder) revive(l *listener) {
	if l.fd < 0 || l.standing.State == Connection || listens(l.fd) {
		return
	}
	r := &l.standing.revival
	if now := time.Now(); now.Sub(r.since) > revivalTime {
		*r = revival{since: now}
	}
	if r.count++; r.count > revivals {
		time.AfterFunc(revivalPause, func() {
			b.calls <- func() {
				if l := b.active.listenerByID(l.id); l != nil {
					l.standing.revival = revival{since: time.Now()}
					b.revive(l)
				}
			}
		})
		return
	}
	err := l.description.Prepare(l.fd, l.standing.wishes)
	if r.count == 1 || err != nil {
		b.log.Warn("a borrower ended the listener for all: listening again", "listener", l.description.Name, "reason", err)
	}
}

// listens says whether a stream socket listens; of others there is nothing to
// revive.
func listens(fd int) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return true
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listening != 0
}
