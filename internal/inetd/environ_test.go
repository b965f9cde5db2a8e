package inetd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"socketbox/internal/peer"

	"golang.org/x/sys/unix"
)

func tcp(remote, local, zone string) *connection {
	return &connection{
		listener: "web",
		Facts: peer.Facts{
			Network: peer.TCP, Zone: zone,
			Remote: netip.MustParseAddrPort(remote), Local: netip.MustParseAddrPort(local),
		},
	}
}

func TestVars(t *testing.T) {
	cred := &unix.Ucred{Pid: 3, Uid: 1, Gid: 2}
	tests := []struct {
		name string
		c    *connection
		want string
	}{
		{"IPv4", tcp("192.0.2.7:4000", "198.51.100.1:80", ""),
			"PROTO=TCP TCPREMOTEIP=192.0.2.7 TCPREMOTEPORT=4000 TCPLOCALIP=198.51.100.1 TCPLOCALPORT=80 TCPCONNNUM=5 " +
				"REMOTE_HOST=192.0.2.7 REMOTE_ADDR=192.0.2.7 REMOTE_PORT=4000 SOCKETBOX_LISTENER=web"},
		{"IPv6", tcp("[2001:db8::7]:4000", "[2001:db8::1]:80", ""),
			"PROTO=TCP TCPREMOTEIP=2001:db8::7 TCPREMOTEPORT=4000 TCPLOCALIP=2001:db8::1 TCPLOCALPORT=80 TCPCONNNUM=5 " +
				"REMOTE_HOST=2001:db8::7 REMOTE_ADDR=2001:db8::7 REMOTE_PORT=4000 SOCKETBOX_LISTENER=web"},
		{"link-local", tcp("[fe80::7]:4000", "[fe80::1]:80", "eth0"),
			"PROTO=TCP TCPREMOTEIP=fe80::7%eth0 TCPREMOTEPORT=4000 TCPLOCALIP=fe80::1%eth0 TCPLOCALPORT=80 TCPCONNNUM=5 " +
				"REMOTE_HOST=fe80::7%eth0 REMOTE_ADDR=fe80::7%eth0 REMOTE_PORT=4000 SOCKETBOX_LISTENER=web"},
		{"Unix, unnamed client", &connection{Facts: peer.Facts{Network: peer.Unix, LocalPath: "/run/x", Cred: cred}},
			"PROTO=UNIX UNIXLOCALPATH=/run/x UNIXREMOTEEUID=1 UNIXREMOTEEGID=2 UNIXREMOTEPID=3 UNIXCONNNUM=5"},
		{"Unix, abstract client with a NUL", &connection{Facts: peer.Facts{Network: peer.Unix, RemotePath: "@a\x00TCPREMOTEIP=127.0.0.1", Cred: cred}, listener: "x\x00y"},
			"PROTO=UNIX REMOTE_ADDR=@a UNIXREMOTEPATH=@a UNIXREMOTEEUID=1 UNIXREMOTEEGID=2 UNIXREMOTEPID=3 UNIXCONNNUM=5"},
	}
	for _, tt := range tests {
		got := strings.ReplaceAll(strings.TrimSuffix(string(appendVars(nil, tt.c, 5)), "\x00"), "\x00", " ")
		if got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// TestVarsAreOurs: whatever a child may get of its own is taken out of what
// we were started with.
func TestVarsAreOurs(t *testing.T) {
	cred := &unix.Ucred{}
	conns := []*connection{tcp("192.0.2.7:1", "192.0.2.8:2", ""), {Facts: peer.Facts{Network: peer.Unix, RemotePath: "/a", LocalPath: "/b", Cred: cred}}}
	for _, c := range conns {
		for v := range strings.SplitSeq(strings.TrimSuffix(string(appendVars(nil, c, 1)), "\x00"), "\x00") {
			if name, _, _ := strings.Cut(v, "="); !ours[name] {
				t.Errorf("%s can come from outside", name)
			}
		}
	}
}

func TestBaseEnviron(t *testing.T) {
	environ := []string{"PATH=/bin", "HOME=/root", "TCPREMOTEHOST=forged", "REMOTE_ADDR=forged", "NOTIFY_SOCKET=/x",
		"LISTEN_FDS=1", "SOCKETBOX_LISTENER=forged", "nothing", "EMPTY=", "SOCKETBOX_DIR=/d"}
	got := baseEnviron(environ, User{})
	if want := []string{"PATH=/bin", "HOME=/root", "EMPTY=", "SOCKETBOX_DIR=/d"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = baseEnviron(environ, User{Name: "www", Home: "/srv"})
	if want := []string{"PATH=/bin", "EMPTY=", "SOCKETBOX_DIR=/d", "USER=www", "LOGNAME=www", "HOME=/srv"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
