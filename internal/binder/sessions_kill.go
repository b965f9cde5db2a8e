package binder

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"socketbox/internal/listen"
	"socketbox/internal/sockdiag"
)

// KillSessions ends those sessions of the instance of dir that which chooses, with
// the caller's own rights: the client gets a reset, the daemon's next call an error.
// The binder, which has no right, only says which they are; each is ended by its
// addresses and its cookie, so that none other can be. Sessions that ended by
// themselves meanwhile are left out of what is returned; Error is set in those that
// could not be ended, and all of it is in the error.
func KillSessions(dir string, which Selector) (*Sessions, error) {
	s, err := dial(dir)
	if err != nil {
		return nil, err
	}
	defer s.file.Close()
	all, err := s.sessions(which)
	if err != nil {
		return nil, err
	}
	namespaces := map[uint64][]*SessionStatus{}
	for i := range all.Sessions {
		st := &all.Sessions[i]
		namespaces[st.Namespace] = append(namespaces[st.Namespace], st)
	}
	var problems []error
	gone := map[uint64]bool{}
	for cookie, sessions := range namespaces {
		if err := s.killIn(cookie, sessions, gone); err != nil {
			problems = append(problems, err)
		}
	}
	left := all.Sessions[:0]
	for _, st := range all.Sessions {
		if !gone[st.Cookie] {
			left = append(left, st)
		}
	}
	all.Sessions = left
	return all, errors.Join(problems...)
}

// killIn ends sessions of one network namespace.
func (s *session) killIn(namespace uint64, sessions []*SessionStatus, gone map[uint64]bool) error {
	fd, err := s.openIn(namespace)
	if err == nil {
		defer unix.Close(fd)
		for _, st := range sessions {
			e := st.kill(fd)
			switch {
			case errors.Is(e, sockdiag.ErrGone):
				gone[st.Cookie] = true
			case e != nil:
				st.Error, err = e.Error(), e
			}
			if errors.Is(e, unix.EPERM) || errors.Is(e, unix.EOPNOTSUPP) {
				break // so would be all others
			}
		}
	}
	if err == nil {
		return nil
	}
	for _, st := range sessions {
		if st.Error == "" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)) {
			st.Error = err.Error()
		}
	}
	return whatLacks(err, sessions[0].Listener)
}

// openIn opens a sock_diag socket in the namespace with that cookie.
func (s *session) openIn(namespace uint64) (int, error) {
	fd, err := sockdiag.Open()
	if err != nil || listen.NamespaceCookie(fd) == namespace {
		return fd, err
	}
	unix.Close(fd)
	fds, err := s.askFor(1, request{Op: "diag", Namespaces: []uint64{namespace}})
	if err != nil {
		return -1, err
	}
	defer unix.Close(fds[0])
	err = listen.InNamespaceOf(fds[0], func() error {
		fd, err = sockdiag.Open()
		return err
	})
	if err == nil && listen.NamespaceCookie(fd) != namespace {
		unix.Close(fd)
		err = errors.New("the binder named another network namespace than it passed")
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func (st *SessionStatus) kill(fd int) error {
	client, err1 := netip.ParseAddrPort(st.Client)
	local, err2 := netip.ParseAddrPort(st.Local)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("the binder's sessions: %w", err)
	}
	return sockdiag.Destroy(fd, &sockdiag.Socket{Family: st.Family, Local: local, Remote: client, Interface: st.Interface, Cookie: st.Cookie})
}

// whatLacks says which right of the caller is missing.
func whatLacks(err error, listener string) error {
	wrapped := fmt.Errorf("end sessions of listener %s: %w", listener, err)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return withHint(wrapped, "this kernel can't end other processes' connections: it was built without CONFIG_INET_DIAG_DESTROY")
	case errors.Is(err, unix.EPERM):
		return withHint(wrapped, "it takes CAP_NET_ADMIN in the listener's network namespace, and CAP_SYS_ADMIN to enter it where it is another one: run the command as root")
	}
	return wrapped
}
