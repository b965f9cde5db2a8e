package listen

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// option is one socket option of a description.
type option struct {
	name       string
	level, opt int
	value      int
	needs      string // what the kernel asks for, "" if nothing
}

// options returns what is set on d's socket, in order. Accepted sockets
// inherit all of them, hence no timeout and no buffer here, ever.
func (d Description) options() []option {
	// Always: without it a restart would fail while old connections linger in
	// TIME_WAIT. It lets nobody bind beside a socket that listens.
	set := []option{{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, ""}}
	if d.Network == UDP {
		set = nil // here it would let everybody in who has it, too
	}
	if d.ReusePort {
		set = append(set, option{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, ""})
	}
	if d.Address.Is6() {
		// Said either way: net.ipv6.bindv6only must not decide.
		set = append(set, option{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, bit(!d.Both), ""})
	}
	if d.FreeBind {
		set = append(set, d.ipOption("IP_FREEBIND", unix.IP_FREEBIND, "IPV6_FREEBIND", unix.IPV6_FREEBIND, ""))
	}
	if d.Transparent {
		set = append(set, d.ipOption("IP_TRANSPARENT", unix.IP_TRANSPARENT, "IPV6_TRANSPARENT", unix.IPV6_TRANSPARENT, "CAP_NET_ADMIN or CAP_NET_RAW"))
	}
	if d.Mark != 0 {
		set = append(set, option{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(int32(d.Mark)), "CAP_NET_ADMIN or CAP_NET_RAW"})
	}
	if d.DeferAccept > 0 {
		seconds := int((d.DeferAccept + time.Second - 1) / time.Second)
		set = append(set, option{"TCP_DEFER_ACCEPT", unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, seconds, ""})
	}
	return set
}

// ipOption chooses between the IPv4 and the IPv6 name of one option.
func (d Description) ipOption(name4 string, opt4 int, name6 string, opt6 int, needs string) option {
	if d.Address.Is4() {
		return option{name4, unix.SOL_IP, opt4, 1, needs}
	}
	return option{name6, unix.SOL_IPV6, opt6, 1, needs}
}

func (d Description) setOptions(fd int) error {
	for _, o := range d.options() {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return d.failOption(o.name, o.needs, err)
		}
	}
	if d.Device == "" {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, d.Device); err != nil {
		return d.failOption("SO_BINDTODEVICE "+d.Device, "CAP_NET_RAW", err)
	}
	return nil
}

func (d Description) failOption(name, needs string, err error) error {
	hint := ""
	switch {
	case err == unix.EPERM && needs != "":
		hint = "run as root, or with " + needs
	case err == unix.ENODEV:
		hint = "see which interfaces there are: " + d.enter() + "ip link"
	}
	return &Error{Op: "set " + name + " on", Object: d.object(), Err: err, hint: hint}
}

// InterfaceIndex returns the index of an interface in the namespace of the
// socket fd; zone is its name or the index itself, "" is 0.
func InterfaceIndex(fd int, zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	request, err := unix.NewIfreq(zone)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, err
	}
	return request.Uint32(), nil
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
