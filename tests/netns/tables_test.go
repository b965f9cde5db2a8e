package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tableListener is a listener on every loopback address of IPv4 whose
// connections go by the table beside the configuration; what is not in it is
// reset.
func tableListener(port int) string {
	return fmt.Sprintf(`[[listener]]
address = "0.0.0.0:%d"
[[rule]]
target = "table:tenants"
[[rule]]
target = "reject"
[target.shop]
sockets = "DIR/shop.sock"
[table.tenants]
file = "tenants.tsv"
`, port)
}

// putTable writes the table beside the configuration, as one should: by a new
// file that is renamed. DIR is the main socket directory.
func putTable(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(dir), "tenants.tsv")
	err := os.WriteFile(path+".new", []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// to127 is a client of an address of 127.0.0.0/8.
func to127(host string, port int) client { return client{to: fmt.Sprintf("127.%s:%d", host, port)} }

// A table sends each address where the longest prefix says, by name or path,
// with a port or without; what it does not have is for the next rule.
func TestTable(t *testing.T) {
	port, other := freePort(t), freePort(t)
	dir := socketDir(t)
	putTable(t, dir, fmt.Sprintf("# tenants\n127.1.0.0/16\tshop\n127.1.2.0/24\tDIR/a.sock\n127.1.2.3\t%d\tDIR/{port}.sock\n127.1.2.4\treject\n127.1.2.5\tmain\n", port))
	b := bindConfigIn(t, here(), dir, tableListener(port)+fmt.Sprintf("[[listener]]\naddress = \"127.1.2.3:%d\"\n", other))
	for _, name := range []string{"shop.sock", "a.sock", fmt.Sprintf("%d.sock", port), "default.sock"} {
		runReceiver(t, &receiver{Path: filepath.Join(dir, name)})
	}
	takenBy(t, "shop.sock", to127("1.9.9", port))
	takenBy(t, "a.sock", to127("1.2.9", port))
	takenBy(t, fmt.Sprintf("%d.sock", port), to127("1.2.3", port))
	takenBy(t, "a.sock", to127("1.2.3", other)) // not that port: the wider prefix
	takenBy(t, fmt.Sprintf("%d.sock", port), to127("1.2.5", port))
	for _, host := range []string{"1.2.4", "2.0.1"} {
		if v := to127(host, port).visit(); v.outcome != reset {
			t.Errorf("127.%s: %+v", host, v)
		}
	}
	expect(t, socketbox(t, here(), 0, "explain", "--dir", dir, "--to", fmt.Sprint("127.1.2.3:", port)), 0, "table", fmt.Sprintf("127.1.2.3 port %d", port), fmt.Sprintf("%d.sock", port))
	expect(t, socketbox(t, here(), 0, "explain", "--config", filepath.Join(filepath.Dir(dir), "socketbox.toml"), "--to", fmt.Sprint("127.1.2.4:", port)), 0, "reject")
	b.balance(7)
	s := b.status()
	counts := map[string][2]uint64{}
	for _, target := range s.Targets {
		counts[target.Name] = [2]uint64{target.Delivered, target.Rejected}
	}
	for name, want := range map[string][2]uint64{"shop": {1, 0}, "table:tenants": {3, 0}, "main": {1, 0}} {
		if counts[name] != want {
			t.Errorf("target %s has delivered and rejected %v, expected %v", name, counts[name], want)
		}
	}
	if r := s.Rules[1]; r.Target != "table:tenants" || r.Delivered != 5 || r.Rejected != 1 {
		t.Errorf("the table's rule: %+v", r)
	}
	expect(t, socketbox(t, here(), 0, "check", filepath.Join(filepath.Dir(dir), "socketbox.toml")), 0, "an entry of the table", "table:tenants", "5        2")
}

// Whatever is wrong with a table on reload is said with file and line, by HUP
// and by the command, and the table that was in force stays; so it does while
// the file is gone, or only half written.
func TestTableBroken(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	const good = "127.1.0.0/16\tshop\n127.2.0.0/16\tDIR/a.sock\n"
	table := putTable(t, dir, good)
	b := bindConfigIn(t, here(), dir, tableListener(port))
	config := filepath.Join(filepath.Dir(dir), "socketbox.toml")
	runReceiver(t, &receiver{Path: filepath.Join(dir, "shop.sock"), Take: 100 * time.Microsecond})
	runReceiver(t, &receiver{Path: filepath.Join(dir, "a.sock")})
	load := keep(8, time.Millisecond, func(int) client { return to127("1.0.1", port) })
	reloadFails := func(want string) {
		t.Helper()
		b.hup(want)
		expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, config), 1, want)
		takenBy(t, "a.sock", to127("2.0.1", port))
	}
	for text, want := range map[string]string{
		good + "127.3.0.0/33\tshop\n":             table + `:3: prefix \"127.3.0.0/33\"`,
		good + "127.3.0.0/16\tshap\n":             table + `:3: no target is named \"shap\"`,
		good + "127.1.0.0/16\tDIR/a.sock\n":       table + ":3: 127.1.0.0/16 is already in line 1",
		"127.1.0.0/16\tshop\n127.2.0.0/16\tDIR/a": table + ":2: the last line has no end",
	} {
		putTable(t, dir, text)
		b.hup(want)
		expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, config), 1, strings.ReplaceAll(want, `\`, ""))
		takenBy(t, "a.sock", to127("2.0.1", port))
	}
	if err := os.Remove(table); err != nil {
		t.Fatal(err)
	}
	reloadFails("no such file")
	if err := os.Mkdir(table, 0o755); err != nil {
		t.Fatal(err)
	}
	reloadFails("is no regular file")
	if err := os.Remove(table); err != nil {
		t.Fatal(err)
	}
	putTable(t, dir, good+"127.3.0.0/16\tshop\n")
	expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, config), 0, "reloaded")
	takenBy(t, "shop.sock", to127("3.0.1", port))
	c := load.end()
	t.Log(c)
	c.allServed(t, c.total())
	b.balance(c.total() + 7)
}

// A table may be one that only root can read: the privileged stage and
// `socketbox reload` read it, HUP can't, and says so.
func TestTableOfRoot(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	dir := socketDir(t)
	table := putTable(t, dir, "127.1.0.0/16\tshop\n")
	mustRun(t, "chmod", "0600", table)
	b := bindConfigIn(t, here(), dir, tableListener(port))
	config := filepath.Join(filepath.Dir(dir), "socketbox.toml")
	runReceiver(t, &receiver{Path: filepath.Join(dir, "shop.sock")})
	takenBy(t, "shop.sock", to127("1.0.1", port))
	b.hup("permission denied")
	mustRun(t, "sh", "-c", fmt.Sprintf("printf '127.2.0.0/16\\tshop\\n' >> %s", table))
	expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, config), 0, "reloaded")
	takenBy(t, "shop.sock", to127("2.0.1", port))
}

// A dispatcher that dies gets the tables again, and so does the one of an
// instance that takes over.
func TestTableSurvives(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	putTable(t, dir, "127.1.0.0/16\tshop\n127.2.0.0/16\tDIR/a.sock\n")
	b := bindConfigIn(t, here(), dir, tableListener(port))
	runReceiver(t, &receiver{Path: filepath.Join(dir, "a.sock")})
	takenBy(t, "a.sock", to127("2.0.1", port))
	kill9(t, b.status().Dispatcher)
	takenBy(t, "a.sock", to127("2.0.1", port))
	next := bindIn(t, here(), dir, "--takeover", "--config", filepath.Join(filepath.Dir(dir), "socketbox.toml"))
	takenBy(t, "a.sock", to127("2.0.1", port))
	if n := next.status().Total.Delivered; n != 3 {
		t.Errorf("%d delivered", n)
	}
}

// A table of two hundred thousand entries is put in force while clients come:
// none is lost, and none waits for it.
func TestLargeTableUnderLoad(t *testing.T) {
	const entries = 200_000
	port := freePort(t)
	dir := socketDir(t)
	large := func(first int) string {
		var text strings.Builder
		for i := range entries {
			fmt.Fprintf(&text, "10.%d.%d.%d\tDIR/t/%d/\n", i>>16, i>>8&255, i&255, first+i)
		}
		return text.String() + "127.1.0.0/16\tshop\n"
	}
	putTable(t, dir, large(0))
	b := bindConfigIn(t, here(), dir, tableListener(port))
	runReceiver(t, &receiver{Path: filepath.Join(dir, "shop.sock")})
	load := keep(4, 2*time.Millisecond, func(int) client { return to127("1.0.1", port) })
	for i := range 3 {
		putTable(t, dir, large(i+1))
		b.hup("configuration reloaded")
	}
	b.hup("configuration reloaded") // the same table once more
	c := load.end()
	t.Log(c)
	c.allServed(t, c.total())
	b.balance(c.total())
	if want := fmt.Sprintf("table:tenants=%d", entries+1); !strings.Contains(b.log.String(), want) {
		t.Errorf("the log does not say %s", want)
	}
}
