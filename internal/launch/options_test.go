package launch

import (
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string]map[uint16]uint16{
		"":                      {80: 80, 0: 0},
		"all":                   {65535: 65535, 0: 0},
		"80":                    {80: 80, 81: 0, 0: 0},
		"80,443=8443,8000-8010": {80: 80, 443: 8443, 7999: 0, 8000: 8000, 8010: 8010, 8011: 0, 8443: 0},
		"443=443":               {443: 443},
	} {
		p, err := ParsePorts(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		for inside, outside := range want {
			if got := p.Outside(inside); got != outside {
				t.Errorf("%q: %d is answered by %d, want %d", text, inside, got, outside)
			}
		}
		if again, err := ParsePorts(p.String()); err != nil || again.String() != p.String() {
			t.Errorf("%q is written as %q: %v", text, p, err)
		}
	}
	for _, text := range []string{"0", "80,", ",80", "65536", "x", "-", "80-", "90-80", "80=0", "80=", "80-90=100", "1 ", strings.Repeat("80,", 64) + "80"} {
		if p, err := ParsePorts(text); err == nil {
			t.Errorf("%q is read as %+v", text, p)
		}
	}
}

func TestParseIDRange(t *testing.T) {
	for text, want := range map[string]IDRange{"0:1000": {0, 1000, 1}, "1:100000:65536": {1, 100000, 65536}} {
		if got, err := ParseIDRange(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "1:2:3:4", "1:2:0", "a:2", "1:-2", "1:4294967296"} {
		if got, err := ParseIDRange(text); err == nil {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

func TestSubordinates(t *testing.T) {
	const text = "ann:100000:65536\n1000:300000:10\n:7:7\nbob:1:1\nann:x:1\nann:5:0\nann:1\nann:200000:2\n"
	got := subordinates(text, "ann", 1000)
	want := []IDRange{{0, 100000, 65536}, {0, 300000, 10}, {0, 200000, 2}}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
	if got := subordinates(text, "", 999); len(got) != 0 {
		t.Errorf("of a user without a name: %+v", got)
	}
}

func TestParseCapability(t *testing.T) {
	for text, want := range map[string]uint{"chown": 0, "NET_ADMIN": 12, "cap_net_raw": 13, "CAP_CHECKPOINT_RESTORE": 40} {
		if got, err := ParseCapability(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	if got, err := ParseCapability("cap_"); err == nil {
		t.Errorf("an empty name is %d", got)
	}
}

func TestParseWatched(t *testing.T) {
	want := watched{fd: 5, events: 0x80002019, data: 0x1122334455667788, inode: 0xabc}
	for _, line := range []string{
		"tfd:        5 events: 80002019 data: 1122334455667788  pos:0 ino:abc sdev:8",
		"tfd: 5 events: 80002019 data: 1122334455667788 pos: 0 ino: abc sdev: 8",
	} {
		if got, ok := parseWatched(line); !ok || got != want {
			t.Errorf("%q: %+v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "tfd:", "pos:\t0", "tfd: x events: 1 data: 1 pos:0 ino:1 sdev:1", "tfd: 5 events: 19"} {
		if got, ok := parseWatched(line); ok {
			t.Errorf("%q is read as %+v", line, got)
		}
	}
}
