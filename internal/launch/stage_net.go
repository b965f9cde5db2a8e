package launch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// What a fresh network namespace gets. Receiving sockets read the length of
// their queue where they are made, and 10 is a burst's first millisecond; the
// ports below 1024 are nobody's in a namespace that nobody else reaches.
var netSettings = []struct{ path, value string }{
	{"/proc/sys/net/unix/max_dgram_qlen", "4096"},
	{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
}

// network enters the network namespace, or makes a new one fit to live in.
func (s *stage) network() error {
	if s.NetNS == 1 {
		if err := unix.Setns(s.fds[0], unix.CLONE_NEWNET); err != nil {
			return setnsError(err)
		}
	}
	if !s.FreshNS {
		return nil
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	for _, setting := range netSettings {
		// Not fatal: /proc/sys may be read-only in a container.
		if err := os.WriteFile(setting.path, []byte(setting.value), 0); err != nil {
			s.note("can't set %s in the new network namespace: %v", setting.path, err)
		}
	}
	return nil
}

func setnsError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM):
		hint = "entering a namespace that somebody else has made takes root"
	case errors.Is(err, unix.EINVAL):
		hint = "expected a network namespace such as /run/netns/NAME or /proc/PID/ns/net"
	}
	return &handoff.HintError{Err: fmt.Errorf("enter: %w", err), Text: hint}
}

// loopbackUp is `ip link set lo up` (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return os.NewSyscallError("ioctl SIOCGIFFLAGS", err)
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return os.NewSyscallError("ioctl SIOCSIFFLAGS", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}
