package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// open opens what a test can't do without.
func open(t *testing.T, d Description) int {
	t.Helper()
	fd, err := Open(d)
	must(t, err)
	return fd
}

func parse(t *testing.T, text string) Description {
	t.Helper()
	d, err := ParseAddress(text)
	must(t, err)
	return d
}

func portOf(t *testing.T, fd int) uint16 {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	must(t, err)
	_, _, port := addressOf(sa)
	return port
}

func getInt(t *testing.T, fd, level, opt int) int {
	t.Helper()
	v, err := unix.GetsockoptInt(fd, level, opt)
	must(t, err)
	return v
}

// reaches reports whether somebody listens at an address of this namespace.
func reaches(host string, port uint16) bool {
	a := netip.AddrPortFrom(netip.MustParseAddr(host), port)
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(port), Addr: a.Addr().As16()}
	family := unix.AF_INET6
	if a.Addr().Is4() {
		sa, family = &unix.SockaddrInet4{Port: int(port), Addr: a.Addr().As4()}, unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sa) == nil
}

func TestOpenFamilies(t *testing.T) {
	for _, tc := range []struct {
		text       string
		v6only     bool
		four, six  bool
		wantV6Only int // -1: no such option
	}{
		{"127.0.0.1:0", false, true, false, -1},
		{"0.0.0.0:0", false, true, false, -1},
		{"[::1]:0", false, false, true, 1},
		{":0", false, true, true, 0},
		{"[::]:0", true, false, true, 1},
	} {
		d := parse(t, tc.text)
		if tc.v6only {
			d.V6Only, d.Both = true, false
		}
		fd := open(t, d)
		port := portOf(t, fd)
		if got := reaches("127.0.0.1", port); got != tc.four {
			t.Errorf("%s: IPv4 client %v, want %v", tc.text, got, tc.four)
		}
		if got := reaches("::1", port); got != tc.six {
			t.Errorf("%s: IPv6 client %v, want %v", tc.text, got, tc.six)
		}
		if tc.wantV6Only >= 0 {
			if got := getInt(t, fd, unix.SOL_IPV6, unix.IPV6_V6ONLY); got != tc.wantV6Only {
				t.Errorf("%s: IPV6_V6ONLY %d, want %d", tc.text, got, tc.wantV6Only)
			}
		}
		unix.Close(fd)
	}
}

func TestOpenPlain(t *testing.T) {
	fd := open(t, parse(t, "127.0.0.1:0"))
	defer unix.Close(fd)
	for name, v := range map[string][2]int{
		"SO_REUSEADDR":     {getInt(t, fd, unix.SOL_SOCKET, unix.SO_REUSEADDR), 1},
		"SO_REUSEPORT":     {getInt(t, fd, unix.SOL_SOCKET, unix.SO_REUSEPORT), 0},
		"SO_PROTOCOL":      {getInt(t, fd, unix.SOL_SOCKET, unix.SO_PROTOCOL), unix.IPPROTO_TCP},
		"SO_ACCEPTCONN":    {getInt(t, fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN), 1},
		"SO_KEEPALIVE":     {getInt(t, fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE), 0},
		"TCP_NODELAY":      {getInt(t, fd, unix.SOL_TCP, unix.TCP_NODELAY), 0},
		"TCP_DEFER_ACCEPT": {getInt(t, fd, unix.SOL_TCP, unix.TCP_DEFER_ACCEPT), 0},
		"IP_FREEBIND":      {getInt(t, fd, unix.SOL_IP, unix.IP_FREEBIND), 0},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %d, want %d", name, v[0], v[1])
		}
	}
	status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || status&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v, want O_NONBLOCK", status, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags != unix.FD_CLOEXEC {
		t.Errorf("descriptor flags %#x, %v, want FD_CLOEXEC", flags, err)
	}
}

func TestOpenOptions(t *testing.T) {
	d := parse(t, "203.0.113.1:0")
	d.FreeBind, d.ReusePort, d.Backlog, d.DeferAccept = true, true, 7, 1500*time.Millisecond
	fd := open(t, d)
	defer unix.Close(fd)
	if got := getInt(t, fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); got != 1 {
		t.Errorf("SO_REUSEPORT %d", got)
	}
	if got := getInt(t, fd, unix.SOL_TCP, unix.TCP_DEFER_ACCEPT); got < 2 {
		t.Errorf("TCP_DEFER_ACCEPT %d, want at least 2", got)
	}
	if got := backlogOf(t, fd); got != 7 {
		t.Errorf("backlog %d, want 7", got)
	}
	d = parse(t, "[2001:db8::1]:0")
	d.FreeBind = true
	unix.Close(open(t, d))
}

// backlogOf reads the backlog, which is where an established connection has
// its count of SACKed segments (tcp_get_info of the kernel).
func backlogOf(t *testing.T, fd int) int {
	t.Helper()
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	must(t, err)
	return int(info.Sacked)
}

func TestOpenDefaultBacklog(t *testing.T) {
	fd := open(t, parse(t, "127.0.0.1:0"))
	defer unix.Close(fd)
	limit := DefaultBacklog
	if text, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err == nil {
		var max int
		fmt.Sscan(string(text), &max)
		limit = min(limit, max)
	}
	if got := backlogOf(t, fd); got != limit {
		t.Errorf("backlog %d, want %d", got, limit)
	}
}

func TestOpenPrivilegedOptions(t *testing.T) {
	inFreshNamespace(t, func() {
		for _, text := range []string{"203.0.113.1:80", "[2001:db8::1]:80"} {
			d := parse(t, text)
			d.Transparent, d.Mark, d.Device = true, 0xfffffffe, "lo"
			fd := open(t, d)
			if got := uint32(getInt(t, fd, unix.SOL_SOCKET, unix.SO_MARK)); got != d.Mark {
				t.Errorf("SO_MARK %#x, want %#x", got, d.Mark)
			}
			if got, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil || got != "lo" {
				t.Errorf("SO_BINDTODEVICE %q, %v", got, err)
			}
			unix.Close(fd)
		}
		d := parse(t, "127.0.0.1:80")
		d.Device = "eth9"
		wantError(t, d, unix.ENODEV, "set SO_BINDTODEVICE eth9 on 127.0.0.1:80: no such device", "ip link")
	})
}

func TestOpenLinkLocal(t *testing.T) {
	inFreshNamespace(t, func() {
		must(t, addAddress("fe80::1"))
		for _, zone := range []string{"lo", "1"} {
			d := parse(t, "[fe80::1%"+zone+"]:80")
			d.FreeBind = true // the address is tentative for a while
			fd := open(t, d)
			if err := Matches(fd, d); err != nil {
				t.Error(err)
			}
			got, err := Describe(fd)
			if err != nil || got.String() != "[fe80::1%lo]:80" {
				t.Errorf("%s, %v", got, err)
			}
			other := d
			other.Zone = "2"
			if err := Matches(fd, other); err == nil {
				t.Error("matches another interface")
			}
			unix.Close(fd)
		}
		wantError(t, parse(t, "[fe80::1%eth9]:80"), unix.ENODEV, "find interface eth9 for [fe80::1%eth9]:80: no such device", "")
	})
}

// wantError opens d, which must fail with errno, a text and a part of a hint.
func wantError(t *testing.T, d Description, errno error, text, hint string) {
	t.Helper()
	fd, err := Open(d)
	if err == nil {
		unix.Close(fd)
		t.Errorf("%s: opened, want %q", d, text)
		return
	}
	var e *Error
	switch {
	case !errors.Is(err, errno), err.Error() != text, fd != -1:
		t.Errorf("%s: %d, %v, want %s", d, fd, err, text)
	case !errors.As(err, &e):
		t.Errorf("%s: %T", d, err)
	case !strings.Contains(e.Hint(), hint) || (hint == "") != (e.Hint() == ""):
		t.Errorf("%s: hint %q, want %q in it", d, e.Hint(), hint)
	}
}

func TestOpenErrors(t *testing.T) {
	first := open(t, parse(t, "127.0.0.1:0"))
	defer unix.Close(first)
	port := portOf(t, first)
	taken := fmt.Sprintf("127.0.0.1:%d", port)
	wantError(t, parse(t, taken), unix.EADDRINUSE, "bind "+taken+": address already in use",
		fmt.Sprintf("ss -ltnp 'sport = :%d'", port))
	wantError(t, parse(t, "203.0.113.1:80"), unix.EADDRNOTAVAIL, "bind 203.0.113.1:80: cannot assign requested address", "freebind")
	bad := parse(t, ":80")
	bad.V6Only = true
	if _, err := Open(bad); err == nil || err.Error() != "bind [::]:80: v6only: contradicts a listener of both families" {
		t.Error(err)
	}
}

func TestOpenWithoutPrivilege(t *testing.T) {
	// A namespace of its own, since another user's lacks the right anyway and
	// ip_unprivileged_port_start may be 0 here.
	inFreshNamespace(t, func() {
		withoutCapabilities(t, func() {
			wantError(t, parse(t, ":80"), unix.EACCES, "bind [::]:80: permission denied", "net.ipv4.ip_unprivileged_port_start")
			marked := parse(t, "127.0.0.1:8000")
			marked.Mark = 1
			wantError(t, marked, unix.EPERM, "set SO_MARK on 127.0.0.1:8000: operation not permitted", "CAP_NET_ADMIN")
		})
	})
}

// TestOpenAll: every error, in order, and no descriptor left.
func TestOpenAll(t *testing.T) {
	before := countDescriptors(t)
	fds, err := OpenAll([]Description{
		parse(t, "127.0.0.1:0"), parse(t, "203.0.113.1:80"), parse(t, "[::1]:0"), parse(t, "203.0.113.2:81"),
	})
	want := "bind 203.0.113.1:80: cannot assign requested address\nbind 203.0.113.2:81: cannot assign requested address"
	if fds != nil || err == nil || err.Error() != want {
		t.Errorf("%v, %v", fds, err)
	}
	if after := countDescriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	fds, err = OpenAll([]Description{parse(t, "127.0.0.1:0"), parse(t, "[::1]:0")})
	if err != nil || len(fds) != 2 {
		t.Fatalf("%v, %v", fds, err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestOverlap compares Overlap with what the kernel says of each pair.
func TestOverlap(t *testing.T) {
	port := freePort(t)
	var ds []Description
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", ""} {
		d := parse(t, fmt.Sprintf("%s:%d", host, port))
		ds = append(ds, d)
		d.ReusePort = true
		ds = append(ds, d)
	}
	v6only := parse(t, fmt.Sprintf("[::]:%d", port))
	v6only.Both, v6only.V6Only = false, true
	ds = append(ds, v6only)
	for i, a := range ds {
		for j, b := range ds {
			if i/2 == j/2 && a.ReusePort && b.ReusePort {
				continue // the kernel shares the clients out; a configuration must not
			}
			fds, err := OpenAll([]Description{a, b})
			for _, fd := range fds {
				unix.Close(fd)
			}
			if got := Overlap(a, b); got != (err != nil) {
				t.Errorf("%s reuseport %v, %s reuseport %v: Overlap %v, kernel: %v", a, a.ReusePort, b, b.ReusePort, got, err)
			}
		}
	}
}

func TestOverlapElsewhere(t *testing.T) {
	a := parse(t, ":80")
	for name, change := range map[string]func(*Description){
		"netns":  func(d *Description) { d.NetNS = "edge" },
		"port":   func(d *Description) { d.Port = 81 },
		"family": func(d *Description) { *d = Description{Network: Unix, Path: "/x"} },
	} {
		b := a
		change(&b)
		if Overlap(a, b) {
			t.Errorf("%s differs: overlap", name)
		}
	}
	a.Device = "eth0"
	b := a
	b.Device = "eth1"
	if Overlap(a, b) {
		t.Error("devices differ: overlap")
	}
	shared := parse(t, ":80")
	shared.ReusePort = true
	if !Overlap(shared, shared) {
		t.Error("the same address twice with reuseport: no overlap")
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}
