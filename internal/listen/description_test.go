package listen

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseAddress(t *testing.T) {
	any6 := netip.IPv6Unspecified()
	for _, tc := range []struct {
		text string
		want Description
		out  string // of String
	}{
		{":80", Description{Name: ":80", Network: TCP, Address: any6, Both: true, Port: 80}, "[::]:80"},
		{"tcp::80", Description{Name: "tcp::80", Network: TCP, Address: any6, Both: true, Port: 80}, "[::]:80"},
		{"[::]:443", Description{Name: "[::]:443", Network: TCP, Address: any6, Both: true, Port: 443}, "[::]:443"},
		{"0.0.0.0:0", Description{Name: "0.0.0.0:0", Network: TCP, Address: netip.IPv4Unspecified()}, "0.0.0.0:0"},
		{"tcp:192.0.2.1:65535", Description{Name: "tcp:192.0.2.1:65535", Network: TCP, Address: netip.MustParseAddr("192.0.2.1"), Port: 65535}, "192.0.2.1:65535"},
		{"[2001:DB8:0::1]:80", Description{Name: "[2001:DB8:0::1]:80", Network: TCP, Address: netip.MustParseAddr("2001:db8::1"), Port: 80}, "[2001:db8::1]:80"},
		{"[fe80::1%eth0]:80", Description{Name: "[fe80::1%eth0]:80", Network: TCP, Address: netip.MustParseAddr("fe80::1"), Zone: "eth0", Port: 80}, "[fe80::1%eth0]:80"},
		{"udp::53", Description{Name: "udp::53", Network: UDP, Address: netip.IPv6Unspecified(), Both: true, Port: 53}, "udp:[::]:53"},
		{"udp:192.0.2.1:53", Description{Name: "udp:192.0.2.1:53", Network: UDP, Address: netip.MustParseAddr("192.0.2.1"), Port: 53}, "udp:192.0.2.1:53"},
		{"unix:/run/app/web.sock", Description{Name: "unix:run-app-web.sock", Network: Unix, Path: "/run/app/web.sock"}, "unix:/run/app/web.sock"},
	} {
		got, err := ParseAddress(tc.text)
		if err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v, want %+v", tc.text, got, err, tc.want)
			continue
		}
		if wrong := got.Check(); len(wrong) > 0 {
			t.Errorf("%s: %v", tc.text, wrong[0])
		}
		if got.String() != tc.out {
			t.Errorf("%s: String %s, want %s", tc.text, got, tc.out)
		}
		again, err := ParseAddress(got.String())
		again.Name = got.Name
		if err != nil || again != got {
			t.Errorf("%s: String reads back as %+v, %v", tc.text, again, err)
		}
	}
}

func TestParseAddressRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "expected an IP address and a port",
		"80":                                "expected an IP address and a port",
		":":                                 "expected a port from 0 to 65535",
		":http":                             "expected a port from 0 to 65535",
		":65536":                            "expected a port from 0 to 65535",
		":+80":                              "expected a port from 0 to 65535",
		"192.0.2.1":                         "expected an IP address and a port",
		"192.0.2.1:":                        "expected an IP address and a port",
		"192.0.2.1:65536":                   "expected an IP address and a port",
		"2001:db8::1:80x":                   "expected an IP address and a port",
		"[192.0.2.1]:80":                    "expected an IP address and a port",
		"localhost:80":                      "expected an IP address and a port",
		"*:80":                              "expected an IP address and a port",
		"[::ffff:10.0.0.1]:80":              "expected it as \"10.0.0.1:80\"",
		"udp:/run/x":                        "expected an IP address and a port",
		"udp:tcp::53":                       "expected an IP address and a port",
		"tcp:unix:/x":                       "expected an IP address and a port",
		"/run/x":                            "written \"unix:/run/x\"",
		"unix:":                             "not absolute",
		"unix:x":                            "not absolute",
		"unix:@x":                           "not absolute",
		"unix:/run/":                        "is a directory",
		"unix:/run//x":                      "expected it as \"/run/x\"",
		"unix:/run/../x":                    "expected it as \"/x\"",
		"unix:/a\nb":                        "control character",
		"unix:/" + strings.Repeat("x", 107): "at most 107 bytes",
	} {
		if d, err := ParseAddress(text); err == nil {
			t.Errorf("%q: accepted as %+v", text, d)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "web-1.example_x", "[::]:80", "[fe80::1%eth0]:80", strings.Repeat("x", 64)} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", ".a", "a/b", "a b", "a\n", "a\x00", "ä", "{a}", strings.Repeat("x", 65)} {
		if CheckName(name) == nil {
			t.Errorf("%q: accepted", name)
		}
	}
}

// TestCheck changes one field of a sound description each.
func TestCheck(t *testing.T) {
	tcp := Description{Name: "x", Network: TCP, Address: netip.IPv6Unspecified(), Port: 80, Both: true}
	four := Description{Name: "x", Network: TCP, Address: netip.IPv4Unspecified(), Port: 80}
	path := Description{Name: "x", Network: Unix, Path: "/run/x"}
	for _, tc := range []struct {
		base   Description
		change func(*Description)
		key    string
	}{
		{tcp, func(d *Description) {}, ""},
		{four, func(d *Description) {}, ""},
		{path, func(d *Description) {}, ""},
		{tcp, func(d *Description) { d.NetNS = "edge" }, ""},
		{tcp, func(d *Description) { d.NetNS = "/proc/1/ns/net" }, ""},
		{tcp, func(d *Description) { d.V6Only, d.Both = true, false }, ""},
		{path, func(d *Description) { d.Backlog = 5 }, ""},
		{tcp, func(d *Description) { d.Address, d.Both, d.Zone = netip.MustParseAddr("fe80::1"), false, "eth0" }, ""},
		{tcp, func(d *Description) { d.Address, d.Both, d.Zone = netip.MustParseAddr("fe80::1"), false, "12" }, ""},
		{tcp, func(d *Description) { d.Address, d.Both, d.Device = netip.MustParseAddr("fe80::1"), false, "eth0" }, ""},

		{tcp, func(d *Description) { d.Name = "" }, "name"},
		{tcp, func(d *Description) { d.Network = "sctp" }, "address"},
		{tcp, func(d *Description) { d.Network = UDP }, ""},
		{tcp, func(d *Description) { d.Network, d.Backlog = UDP, 1 }, "backlog"},
		{tcp, func(d *Description) { d.Network, d.DeferAccept = UDP, time.Second }, "defer_accept"},
		{four, func(d *Description) { d.Address = netip.Addr{} }, "address"},
		{tcp, func(d *Description) { d.Path = "/x" }, "address"},
		{tcp, func(d *Description) { d.Address = netip.IPv6LinkLocalAllNodes(); d.Zone = "lo"; d.Both = false }, "address"},
		{tcp, func(d *Description) { d.Address = netip.IPv6Loopback() }, "address"},
		{tcp, func(d *Description) { d.Address, d.Both = netip.MustParseAddr("fe80::1"), false }, "address"},
		{tcp, func(d *Description) { d.Address, d.Both, d.Zone = netip.MustParseAddr("fe80::1"), false, "a/b" }, "address"},
		{tcp, func(d *Description) { d.V6Only = true }, "v6only"},
		{tcp, func(d *Description) { d.Backlog = -1 }, "backlog"},
		{tcp, func(d *Description) { d.NetNS = ".." }, "netns"},
		{tcp, func(d *Description) { d.NetNS = "../edge" }, "netns"},
		{tcp, func(d *Description) { d.NetNS = "a\nb" }, "netns"},
		{tcp, func(d *Description) { d.Device = "sixteen-bytes-eh" }, "device"},
		{tcp, func(d *Description) { d.Device = "a b" }, "device"},
		{tcp, func(d *Description) { d.DeferAccept = -1 }, "defer_accept"},
		{tcp, func(d *Description) { d.DeferAccept = maxDeferAccept + 1 }, "defer_accept"},
		{four, func(d *Description) { d.Both = true }, "address"},
		{four, func(d *Description) { d.V6Only = true }, "v6only"},
		{path, func(d *Description) { d.Path = "x" }, "address"},
		{path, func(d *Description) { d.Port = 1 }, "address"},
		{path, func(d *Description) { d.NetNS = "a" }, "netns"},
		{path, func(d *Description) { d.V6Only = true }, "v6only"},
		{path, func(d *Description) { d.FreeBind = true }, "freebind"},
		{path, func(d *Description) { d.Transparent = true }, "transparent"},
		{path, func(d *Description) { d.ReusePort = true }, "reuseport"},
		{path, func(d *Description) { d.Device = "lo" }, "device"},
		{path, func(d *Description) { d.Mark = 1 }, "mark"},
		{path, func(d *Description) { d.DeferAccept = 1 }, "defer_accept"},
	} {
		d := tc.base
		tc.change(&d)
		wrong := d.Check()
		switch {
		case tc.key == "" && len(wrong) > 0:
			t.Errorf("%+v: %v", d, wrong[0])
		case tc.key != "" && (len(wrong) != 1 || wrong[0].Key != tc.key):
			t.Errorf("%+v: %v, want one at %s", d, wrong, tc.key)
		}
	}
}
