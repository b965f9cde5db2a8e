package binder

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Print writes the sessions for people.
func (s *Sessions) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "CLIENT\tLISTENER\tRULE\tTARGET\tAGE\tRECEIVED\tSENT\tRTT\tIDLE\tSTATE")
	for i := range s.Sessions {
		st := &s.Sessions[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", st.Client, st.Listener, st.rule(), orDash(st.Target),
			st.age(), st.Received, st.Sent, seconds(st.RTT, time.Microsecond), seconds(st.Idle, time.Second), st.state())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return s.printUnseen(out)
}

func (s *Sessions) printUnseen(out io.Writer) error {
	if len(s.Unseen) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(out, "not shown: sessions of %s, whose network namespace can't be looked into\n", strings.Join(s.Unseen, ", "))
	return err
}

func (st *SessionStatus) rule() string {
	switch {
	case st.Rule == nil:
		return "-"
	case *st.Rule == 0:
		return "none"
	case st.Place == "":
		return fmt.Sprint(*st.Rule)
	}
	return fmt.Sprintf("%d (%s)", *st.Rule, st.Place)
}

func (st *SessionStatus) age() string {
	if st.Since == nil {
		return "-"
	}
	return seconds(st.Age, time.Second)
}

func (st *SessionStatus) state() string {
	if st.Error != "" {
		return st.State + ", not ended: " + st.Error
	}
	return st.State
}

func seconds(s float64, unit time.Duration) string {
	return time.Duration(s * float64(time.Second)).Round(unit).String()
}
