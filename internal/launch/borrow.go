package launch

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// lender finds who lends a port, and borrows.
type lender struct {
	dir  string
	all  bool // every port is answered: one that nobody lends stays inside
	wait time.Duration
}

// borrowPause is how often a listener that is not lent yet is asked for.
const borrowPause = 50 * time.Millisecond

func (l lender) path(port uint16) string {
	return filepath.Join(l.dir, fmt.Sprintf("%d.listener", port))
}

// borrow borrows for a bind. The error is an errnoError or a passError, and
// has been logged.
func (l lender) borrow(a asked, s *shown, log *slog.Logger) (int, error) {
	path := l.path(a.outside)
	fd, err := l.patiently(path, s)
	if err == nil {
		return fd, nil
	}
	absent := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
	if absent && l.all {
		log.Info("bound in the daemon's own namespace: nobody lends the listener", "listener", path)
		return -1, passError("nobody lends it")
	}
	args := []any{"error", err}
	errno := unix.EADDRNOTAVAIL
	var refused *handoff.LoanError
	switch {
	case absent:
		args = append(args, "hint", fmt.Sprintf("start `socketbox bind --listen :%d --dir %s`, or leave the port out of --ports", a.outside, l.dir))
	case errors.As(err, &refused) && refused.Verdict == handoff.Denied:
		errno = unix.EACCES
		args = append(args, "hint", refused.Hint())
	case errors.As(err, &refused) && refused.Verdict == handoff.TakeConnections:
		args = append(args, "hint", "only the listening socket itself can be given to this program: a listener of the same form as the daemon's socket ("+
			s.form.String()+"), with handoff = \"listener\" and no rule that names it")
	}
	log.Error("bind is refused", args...)
	return -1, errnoError(errno)
}

// patiently asks until somebody lends at path, for as long as the launcher is
// told to wait: daemon and binder are started in either order. UDP is not
// waited for: most programs that bind it are clients.
func (l lender) patiently(path string, s *shown) (int, error) {
	deadline := time.Now().Add(l.wait)
	for {
		fd, err := l.ask(path, s)
		absent := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
		if !absent || s.form.Type != unix.SOCK_STREAM || time.Now().After(deadline) {
			return fd, err
		}
		time.Sleep(borrowPause)
	}
}

// ask borrows once. A socket that only stands for the daemon's may be of the
// wrong kind of IPv6: then the other one is shown.
func (l lender) ask(path string, s *shown) (int, error) {
	fd, err := handoff.Borrow(path, s.own, 0)
	var refused *handoff.LoanError
	if s.real || s.form.Domain != unix.AF_INET6 || !errors.As(err, &refused) || refused.Verdict != handoff.TakeConnections {
		return fd, err
	}
	other := 1
	if s.form.V6Only {
		other = 0
	}
	if unix.SetsockoptInt(s.own, unix.SOL_IPV6, unix.IPV6_V6ONLY, other) != nil {
		return fd, err
	}
	if again, err2 := handoff.Borrow(path, s.own, 0); err2 == nil {
		return again, nil
	}
	return fd, err
}
