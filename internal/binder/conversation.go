package binder

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/listen"
)

// This file is one borrower's conversation. Everything that he sends is
// hostile, the socket that he shows included: it may be any file, and looking
// at it or closing it may take as long as he likes. So that is done beside the
// loop, bounded in time and in number per user.

const (
	// talkTime bounds how long a borrower may take to ask.
	talkTime = 2 * time.Second
	// talksPerUser and talks bound conversations at one loan socket, of one
	// user and of all: a user can keep no other one from borrowing.
	talksPerUser = 8
	talks        = 64
)

// admitBorrower lets in who waits at loan socket id.
func (b *binder) admitBorrower(id uint32) {
	s := b.loans.byID[id]
	if s == nil || s.fd < 0 {
		return
	}
	fd, _, err := unix.Accept4(s.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return // gone again, or no descriptor left: the next event comes at once
	}
	who, err := borrowerAt(fd, s.path)
	all := 0
	for _, n := range s.talking {
		all += n
	}
	if err != nil || s.talking[who.UID] >= talksPerUser || all >= talks {
		handoff.SendLoanAnswer(fd, handoff.LoanAnswer{Verdict: handoff.Failed, Reason: "too many borrowers at once, try again"}, -1)
		unix.Close(fd)
		return
	}
	s.talking[who.UID]++
	go func() {
		b.converse(fd, s, who)
		b.calls <- func() {
			if s.talking[who.UID]--; s.talking[who.UID] == 0 {
				delete(s.talking, who.UID)
			}
		}
	}()
}

// converse reads the request, has the loop decide, and answers. It owns conn.
func (b *binder) converse(conn int, s *loanSocket, who Borrower) {
	file := os.NewFile(uintptr(conn), "borrower")
	defer file.Close()
	file.SetDeadline(time.Now().Add(talkTime))
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	q, own, err := receiveRequest(raw)
	if err != nil {
		b.calls <- func() {
			b.log.Warn("a borrower's request is not understood", "borrower", who.String(), "at", s.path, "reason", err)
		}
		return
	}
	form, err := handoff.FormOf(own)
	wishes := listen.WishesOf(own, q.Backlog)
	handoff.CloseShown(own)
	if err != nil {
		answer(raw, refuse(handoff.Failed, "the borrower's socket: %v", err))
		return
	}
	decided := make(chan loan, 1)
	b.calls <- func() {
		if b.loans.byID[s.id] != s || b.draining || b.yield != nil {
			decided <- loan{fd: -1} // without an answer: he tries again
			return
		}
		decided <- b.lend(s, plea{who, form, wishes})
	}
	b.deliver(raw, <-decided, who)
}

// deliver sends the answer, and takes back what does not arrive.
func (b *binder) deliver(raw syscall.RawConn, g loan, who Borrower) {
	if g.fd < 0 && g.answer.Reason == "" {
		return
	}
	err := answer(raw, g)
	if g.fd < 0 {
		return
	}
	unix.Close(g.fd)
	if err != nil {
		b.calls <- func() { b.undelivered(g, who, err) }
	}
}

func receiveRequest(raw syscall.RawConn) (q handoff.LoanRequest, own int, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		q, own, err = handoff.RecvLoanRequest(int(fd))
		return !errors.Is(err, unix.EAGAIN)
	})
	if waitErr != nil {
		return q, -1, waitErr
	}
	return q, own, err
}

func answer(raw syscall.RawConn, g loan) (err error) {
	controlErr := raw.Control(func(fd uintptr) { err = handoff.SendLoanAnswer(int(fd), g.answer, g.fd) })
	return errors.Join(controlErr, err)
}
