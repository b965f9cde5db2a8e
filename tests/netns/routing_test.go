package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where the listener and the daemon live has nothing to do with each other:
//
//	client                     edge, the listener          daemon: socketbox-inetd, busybox httpd
//	┌───────────────────┐      ┌──────────────────────┐    ┌──────────────────────────┐
//	│ lo 198.51.100.7   │      │ lo 203.0.113.1       │    │ wan 192.0.2.2/24         │
//	│    2001:db8:7::7  │ veth │    2001:db8:1::1     │    │     2001:db8:3::2/64     │
//	│ e0 10.9.0.2/30 ───┼──────┼─ c0 10.9.0.1/30      │    │ default via 192.0.2.1    │
//	│    fd09::2/64     │      │     fd09::1/64       │    │         2001:db8:3::1    │
//	│    fe80::2/64     │      │     fe80::1/64       │    │ (wan leads nowhere)      │
//	│ default via c0    │      │ default: unreachable │    └──────────────────────────┘
//	└───────────────────┘      │ from 203.0.113.1 and │
//	                           │ 2001:db8:1::1: table │
//	                           │ 81, default via e0   │
//	                           └──────────────────────┘
//
// The edge reaches the client by its table 81 alone; the daemon's namespace
// would send every answer out of wan, where nobody is.
type topology struct{ client, edge, daemon namespace }

func newTopology(t *testing.T) topology {
	t.Helper()
	n := topology{ipNetns(t), ipNetns(t), ipNetns(t)}
	n.client.ip(t, "link add e0 type veth peer name c0 netns "+n.edge.name)
	n.client.ip(t, "addr add 198.51.100.7/32 dev lo", "addr add 2001:db8:7::7/128 dev lo nodad",
		"addr add 10.9.0.2/30 dev e0", "addr add fd09::2/64 dev e0 nodad", "addr add fe80::2/64 dev e0 nodad", "link set e0 up")
	n.edge.ip(t, "addr add 203.0.113.1/32 dev lo", "addr add 2001:db8:1::1/128 dev lo nodad",
		"addr add 10.9.0.1/30 dev c0", "addr add fd09::1/64 dev c0 nodad", "addr add fe80::1/64 dev c0 nodad", "link set c0 up")
	n.client.ip(t, "route add default via 10.9.0.1", "-6 route add default via fd09::1")
	n.edge.ip(t, "route add unreachable default", "-6 route add unreachable default",
		"rule add from 203.0.113.1 lookup 81", "route add default via 10.9.0.2 table 81",
		"-6 rule add from 2001:db8:1::1 lookup 81", "-6 route add default via fd09::2 table 81")
	n.daemon.ip(t, "link add wan type veth peer name nowhere", "link set nowhere up", "link set wan up",
		"addr add 192.0.2.2/24 dev wan", "addr add 2001:db8:3::2/64 dev wan nodad",
		"route add default via 192.0.2.1", "-6 route add default via 2001:db8:3::1")
	return n
}

// ip runs ip(8) commands that concern the namespace.
func (n namespace) ip(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		mustRun(t, append([]string{"ip", "-n", n.name}, strings.Fields(c)...)...)
	}
}

// route is what `ip route get` says in the namespace: a route or an error.
func (n namespace) route(to string, from ...string) string {
	args := []string{"-n", n.name, "route", "get", to}
	for _, f := range from {
		args = append(args, "from", f)
	}
	out, _ := exec.Command("ip", args...).CombinedOutput()
	return string(out)
}

// sent is how many bytes the namespace has sent by the interface.
func (n namespace) sent(t *testing.T, device string) int {
	t.Helper()
	out, err := n.command("cat", "/proc/net/dev").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name, counts, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == device {
			bytes, err := strconv.Atoi(strings.Fields(counts)[8])
			if err != nil {
				t.Fatal(err)
			}
			return bytes
		}
	}
	t.Fatalf("no interface %s:\n%s", device, out)
	return 0
}

// showRoutes fails the test unless the topology is what it is drawn as.
func (n topology) showRoutes(t *testing.T, client, server string) {
	t.Helper()
	for _, route := range []struct{ where, says, want string }{
		{"edge, by its main table", n.edge.route(client), "No route to host"}, // what unreachable means
		{"edge, from the listener", n.edge.route(client, server), "dev c0 table 81"},
		{"daemon", n.daemon.route(client), "dev wan"},
	} {
		t.Logf("route to %s, %s: %s", client, route.where, strings.TrimSpace(route.says))
		if !strings.Contains(route.says, route.want) {
			t.Errorf("route to %s, %s: %q, want %q", client, route.where, route.says, route.want)
		}
	}
}

// The listener is in a namespace whose routing policy is its own: by a binder
// that lives there, or by one that lives elsewhere and names it.
func TestUnrelatedRouting(t *testing.T) {
	const port, size = 8080, 8 << 20
	n := newTopology(t)
	www := newSite(t, size)
	for _, test := range []struct {
		name string
		bind func(*testing.T) *box
	}{
		{"binder in the listener's namespace", func(t *testing.T) *box {
			return bindIn(t, n.edge, socketDir(t), "--listen", "203.0.113.1:8080", "--listen", "[2001:db8:1::1]:8080")
		}},
		{"binder elsewhere", func(t *testing.T) *box {
			const text = "[[listener]]\naddress = %q\nnetns = %q\n"
			return bindConfig(t, fmt.Sprintf(text+text, "203.0.113.1:8080", n.edge.name, "[2001:db8:1::1]:8080", n.edge.name))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := test.bind(t)
			inetd(t, n.daemon, b.dir, append([]string{"--"}, www.server()...)...)
			for _, d := range []struct{ name, server, client string }{
				{"IPv4", "203.0.113.1", "198.51.100.7"},
				{"IPv6", "2001:db8:1::1", "2001:db8:7::7"},
			} {
				t.Run(d.name, func(t *testing.T) {
					n.showRoutes(t, d.client, d.server)
					wan, c0 := n.daemon.sent(t, "wan"), n.edge.sent(t, "c0")
					www.fetchFile(t, n.client, d.client, d.server, port)
					if names := www.fetchPage(t, n.client, d.client, d.server, port); !slices.Contains(names, "wan") {
						t.Errorf("the server does not run in the daemon's namespace: it has the interfaces %v", names)
					}
					wan, c0 = n.daemon.sent(t, "wan")-wan, n.edge.sent(t, "c0")-c0
					if wan > 4096 || c0 < size {
						t.Errorf("of an answer of %d bytes the daemon's namespace sent %d, the listener's %d", size, wan, c0)
					}
					t.Logf("%d bytes fetched; sent by the edge %d, by the daemon's namespace %d", size, c0, wan)
				})
			}
		})
	}
}

// The zone of a link-local client is an interface of the listener's
// namespace, and has that one's name in the child's environment.
func TestLinkLocalClient(t *testing.T) {
	const port, listener = 8080, "[fe80::1%c0]:8080"
	n := newTopology(t)
	b := bindIn(t, n.edge, socketDir(t), "--listen", listener)
	inetd(t, n.daemon, b.dir, append([]string{"--"}, environmentOf...)...)
	c := n.client.dial(t, netip.MustParseAddrPort("[fe80::2]:0"), netip.MustParseAddrPort("[fe80::1]:8080"), "e0")
	client, _ := ends(c)
	want := tcpEnviron(netip.AddrPortFrom(netip.MustParseAddr("fe80::2%c0"), client.Port()),
		netip.AddrPortFrom(netip.MustParseAddr("fe80::1%c0"), port), listener, 1)
	compareEnviron(t, environ(t, c), want)
}

// dial connects from inside an `ip netns` namespace, where the socket stays:
// from local to remote, whose link-local addresses are on the interface link.
func (n namespace) dial(t *testing.T, local, remote netip.AddrPort, link string) net.Conn {
	t.Helper()
	fd := n.socket(t)
	f := os.NewFile(uintptr(fd), remote.String())
	defer f.Close()
	zone := uint32(0)
	if link != "" {
		request, err := unix.NewIfreq(link)
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
		}
		if err != nil {
			t.Fatalf("interface %s in %s: %v", link, n.name, err)
		}
		zone = request.Uint32()
	}
	err := unix.Bind(fd, &unix.SockaddrInet6{Addr: local.Addr().As16(), Port: int(local.Port()), ZoneId: zone})
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet6{Addr: remote.Addr().As16(), Port: int(remote.Port()), ZoneId: zone})
	}
	if err != nil {
		t.Fatalf("connect from %s to %s in %s: %v", local, remote, n.name, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// socket returns an IPv6 stream socket of the namespace: its thread goes there
// and comes back. (A thread that is left to end instead takes every process
// with it that it has started: PR_SET_PDEATHSIG.)
func (n namespace) socket(t *testing.T) int {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(home)
	away, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(away)
	if err := unix.Setns(away, unix.CLONE_NEWNET); err != nil {
		t.Fatalf("enter %s: %v", n.name, err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		panic(err) // the thread must not go on there
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
