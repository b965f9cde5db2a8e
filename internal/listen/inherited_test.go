package listen

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDescribe: what Open made, Describe reads back and Matches accepts.
func TestDescribe(t *testing.T) {
	v6only := parse(t, "[::]:0")
	v6only.Both, v6only.V6Only = false, true
	for _, d := range []Description{
		parse(t, "127.0.0.1:0"), parse(t, "0.0.0.0:0"), parse(t, "[::1]:0"), parse(t, ":0"), v6only,
		parse(t, "udp:127.0.0.1:0"), parse(t, "udp::0"),
		parse(t, "unix:"+filepath.Join(t.TempDir(), "x.sock")),
	} {
		fd := open(t, d)
		if err := Matches(fd, d); err != nil { // port 0 fits any
			t.Error(err)
		}
		got, err := Describe(fd)
		if err != nil {
			t.Error(err)
			continue
		}
		if d.Network != Unix {
			d.Port = portOf(t, fd)
		}
		d.Name = NameOf(d.String())
		if got != d {
			t.Errorf("got  %+v\nwant %+v", got, d)
		}
		if err := Matches(fd, got); err != nil {
			t.Error(err)
		}
		unix.Close(fd)
	}
}

func TestMatchesRefused(t *testing.T) {
	dir := t.TempDir()
	four := open(t, parse(t, "127.0.0.1:0"))
	six := open(t, parse(t, "[::1]:0"))
	both := open(t, parse(t, ":0"))
	path := open(t, unixAt(dir+"/x"))
	udp := open(t, parse(t, "udp::0"))
	for _, fd := range []int{four, six, both, path, udp} {
		defer unix.Close(fd)
	}
	at := func(fd int, change func(*Description)) Description {
		d, err := Describe(fd)
		must(t, err)
		change(&d)
		return d
	}
	for _, tc := range []struct {
		fd   int
		d    Description
		want string
	}{
		{four, at(four, func(d *Description) { d.Port++ }), "it is bound to port"},
		{four, at(four, func(d *Description) { d.Address = d.Address.Next() }), "it is bound to address 127.0.0.1"},
		{four, at(six, func(d *Description) {}), "its family is IPv4, expected IPv6"},
		{six, at(four, func(d *Description) {}), "its family is IPv6, expected IPv4"},
		{six, at(both, func(d *Description) {}), "it is bound to address ::1"},
		{both, at(both, func(d *Description) { d.Both, d.V6Only = false, true }), "its IPV6_V6ONLY is 0, expected 1"},
		{udp, at(udp, func(d *Description) { d.Network = TCP }), "it is of type 2"},
		{both, at(both, func(d *Description) { d.Network = UDP }), "it is of type 1"},
		{path, at(both, func(d *Description) {}), "its family is Unix, expected IPv6"},
		{both, unixAt(dir + "/x"), "its family is IPv6, expected Unix"},
		{path, unixAt(dir + "/y"), "it is bound to \"" + dir + "/x\""},
	} {
		if err := Matches(tc.fd, tc.d); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.d, err, tc.want)
		}
	}
}

// TestInspectRefused hands over everything but a listening stream or UDP socket.
func TestInspectRefused(t *testing.T) {
	dir := t.TempDir()
	socket := func(family, kind, protocol int) int {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		must(t, err)
		return fd
	}
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer unix.Close(pipe[1])
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(pair[1])
	idle := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Bind(idle, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	abstract := bound(t, unix.SOCK_STREAM, "@socketbox-listen-test-"+filepath.Base(dir))
	must(t, unix.Listen(abstract, 1))
	packets := bound(t, unix.SOCK_SEQPACKET, dir+"/packets")
	must(t, unix.Listen(packets, 1))
	cases := map[string]int{
		"it is no socket":                  pipe[0],
		"it is not bound":                  socket(unix.AF_INET, unix.SOCK_DGRAM, 0),
		"its type is 2 and its family 1":   socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0),
		"its protocol is 136":              socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE),
		"its type is 5":                    packets,
		"it does not listen":               idle,
		"is not absolute":                  abstract,
		"get SO_TYPE: bad file descriptor": -1,
	}
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP); err == nil {
		must(t, unix.Listen(fd, 1))
		cases["its protocol is 262, expected plain TCP (6)"] = fd
	}
	for want, fd := range cases {
		_, err := Describe(fd)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if Matches(fd, parse(t, ":80")) == nil {
			t.Errorf("%q: matches", want)
		}
		unix.Close(fd)
	}
	if err := Matches(pair[0], parse(t, ":80")); err == nil || !strings.Contains(err.Error(), "it does not listen") {
		t.Errorf("a pair: %v", err)
	}
	unix.Close(pair[0])
}
