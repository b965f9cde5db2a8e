package launch

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// lentSocket is a listening (or UDP) socket that the supervisor has borrowed
// for the daemon.
type lentSocket struct {
	fd   int // owned
	port uint16
}

// showOf makes a socket of a form, to show it to a lender.
func showOf(f handoff.Form) (*shown, error) {
	own, err := f.Socket()
	if err != nil {
		return nil, err
	}
	return &shown{own: own, form: f, real: true}, nil
}

// borrowPort borrows what there is for a port of the daemon: one socket of
// both families, or one of each; UDP only where there is no TCP. A refusal is the
// error if there is none.
func (l lender) borrowPort(inside, outside uint16) (got []lentSocket, refusal error) {
	for _, f := range handoff.Forms {
		if len(got) > 0 && f.Type == unix.SOCK_DGRAM {
			break
		}
		s, err := showOf(f)
		if err != nil {
			refusal = errors.Join(refusal, err)
			continue // a machine without IPv6
		}
		fd, err := l.patiently(l.path(outside), s)
		s.close()
		var refused *handoff.LoanError
		switch {
		case err == nil:
			got = append(got, lentSocket{fd, inside})
			if f.Domain == unix.AF_INET6 && !f.V6Only {
				return got, nil
			}
		case errors.As(err, &refused):
			refusal = err
		default:
			return got, err // nobody lends, or something is wrong
		}
	}
	if len(got) > 0 {
		return got, nil
	}
	return nil, refusal
}

// borrowAll borrows a socket for each port that was named. While the binder is
// away, those of the last start do.
func (s *supervisor) borrowAll() error {
	var all []lentSocket
	for inside, outside := range s.o.Ports.each {
		got, err := s.lender.borrowPort(inside, outside)
		if err != nil && len(s.lent) > 0 {
			s.log.Warn("the listeners of the last start are used again", "reason", err)
			closeLent(all)
			return nil
		}
		if err != nil {
			closeLent(all)
			return fmt.Errorf("port %d: %w", inside, err)
		}
		all = append(all, got...)
	}
	closeLent(s.lent)
	s.lent = all
	return nil
}

func closeLent(all []lentSocket) {
	for _, l := range all {
		unix.Close(l.fd)
	}
}

// passListeners adds to an order what --via listen-fds passes: the numbers,
// and the variables that name them.
func (s *supervisor) passListeners(o *order, fds []int) ([]int, error) {
	first := s.o.FirstFD
	var names []string
	var list strings.Builder
	for i, l := range s.lent {
		// systemd passes sockets that block, nginx expects those of its own,
		// which don't.
		if err := unix.SetNonblock(l.fd, s.o.FDEnv != ""); err != nil {
			return nil, os.NewSyscallError("fcntl O_NONBLOCK", err)
		}
		fds = append(fds, l.fd)
		o.FDs = append(o.FDs, first+i)
		names = append(names, fmt.Sprint(l.port))
		fmt.Fprintf(&list, "%d;", first+i)
	}
	o.Sockets = len(s.lent)
	if first == firstListenFD {
		o.ListenEnv = []string{fmt.Sprintf("LISTEN_FDS=%d", len(s.lent)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	}
	if s.o.FDEnv != "" {
		o.ListenEnv = append(o.ListenEnv, s.o.FDEnv+"="+list.String())
	}
	return fds, nil
}

// firstListenFD is SD_LISTEN_FDS_START (sd_listen_fds(3)).
const firstListenFD = 3
