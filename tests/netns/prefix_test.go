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
