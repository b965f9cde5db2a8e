package listen

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Error is an operation on a listener that failed.
type Error struct {
	Op     string // "bind", "listen", "set SO_MARK on", ...
	Object string // address, path or namespace
	Err    error
	hint   string
}

func (e *Error) Error() string { return e.Op + " " + e.Object + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the next step for whoever reads the error, "" if there is none.
func (e *Error) Hint() string { return e.hint }

// fail makes the error of an operation on d's socket.
func (d Description) fail(op string, err error) error {
	return &Error{Op: op, Object: d.object(), Err: err, hint: d.hintFor(err)}
}

func (d Description) hintFor(err error) string {
	if d.Network == Unix {
		return d.hintForPath(err)
	}
	switch {
	case errors.Is(err, unix.EACCES) && d.Port < 1024:
		return fmt.Sprintf("run as root, or allow it to all with: %ssysctl net.ipv4.ip_unprivileged_port_start=%d", d.enter(), d.Port)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Sprintf("see who holds it: %sss -l%snp 'sport = :%d'", d.enter(), d.Network[:1], d.Port)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("no interface has %s now: see `%sip address`, or set freebind = true to bind before it has", d.Address, d.enter())
	case errors.Is(err, unix.EAFNOSUPPORT) && d.Address.Is6():
		return fmt.Sprintf("this kernel has no IPv6: listen on 0.0.0.0:%d", d.Port)
	}
	return ""
}

func (d Description) hintForPath(err error) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Sprintf("see who holds it: ss -lxp src %s", d.Path)
	case errors.Is(err, unix.ENOENT):
		return fmt.Sprintf("make its directory first: mkdir -p %s", path.Dir(d.Path))
	case errors.Is(err, unix.EACCES):
		return fmt.Sprintf("run as a user who may write in %s", path.Dir(d.Path))
	}
	return ""
}

// enter returns what stands before a command that must run where d is bound.
func (d Description) enter() string {
	switch {
	case d.NetNS == "":
		return ""
	case strings.HasPrefix(d.NetNS, "/"):
		return "nsenter --net=" + d.NetNS + " "
	}
	return "ip netns exec " + d.NetNS + " "
}
