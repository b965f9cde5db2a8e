package binder

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// BorrowerStatus is a process that a listener was lent to.
type BorrowerStatus struct {
	Borrower
	Alive bool `json:"alive"` // the process; others may have the socket from it
}

// loanStatus fills in what status says of a listener's state.
func (s *ListenerStatus) loanStatus(st *standing) {
	s.State, s.Why, s.StateSince, s.Loans = st.State, st.Why+st.besideText(), st.Since, st.Loans
	s.Borrowers = []BorrowerStatus{}
	for i := range st.Borrowers {
		b := &st.Borrowers[i]
		s.Borrowers = append(s.Borrowers, BorrowerStatus{*b, b.Alive()})
	}
}

// printStates writes the table of listeners' states for people.
func (s *Status) printStates(w io.Writer) {
	fmt.Fprintln(w, "\nLISTENER\tSTATE\tSINCE\tBECAUSE")
	for i := range s.Listeners {
		l := &s.Listeners[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Name, l.State, stamp(l.StateSince), l.because())
	}
}

func (s *ListenerStatus) because() string {
	if s.State != Lent {
		return s.Why
	}
	if len(s.Borrowers) == 0 {
		return s.Why + "; lent to nobody yet"
	}
	var to []string
	for i := range s.Borrowers {
		b := &s.Borrowers[i]
		if b.Alive || i == len(s.Borrowers)-1 {
			text := b.String() + " since " + stamp(b.Since)
			if !b.Alive {
				text += ", which has ended"
			}
			to = append(to, text)
		}
	}
	return s.Why + "; lent to " + strings.Join(to, ", to ")
}

// stamp shows a time: the day only where it is another one.
func stamp(t time.Time) string {
	if now := time.Now(); t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// explainState says what a listener's state makes of a connection: rules and
// receivers count for those alone that the dispatcher gets.
func (e *Explanation) explainState(st *standing) {
	var l ListenerStatus
	l.loanStatus(st)
	e.Listener.State = string(st.State)
	e.Listener.Note = fmt.Sprintf("%s since %s: %s", st.State, stamp(st.Since), l.because())
	if st.State == Lent {
		e.Verdict, e.Outcome = verdictLent, "it is accepted by whoever borrowed the listener: "+l.because()
		e.Target = nil
	}
}
