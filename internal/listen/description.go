package listen

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"
)

// Networks of a listener.
const (
	TCP  = "tcp"
	UDP  = "udp"  // a bound socket, to be lent
	Unix = "unix" // a stream socket with a path
)

const (
	// DefaultBacklog is the backlog where a description has 0: as much as the
	// kernel's own net.core.somaxconn, which caps it.
	DefaultBacklog = 4096

	// MaxName bounds a listener's name: it travels with every connection.
	MaxName = 64

	maxPath   = 107 // sun_path beside its NUL, unix(7)
	maxDevice = 15  // IFNAMSIZ less the NUL

	// maxDeferAccept is beyond what the kernel keeps: it counts the time in
	// retransmissions of the SYN-ACK, at most 255 (tcp(7), TCP_DEFER_ACCEPT).
	maxDeferAccept = time.Hour
)

// Description says what a listener is bound to and how. It has no pointer:
// two descriptions are the same listener if they compare equal with ==.
type Description struct {
	Name    string     // what rules, hand-offs and messages call it
	Network string     // TCP, UDP or Unix
	Address netip.Addr // without its zone; invalid for Unix
	Both    bool       // Address is :: and IPv4 clients are taken too
	Port    uint16     // 0 lets the kernel choose
	Zone    string     // interface of a link-local address, or its index
	Path    string     // Unix: absolute

	NetNS       string        // network namespace: a name, a path, or "" for this one
	Backlog     int           // 0: DefaultBacklog
	V6Only      bool          // IPv6 clients only; Both is false then
	FreeBind    bool          // also an address that no interface has yet
	Transparent bool          // also an address that is not this machine's
	ReusePort   bool          // let others of the same uid bind it too
	Device      string        // take clients of this interface alone
	Mark        uint32        // firewall mark of the listener and its connections
	DeferAccept time.Duration // wait this long for a client's first byte; rounded up to seconds

	// A steered listener takes what is for any address of a prefix and any of a
	// range of ports; Address and Port are where its one socket is, out of the way.
	Prefix      netip.Prefix
	First, Last uint16
}

// Steered reports whether connections are brought to the listener from a whole
// prefix, and not by what it is bound to.
func (d Description) Steered() bool { return d.Prefix.IsValid() }

// AnyPort reports whether connections of the listener may be for any port.
func (d Description) AnyPort() bool { return d.Transparent || d.Steered() }

// Steer makes d, a TCP listener, a steered one.
func (d *Description) Steer(prefix netip.Prefix, first, last uint16) {
	d.Prefix, d.First, d.Last = prefix, first, last
	d.Address, d.Both, d.Port = netip.IPv6Loopback(), false, 0
	if prefix.Addr().Is4() {
		d.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
}

// PortsText spells a range of ports as configurations do.
func PortsText(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// ParseAddress reads a listener's address: ":80" (both families), "[::]:443"
// (both too, unless V6Only is set later), "192.0.2.1:80", "[fe80::1%eth0]:80",
// the same behind "tcp:" or "udp:", or "unix:/path". Host names are refused: a listener
// must not depend on a resolver. The name of the result is NameOf(s).
func ParseAddress(s string) (Description, error) {
	d, err := parseAddress(s)
	if err != nil {
		return Description{}, err
	}
	d.Name = NameOf(s)
	return d, nil
}

func parseAddress(s string) (Description, error) {
	if rest, ok := strings.CutPrefix(s, "unix:"); ok {
		return parsePath(rest)
	}
	if rest, ok := strings.CutPrefix(s, "udp:"); ok {
		d, err := parseIP(rest)
		d.Network = UDP
		return d, err
	}
	if strings.HasPrefix(s, "/") {
		return Description{}, fmt.Errorf("address %q: expected an IP address and a port; a Unix socket is written \"unix:%s\"", s, s)
	}
	return parseIP(strings.TrimPrefix(s, "tcp:"))
}

func parsePath(p string) (Description, error) {
	if err := checkPath(p); err != nil {
		return Description{}, err
	}
	return Description{Network: Unix, Path: p}, nil
}

func checkPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("path %q is not absolute: it must begin with \"/\"", p)
	case strings.HasSuffix(p, "/"):
		return fmt.Errorf("path %q is a directory, expected a socket", p)
	case p != path.Clean(p):
		return fmt.Errorf("path %q: expected it as %q", p, path.Clean(p))
	case len(p) > maxPath:
		return fmt.Errorf("path %q is too long: a Unix socket's path has at most %d bytes", p, maxPath)
	case strings.ContainsFunc(p, isControl):
		return fmt.Errorf("path %q has a control character", p)
	}
	return nil
}

func parseIP(s string) (Description, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return Description{}, fmt.Errorf("address %q: expected a port from 0 to 65535 behind \":\"", s)
		}
		return Description{Network: TCP, Address: netip.IPv6Unspecified(), Both: true, Port: uint16(n)}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return Description{}, fmt.Errorf("address %q: expected an IP address and a port such as \":80\", \"192.0.2.1:80\" or \"[2001:db8::1]:80\"", s)
	}
	a := ap.Addr()
	if a.Is4In6() {
		return Description{}, fmt.Errorf("address %q: expected it as \"%s:%d\"", s, a.Unmap(), ap.Port())
	}
	return Description{
		Network: TCP,
		Address: a.WithZone(""),
		Zone:    a.Zone(),
		Both:    a == netip.IPv6Unspecified(),
		Port:    ap.Port(),
	}, nil
}

// NameOf returns the name of a listener that was given none: its address, a
// path without the slashes that a name can't have.
func NameOf(address string) string {
	if p, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix:" + strings.ReplaceAll(strings.TrimPrefix(p, "/"), "/", "-")
	}
	return address
}

// CheckName reports why name can't be a listener's: it stands in paths, in
// environment variables and in logs.
func CheckName(name string) error {
	const marks = "._-:[]%"
	switch {
	case name == "":
		return errors.New("a listener's name is empty")
	case len(name) > MaxName:
		return fmt.Errorf("name %q is too long: at most %d bytes", name, MaxName)
	case name[0] == '.':
		return fmt.Errorf("name %q begins with a dot", name)
	}
	for _, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte(marks, c) < 0 {
			return fmt.Errorf("name %q: expected letters, digits and %s only", name, marks)
		}
	}
	return nil
}

// String returns the address as ParseAddress reads it, without the options.
func (d Description) String() string {
	switch {
	case d.Network == Unix:
		return "unix:" + d.Path
	case d.Steered():
		return d.Prefix.String() + " port " + PortsText(d.First, d.Last)
	case !d.Address.IsValid():
		return d.prefix() + ":" + strconv.Itoa(int(d.Port))
	}
	return d.prefix() + netip.AddrPortFrom(d.Address.WithZone(d.Zone), d.Port).String()
}

func (d Description) prefix() string {
	if d.Network == UDP {
		return "udp:"
	}
	return ""
}

// object is what messages say of d.
func (d Description) object() string {
	if d.NetNS != "" {
		return d.String() + " in network namespace " + d.NetNS
	}
	return d.String()
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }
