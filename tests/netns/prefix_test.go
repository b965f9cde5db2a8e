package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openDirectory makes a socket directory that everybody may look into.
func openDirectory(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A whole /64 is local (AnyIP), and one listener takes it: a thousand addresses go to
// a thousand targets by one template, without a reload when one is added. A scan
// of other addresses is reset at once and harms nobody.
func TestAnyIP(t *testing.T) {
	const tenants, scanned = 1000, 400
	needRoot(t)
	ns := ipNetns(t)
	ns.ip(t, "-6 route add local 2001:db8:1::/64 dev lo")
	port := freePort(t)
	b := bindConfigIn(t, ns, socketDir(t), fmt.Sprintf(`
[[listener]]
address = "[::]:%d"
[[rule]]
local  = "2001:db8:1::/64"
target = "DIR/t/{local}/"
`, port))
	group := groupOf(t, b.dir)
	tenant := func(i int) (address, dir string) {
		address = fmt.Sprintf("2001:db8:1::%x", i)
		return address, openDirectory(t, filepath.Join(b.dir, "t", strings.ReplaceAll(address, ":", "-")))
	}
	receive := func(i int) {
		address, dir := tenant(i)
		runReceiver(t, &receiver{Path: filepath.Join(dir, "default.sock"), Name: address, Group: group})
	}
	for i := 1; i <= tenants; i++ {
		receive(i)
	}
	visit := func(i int) visit {
		return inNamespace(ns, client{to: fmt.Sprintf("[2001:db8:1::%x]:%d", i, port)})
	}
	begun := time.Now()
	for i := 1; i <= tenants; i++ {
		address, _ := tenant(i)
		if v := visit(i); v.outcome != served || v.receiver != address {
			t.Fatalf("%s: %s by %q, %v", address, v.outcome, v.receiver, v.err)
		}
	}
	t.Logf("%d addresses to %d targets: %v", tenants, tenants, time.Since(begun))
	for i := range scanned {
		if v := visit(tenants + 100 + i); v.outcome != reset || v.took > time.Second {
			t.Fatalf("a scanned address: %s after %v", v.outcome, v.took)
		}
	}
	receive(tenants + 1) // one more, and nobody reloads
	eventually(t, 2*time.Second, func() error {
		if v := visit(tenants + 1); v.outcome != served {
			return fmt.Errorf("a new tenant: %s", v.outcome)
		}
		return nil
	})
	if v := visit(7); v.outcome != served {
		t.Errorf("after the scan: %s", v.outcome)
	}
	t.Logf("memory: dispatcher %s, binder %s", rss(t, b.status().Dispatcher), rss(t, b.binderPID()))
}

// The lines of docs/examples/tproxy.nft bring prefixes that are no address of
// this machine, and all their ports, to one transparent listener in another
// namespace; rules see what the client dialled, and so does the daemon.
func TestTPROXY(t *testing.T) {
	needRoot(t)
	nft := needProgram(t, "nft")
	n := newTopology(t)
	port := freePort(t)
	rules, err := os.ReadFile("../../docs/examples/tproxy.nft")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tproxy.nft")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(rules), "8888", fmt.Sprint(port))), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, append(n.edge.exec, nft, "-f", file)...)
	for line := range strings.Lines(string(rules)) {
		if _, commands, ok := strings.Cut(line, "#   ip"); ok {
			for c := range strings.SplitSeq("ip"+commands, ";") {
				mustRun(t, append(append([]string{}, n.edge.exec...), strings.Fields(c)...)...)
			}
		}
	}
	b := bindConfig(t, fmt.Sprintf(`
[[listener]]
address = "[::]:%d"
netns   = "%s"
options.transparent = true
[[rule]]
port   = "7000-7999"
target = "DIR/seven.sock"
[[rule]]
local  = "2001:db8:99::/64"
target = "DIR/six.sock"
[[rule]]
target = "DIR/other.sock"
`, port, n.edge.name))
	receiversOf(t, b, 0, "seven.sock", "six.sock", "other.sock")
	for to, want := range map[string]string{
		"198.18.3.4:7777":        "seven.sock",
		"198.19.0.1:22":          "other.sock",
		"[2001:db8:99::5]:443":   "six.sock",
		"[2001:db8:99:1::5]:443": "other.sock",
		"[2001:db8:99::5]:7000":  "seven.sock",
	} {
		v := inNamespace(n.client, client{to: to})
		if v.outcome != served || v.receiver != want {
			t.Errorf("%s: %s by %q, expected %s (%v)", to, v.outcome, v.receiver, want, v.err)
		}
	}
}

// A range of ports is a listener for each by default, which rules name together;
// check and the log say what that costs.
func TestPortRange(t *testing.T) {
	const ports = 300
	first := portRange(t, ports)
	text := fmt.Sprintf("[[listener]]\nname = \"many\"\naddress = \"127.0.0.1\"\nports = \"%d-%d\"\n[[rule]]\nlistener = \"many\"\ntarget = \"DIR/a.sock\"\n", first, first+ports-1)
	b := bindConfig(t, text)
	b.waitLog("is 300 sockets, one for each port")
	receiversOf(t, b, 0, "a.sock")
	atOnce(ports, func(i int) client { return client{to: at(first + i)} }).allServed(t, ports)
	b.balance(ports)
	if s := b.status(); len(s.Listeners) != ports || s.Listeners[7].Name != fmt.Sprintf("many:%d", first+7) || s.Listeners[7].Delivered != 1 {
		t.Errorf("%d listeners, the eighth: %+v", len(s.Listeners), s.Listeners[7])
	}
	config := filepath.Join(filepath.Dir(b.dir), "socketbox.toml")
	expect(t, socketbox(t, here(), 0, "check", config), 0, fmt.Sprintf("many:%d", first), "(300 in all)", "note: ")
	expect(t, socketbox(t, here(), 0, "explain", "--dir", b.dir, "--to", at(first+9)), 0, fmt.Sprintf("many:%d", first+9), "a.sock")
	putConfig(t, b.dir, strings.Replace(text, fmt.Sprintf("-%d", first+ports-1), fmt.Sprintf("-%d", first+9), 1))
	b.hup("configuration reloaded")
	if n := len(b.status().Listeners); n != 10 {
		t.Errorf("%d listeners after the range became smaller", n)
	}
	putConfig(t, b.dir, strings.Replace(text, fmt.Sprintf("\"%d-", first), "\"1-", 1))
	expect(t, socketbox(t, here(), 0, "check", config), 1, "socketbox.toml:4:", "a socket each: at most 4096", "hint: sk_lookup = true")
}

// sk_lookup brings all ports of an address, and all addresses of a prefix, to one
// listener each, in another namespace; rules see what was dialled; what lies
// beside is refused as if nothing were there. A reload by root adds one and takes
// one away, a takeover keeps them, and an ordinary user is told what he lacks.
func TestSkLookup(t *testing.T) {
	needRoot(t)
	ns := ipNetns(t)
	ns.ip(t, "addr add 198.51.100.5/32 dev lo", "-6 route add local 2001:db8:5::/64 dev lo")
	listener := func(name, address, ports string) string {
		return fmt.Sprintf("[[listener]]\nname = \"%s\"\naddress = \"%s\"\nports = %s\nsk_lookup = true\nnetns = \"%s\"\n", name, address, ports, ns.name)
	}
	const rules = `
[[rule]]
port   = "1-1023"
target = "DIR/low.sock"
[[rule]]
local  = "2001:db8:5::ff00/120"
target = "DIR/ff.sock"
[[rule]]
target = "DIR/other.sock"
`
	all := listener("ports", "198.51.100.5", "\"1-65535\"") + rules
	b := bindConfig(t, all)
	config := filepath.Join(filepath.Dir(b.dir), "socketbox.toml")
	receiversOf(t, b, 0, "low.sock", "ff.sock", "other.sock")
	takes := func(to, want string) {
		t.Helper()
		v := inNamespace(ns, client{to: to, limit: 5 * time.Second})
		if v.outcome != want && (v.outcome != served || v.receiver != want) {
			t.Errorf("%s: %s by %q, expected %s (%v)", to, v.outcome, v.receiver, want, v.err)
		}
	}
	takes("198.51.100.5:1", "low.sock")
	takes("198.51.100.5:1023", "low.sock")
	takes("198.51.100.5:65535", "other.sock")
	takes("127.0.0.1:22", refused)
	takes("[2001:db8:5::ff01]:443", refused)

	putConfig(t, b.dir, listener("prefix", "2001:db8:5::/112", "443")+all)
	b.hup("reload failed") // the binder has no rights
	expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, config), 0)
	b = b.takeOver("--config", config)
	takes("[2001:db8:5::ff01]:443", "low.sock")
	takes("[2001:db8:5::1:1]:443", refused) // beside the /112
	takes("[2001:db8:5::ff01]:444", refused)
	takes("198.51.100.5:40000", "other.sock")
	expect(t, socketbox(t, here(), 0, "explain", "--dir", b.dir, "--to", "198.51.100.5:80"), 0, "low.sock", "ports")
	if s := b.status().Listeners[0]; s.Address != "2001:db8:5::/112 port 443" || s.Delivered != 1 {
		t.Errorf("%+v", s)
	}

	putConfig(t, b.dir, listener("prefix", "2001:db8:5::/112", "443")+rules)
	expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, config), 0)
	takes("198.51.100.5:40000", refused)
	takes("[2001:db8:5::7]:443", "low.sock")
	b.signal(15)
	b.wait(5 * time.Second)
	takes("[2001:db8:5::7]:443", refused) // nothing stays behind

	own := socketDir(t)
	if err := os.Chown(filepath.Dir(own), 61234, 61234); err != nil {
		t.Fatal(err)
	}
	file := putConfig(t, own, strings.ReplaceAll(listener("x", "127.3.0.0/16", "\"1-65535\""), "netns", "# netns"))
	expect(t, socketbox(t, here(), 61234, "bind", "--config", file, "--dir", own), 1, "listen on 127.3.0.0/16 port 1-65535", "hint: sk_lookup needs CAP_BPF and CAP_NET_ADMIN")
}
