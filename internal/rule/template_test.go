package rule

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestTemplate(t *testing.T) {
	four := Facts{Listener: "web", Port: 443, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("::ffff:198.51.100.7"), Family: IPv4}
	six := Facts{Listener: "[::]:80", Port: 80, Local: netip.MustParseAddr("2001:db8::1"), Remote: netip.MustParseAddr("fe80::1%eth0"), Family: IPv6}
	local := Facts{Listener: "app", Family: Unix}
	for _, tc := range []struct {
		text  string
		keys  Keys
		facts Facts
		want  string
	}{
		{"/run/a.sock", 0, four, "/run/a.sock"},
		{"/run/socketbox/", KeyPort | KeyFamily, four, "/run/socketbox/"},
		{"/", KeyPort | KeyFamily, four, "/"},
		{"//run///x//", KeyPort | KeyFamily, four, "/run/x/"},
		{"/run/{port}.sock", KeyPort, four, "/run/443.sock"},
		{"/run/{port}.sock", KeyPort, local, "/run/0.sock"},
		{"/run/{local}/", KeyLocal | KeyPort | KeyFamily, six, "/run/2001-db8--1/"},
		{"/run/{remote}", KeyRemote, four, "/run/198.51.100.7"},
		{"/run/{remote}", KeyRemote, six, "/run/fe80--1"},
		{"/run/{remote}-{local}", KeyRemote | KeyLocal, local, "/run/unix-unix"},
		{"/run/{family}.{listener}", KeyFamily | KeyListener, six, "/run/ipv6.[--]-80"},
		{"/run/{family}/{family}", KeyFamily, local, "/run/unix/unix"},
		{"/run/.{listener}", KeyListener, Facts{Listener: "."}, "/run/.-"},
		{"/run/.{listener}", KeyListener, Facts{Listener: ""}, "/run/.-"},
		{"/run/{listener}/x", KeyListener, Facts{Listener: "../../etc"}, "/run/-.-..-etc/x"},
		{"/run/{listener}", KeyListener, Facts{Listener: "a\x00\n{port}"}, "/run/a--{port}"},
	} {
		tpl, err := ParseTemplate(tc.text)
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		if tpl.Keys() != tc.keys {
			t.Errorf("%s: keys %b, want %b", tc.text, tpl.Keys(), tc.keys)
		}
		if got := tpl.Expand(tc.facts); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.text, got, tc.want)
		}
	}
}

func TestTemplateRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "not absolute",
		"run/x":                           "not absolute",
		"{port}":                          "not absolute",
		"/run/{ports}":                    "unknown word {ports}: expected {port}",
		"/run/{}":                         "unknown word {}",
		"/run/{port":                      `"{" without "}"`,
		"/run/port}":                      `"}" without "{"`,
		"/run/{{port}}":                   "unknown word {{port}",
		"/run/../etc":                     `component ".."`,
		"/run/./x":                        `component "."`,
		"/run/..":                         `component ".."`,
		"/run/a\nb":                       "control character",
		"/run/a\x00b":                     "control character",
		"/" + strings.Repeat("a", 107):    "at most 107 bytes",
		strings.Repeat("/{listener}", 24): "at most 255 bytes",
	} {
		if tpl, err := ParseTemplate(text); err == nil {
			t.Errorf("%q: accepted as %q", text, tpl)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		dir    string
		port   uint16
		family string
		want   []string
	}{
		{"/d/", 80, IPv4, []string{"/d/80.ipv4.sock", "/d/80.sock", "/d/default.sock"}},
		{"/d", 80, IPv6, []string{"/d/80.ipv6.sock", "/d/80.sock", "/d/80.ipv4.sock", "/d/default.sock"}},
		{"/d/", 0, Unix, []string{"/d/default.sock"}},
		{"/", 65535, IPv4, []string{"/65535.ipv4.sock", "/65535.sock", "/default.sock"}},
	} {
		if got := Candidates(tc.dir, tc.port, tc.family); !slices.Equal(got, tc.want) {
			t.Errorf("%s %d %s: %q, want %q", tc.dir, tc.port, tc.family, got, tc.want)
		}
	}
}

func TestFamilyOf(t *testing.T) {
	for text, want := range map[string]string{"192.0.2.1": IPv4, "2001:db8::1": IPv6} {
		if got := FamilyOf(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if got := FamilyOf(netip.Addr{}); got != Unix {
		t.Errorf("no address: %s, want %s", got, Unix)
	}
}

// FuzzTemplate: what parses is written back as it was understood, and expands
// to an absolute path that does not walk, whatever the listener's name.
func FuzzTemplate(f *testing.F) {
	f.Add("/run/socketbox/", "web")
	f.Add("/run/{listener}/{port}.sock", "..")
	f.Add("//run/.{listener}.", ".")
	f.Add("/{local}{remote}{family}", "a/../b")
	f.Fuzz(func(t *testing.T, text, listener string) {
		tpl, err := ParseTemplate(text)
		if err != nil {
			return
		}
		again, err := ParseTemplate(tpl.String())
		if err != nil || again != tpl {
			t.Fatalf("%q becomes %q, then %q, %v", text, tpl, again, err)
		}
		path := tpl.Expand(Facts{Listener: listener, Port: 80, Local: netip.MustParseAddr("::1"), Family: IPv6})
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\x00") {
			t.Fatalf("%q expands to %q", text, path)
		}
		if strings.HasSuffix(path, "/") != tpl.IsDir() {
			t.Fatalf("%q expands to %q, directory %v", text, path, tpl.IsDir())
		}
		for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			if part == "." || part == ".." || part == "" && path != "/" {
				t.Fatalf("%q expands to %q", text, path)
			}
		}
	})
}
