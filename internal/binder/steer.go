package binder

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"socketbox/internal/listen"
	"socketbox/internal/privsep"
)

// This file brings whole prefixes and ranges of ports to one listener
// (sk_lookup). The rights for that are the privileged stage's and those of
// `socketbox reload`; the binder keeps descriptors, with which it ends.

// steerAll attaches what the listeners ds need, whose sockets are fds, and returns
// the descriptors in the order of those that do. All failures are reported together.
func steerAll(ds []listen.Description, fds []int) ([]int, error) {
	var all []int
	var problems []error
	for i, d := range ds {
		if !d.Steered() {
			continue
		}
		fd, err := steer(d, fds[i])
		if err != nil {
			problems = append(problems, err)
			continue
		}
		all = append(all, fd)
	}
	if err := errors.Join(problems...); err != nil {
		closeAll(all)
		return nil, err
	}
	return all, nil
}

func steer(d listen.Description, fd int) (int, error) {
	netns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		err = fmt.Errorf("find its network namespace: %w", os.NewSyscallError("ioctl SIOCGSKNS", err))
	} else {
		defer unix.Close(netns)
		fd, err = privsep.Steer(fd, netns, d.Prefix, d.First, d.Last)
	}
	if err == nil {
		return fd, nil
	}
	err = fmt.Errorf("listen on %s: %w", d, err)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		err = withHint(err, "sk_lookup needs CAP_BPF and CAP_NET_ADMIN: start socketbox as root; or name ports without sk_lookup, which opens a socket for each")
	}
	return -1, err
}

// takeSteering keeps the descriptors for listeners, in the order of those that
// are steered.
func takeSteering(listeners []*listener, fds []int) error {
	for _, l := range listeners {
		if !l.description.Steered() {
			continue
		}
		if len(fds) == 0 {
			return fmt.Errorf("nothing brings connections to %s", l.description)
		}
		l.steering, fds = fds[0], fds[1:]
	}
	return nil
}

// steered counts the descriptors that belong to ds.
func steered(ds []listen.Description) (n int) {
	for _, d := range ds {
		if d.Steered() {
			n++
		}
	}
	return n
}

// closeSockets closes what l is made of.
func (l *listener) closeSockets() {
	unix.Close(l.fd)
	if l.steering >= 0 {
		unix.Close(l.steering)
		l.steering = -1
	}
}
