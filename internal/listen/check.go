package listen

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// KeyError is something wrong in one key of a description.
type KeyError struct {
	Key string // as in the configuration: "address", "netns", "v6only", ...
	Err error
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }

// Check returns all that is wrong in d by itself, nothing if it is sound: what
// no kernel could bind, and options that would do nothing.
func (d Description) Check() []*KeyError {
	var errs []*KeyError
	wrong := func(bad bool, key, format string, args ...any) {
		if bad {
			errs = append(errs, &KeyError{Key: key, Err: fmt.Errorf(format, args...)})
		}
	}
	if err := CheckName(d.Name); err != nil {
		wrong(true, "name", "%w", err)
	}
	if err := checkNetNS(d.NetNS); err != nil {
		wrong(true, "netns", "%w", err)
	}
	wrong(d.Backlog < 0 || d.Backlog > math.MaxInt32, "backlog", "%d: expected 1 to %d, or 0 for %d", d.Backlog, math.MaxInt32, DefaultBacklog)
	switch d.Network {
	case TCP, UDP:
		d.checkIP(wrong)
	case Unix:
		d.checkUnix(wrong)
	default:
		wrong(true, "address", "network %q: expected %q, %q or %q", d.Network, TCP, UDP, Unix)
	}
	return errs
}

func (d Description) checkIP(wrong func(bool, string, string, ...any)) {
	wrong(d.Steered() && d.Transparent, "transparent", "%s: sk_lookup brings it what is for this machine, TPROXY what is not", d)
	linkLocal := d.Address.Is6() && d.Address.IsLinkLocalUnicast()
	wrong(!d.Address.IsValid() || d.Path != "", "address", "expected an IP address and no path")
	wrong(d.Both && d.Address != netip.IPv6Unspecified(), "address", "%s can't take both families", d)
	wrong(d.Both && d.V6Only, "v6only", "contradicts a listener of both families")
	wrong(d.V6Only && d.Address.Is4(), "v6only", "%s is an IPv4 address", d)
	wrong(linkLocal && d.Zone == "" && d.Device == "", "address", "%s is link-local: expected its interface, as in [fe80::1%%eth0]:80", d)
	wrong(!linkLocal && d.Zone != "", "address", "%s: only a link-local IPv6 address has an interface", d)
	if _, err := strconv.ParseUint(d.Zone, 10, 32); d.Zone != "" && err != nil {
		wrong(!isDevice(d.Zone), "address", "%q is no interface name: expected 1 to %d bytes without space or slash", d.Zone, maxDevice)
	}
	wrong(d.Device != "" && !isDevice(d.Device), "device", "%q is no interface name: expected 1 to %d bytes without space or slash", d.Device, maxDevice)
	wrong(d.Network == UDP && d.Backlog != 0, "backlog", "%s: a UDP socket has none", d)
	wrong(d.Network == UDP && d.DeferAccept != 0, "defer_accept", "%s is a UDP socket: this is for TCP", d)
	wrong(d.DeferAccept < 0 || d.DeferAccept > maxDeferAccept, "defer_accept", "%s: expected 0s to %s", d.DeferAccept, maxDeferAccept)
}

func (d Description) checkUnix(wrong func(bool, string, string, ...any)) {
	if err := checkPath(d.Path); err != nil {
		wrong(true, "address", "%w", err)
	}
	const tcpOnly = "%s is a Unix socket: this is for TCP"
	wrong(d.Address.IsValid() || d.Port != 0 || d.Both || d.Zone != "", "address", tcpOnly, d)
	wrong(d.NetNS != "", "netns", "%s: a path is the same in every network namespace", d)
	wrong(d.V6Only, "v6only", tcpOnly, d)
	wrong(d.FreeBind, "freebind", tcpOnly, d)
	wrong(d.Transparent, "transparent", tcpOnly, d)
	wrong(d.ReusePort, "reuseport", tcpOnly, d)
	wrong(d.Device != "", "device", tcpOnly, d)
	wrong(d.Mark != 0, "mark", tcpOnly, d)
	wrong(d.DeferAccept != 0, "defer_accept", tcpOnly, d)
}

// isDevice follows dev_valid_name of the kernel.
func isDevice(name string) bool {
	return len(name) >= 1 && len(name) <= maxDevice && name != "." && name != ".." &&
		!strings.ContainsAny(name, "/: \t\n\v\f\r\x00")
}

// checkNetNS accepts nothing, a bare name as ip-netns(8) has it, or an
// absolute path.
func checkNetNS(ns string) error {
	switch {
	case strings.ContainsFunc(ns, isControl):
		return fmt.Errorf("%q has a control character", ns)
	case strings.HasPrefix(ns, "/"):
		return nil
	case ns == "." || ns == ".." || strings.Contains(ns, "/"):
		return fmt.Errorf("%q: expected a name as in `ip netns list`, or an absolute path", ns)
	}
	return nil
}
