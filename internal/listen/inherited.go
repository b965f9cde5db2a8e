package listen

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// facts is what the kernel says of a listening or UDP socket.
type facts struct {
	domain  int
	kind    int
	address unix.Sockaddr
	v6only  bool
}

// Describe returns the description of a listening stream or bound UDP socket
// that somebody else made. It says what the socket is bound to; NetNS and the options, which
// decide nothing any more, stay zero. The caller keeps fd.
func Describe(fd int) (Description, error) {
	f, err := inspect(fd)
	if err != nil {
		return Description{}, fmt.Errorf("inspect inherited descriptor %d: %w", fd, err)
	}
	d := Description{Network: TCP}
	if f.kind == unix.SOCK_DGRAM {
		d.Network = UDP
	}
	if p, ok := f.address.(*unix.SockaddrUnix); ok {
		if err := checkPath(p.Name); err != nil {
			return Description{}, fmt.Errorf("inspect inherited descriptor %d: %w", fd, err)
		}
		d.Network, d.Path = Unix, p.Name
	} else {
		addr, zone, port := addressOf(f.address)
		d.Address, d.Port = addr, port
		if zone != 0 {
			d.Zone = interfaceName(fd, zone)
		}
		wide := f.domain == unix.AF_INET6 && addr.IsUnspecified()
		d.Both, d.V6Only = wide && !f.v6only, wide && f.v6only
	}
	d.Name = NameOf(d.String())
	return d, nil
}

// Matches returns an error unless fd is a listening or UDP socket bound as d says;
// port 0 in d stands for any. The namespace and the options are not compared.
// The caller keeps fd.
func Matches(fd int, d Description) error {
	f, err := inspect(fd)
	if err == nil {
		err = d.compare(fd, f)
	}
	if err != nil {
		return &Error{Op: fmt.Sprintf("take descriptor %d for", fd), Object: d.object(), Err: err}
	}
	return nil
}

func (d Description) compare(fd int, f facts) error {
	if f.domain != d.domain() {
		return fmt.Errorf("its family is %s, expected %s", familyName(f.domain), familyName(d.domain()))
	}
	if (f.kind == unix.SOCK_DGRAM) != (d.Network == UDP) {
		return fmt.Errorf("it is of type %d", f.kind)
	}
	if p, ok := f.address.(*unix.SockaddrUnix); ok {
		if p.Name != d.Path {
			return fmt.Errorf("it is bound to %q", p.Name)
		}
		return nil
	}
	addr, zone, port := addressOf(f.address)
	want, err := InterfaceIndex(fd, d.Zone)
	switch {
	case err != nil:
		return fmt.Errorf("find interface %s: %w", d.Zone, err)
	case addr != d.Address:
		return fmt.Errorf("it is bound to address %s", addr)
	case d.Zone != "" && zone != want:
		return fmt.Errorf("it is bound to interface %d, expected %d", zone, want)
	case d.Port != 0 && port != d.Port:
		return fmt.Errorf("it is bound to port %d", port)
	case addr.Is6() && addr.IsUnspecified() && f.v6only == d.Both:
		return fmt.Errorf("its IPV6_V6ONLY is %d, expected %d", bit(f.v6only), bit(!d.Both))
	}
	return nil
}

// inspect asks the kernel what fd is and refuses all but listening stream
// sockets of TCP or Unix, and UDP sockets.
func inspect(fd int) (facts, error) {
	var f facts
	get := func(opt int) (int, error) { return unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt) }
	var err error
	f.kind, err = get(unix.SO_TYPE)
	if err == unix.ENOTSOCK {
		return f, errors.New("it is no socket")
	}
	if err != nil {
		return f, fmt.Errorf("get SO_TYPE: %w", err)
	}
	if f.kind != unix.SOCK_STREAM && f.kind != unix.SOCK_DGRAM {
		return f, fmt.Errorf("its type is %d, expected a stream (%d) or UDP socket", f.kind, unix.SOCK_STREAM)
	}
	if f.domain, err = get(unix.SO_DOMAIN); err != nil {
		return f, fmt.Errorf("get SO_DOMAIN: %w", err)
	}
	protocol, err := get(unix.SO_PROTOCOL)
	if err != nil {
		return f, fmt.Errorf("get SO_PROTOCOL: %w", err)
	}
	listening, err := get(unix.SO_ACCEPTCONN)
	if err != nil {
		return f, fmt.Errorf("get SO_ACCEPTCONN: %w", err)
	}
	if err := f.checkKind(protocol, listening != 0); err != nil {
		return f, err
	}
	return f, f.readAddress(fd)
}

func (f *facts) checkKind(protocol int, listening bool) error {
	ip := f.domain == unix.AF_INET || f.domain == unix.AF_INET6
	want, name := unix.IPPROTO_TCP, "plain TCP"
	if f.kind == unix.SOCK_DGRAM {
		want, name = unix.IPPROTO_UDP, "UDP"
	}
	switch {
	case f.kind == unix.SOCK_DGRAM && !ip:
		return fmt.Errorf("its type is %d and its family %d, expected a stream socket, or UDP", f.kind, f.domain)
	case !ip && f.domain != unix.AF_UNIX:
		return fmt.Errorf("its family is %d, expected IPv4, IPv6 or Unix", f.domain)
	case ip && protocol != want:
		return fmt.Errorf("its protocol is %d, expected %s (%d)", protocol, name, want)
	case f.kind == unix.SOCK_STREAM && !listening:
		return errors.New("it does not listen")
	}
	return nil
}

func (f *facts) readAddress(fd int) error {
	var err error
	if f.address, err = unix.Getsockname(fd); err != nil {
		return fmt.Errorf("get its address: %w", err)
	}
	if _, _, port := addressOf(f.address); f.kind == unix.SOCK_DGRAM && port == 0 {
		return errors.New("it is not bound")
	}
	if f.domain != unix.AF_INET6 {
		return nil
	}
	v6only, err := unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY)
	if err != nil {
		return fmt.Errorf("get IPV6_V6ONLY: %w", err)
	}
	f.v6only = v6only != 0
	return nil
}

func familyName(domain int) string {
	switch domain {
	case unix.AF_INET:
		return "IPv4"
	case unix.AF_INET6:
		return "IPv6"
	}
	return "Unix"
}

// interfaceName returns the name of an interface in the namespace of the
// socket fd, or its index where it has none.
func interfaceName(fd int, index uint32) string {
	request, err := unix.NewIfreq("")
	if err == nil {
		request.SetUint32(index)
		err = unix.IoctlIfreq(fd, unix.SIOCGIFNAME, request)
	}
	if err != nil {
		return fmt.Sprint(index)
	}
	return request.Name()
}
