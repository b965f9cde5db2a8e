package config

import (
	"net/netip"
	"strings"
	"testing"

	"socketbox/internal/rule"
)

const tableConfig = `
[[listener]]
address = ":80"

[[rule]]
target = "table:tenants"

[target.shop]
sockets = "/run/shop/"

[table.tenants]
file = "tenants.tsv"
hold = { connections = 3 }
`

func loadTable(t testing.TB, text string) (*Config, error) {
	t.Helper()
	c, err := Parse("/etc/box.toml", []byte(tableConfig), Defaults{Dir: "/run/x"})
	if err != nil {
		t.Fatal(err)
	}
	return c, c.LoadTable(0, []byte(text))
}

func TestTableFile(t *testing.T) {
	c, err := loadTable(t, "# tenants\n192.0.2.0/24\tshop\n\n192.0.2.1\t/run/{local}/\n2001:db8::/64\t443\tmain\r\n10.0.0.0/8\treject\n192.0.2.2\t/run/{local}/\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.TableFile(&c.Tables[0]); got != "/etc/tenants.tsv" {
		t.Errorf("file %s", got)
	}
	table, destinations, err := c.Table()
	if err != nil {
		t.Fatal(err)
	}
	content := c.Tables[0].Content
	m, err := rule.CompileMap(content.Encoded, len(table.Targets), content.Paths.Len())
	if err != nil {
		t.Fatal(err)
	}
	own := table.Maps[0].Target
	if target := table.Targets[own]; target.Keys != rule.KeyLocal|rule.KeyPort|rule.KeyFamily || target.Places != 1 || target.Hold.Connections != 3 || content.Entries != 5 {
		t.Errorf("target %+v of %d entries", target, content.Entries)
	}
	if p, ok := destinations[own].Place(0); !ok || p.String() != "/run/{local}/" {
		t.Errorf("path %s %v", p, ok)
	}
	if _, ok := destinations[own].Place(1); ok {
		t.Error("there is a second path")
	}
	for address, want := range map[string]rule.To{
		"192.0.2.9": rule.ToTarget(1), "192.0.2.1": rule.ToPath(0), "192.0.2.2": rule.ToPath(0), "2001:db8::1": rule.ToTarget(0), "10.1.1.1": rule.ToReject,
	} {
		if to, ok := m.Lookup(netip.MustParseAddr(address), 443); !ok || to != want {
			t.Errorf("%s: %#x %v, want %#x", address, to, ok, want)
		}
	}
}

func TestTableFileRefused(t *testing.T) {
	const columns = `expected "prefix<TAB>target" or "prefix<TAB>port<TAB>target"`
	for _, test := range []struct{ text, want string }{
		{"192.0.2.1 shop\n", "1: " + columns},
		{"192.0.2.1\tshop\tx\ty\n", `1: port "shop": expected 1 to 65535`},
		{"192.0.2.1\t80\tshop\ty\n", "1: " + columns},
		{"192.0.2.1\t0\tshop\n", `1: port "0": expected 1 to 65535`},
		{"192.0.2.1/33\tshop\n", `1: prefix "192.0.2.1/33": expected one such as`},
		{"192.0.2.1/24\tshop\n", `1: prefix "192.0.2.1/24" has bits behind its length`},
		{"::ffff:192.0.2.1\tshop\n", `1: prefix "::ffff:192.0.2.1": expected IPv4 as in "192.0.2.1"`},
		{"fe80::1%eth0\tshop\n", `1: prefix "fe80::1%eth0": expected`},
		{"# x\n192.0.2.1\tshap\n", `2: no target is named "shap"; it may also be an absolute path or "reject"`},
		{"192.0.2.1\ttable:tenants\n", `1: no target is named "table:tenants"`},
		{"192.0.2.1\t/run/../x\n", `1: path "/run/../x": component ".." is not allowed`},
		{"192.0.2.1\t\n", `1: no target is named ""`},
		{"192.0.2.1\tshop\n192.0.2.2\tsh", "2: the last line has no end: the file is not complete"},
		{"192.0.2.1\tshop\n192.0.2.2\tmain\n192.0.2.1/32\tmain\n", "3: 192.0.2.1/32 is already in line 1"},
		{"192.0.2.1\t80\tshop\n192.0.2.1\t80\tmain\n", "2: 192.0.2.1/32 is already in line 1"},
	} {
		c, err := loadTable(t, test.text)
		if err == nil || !strings.HasPrefix(err.Error(), "/etc/tenants.tsv:"+test.want) {
			t.Errorf("%q:\ngot  %v\nwant %s", test.text, err, test.want)
		}
		if c.Tables[0].Content != nil {
			t.Errorf("%q: has content", test.text)
		}
	}
	_, err := loadTable(t, strings.Repeat("x\n", 500))
	if n := strings.Count(err.Error(), "\n"); n != maxErrors {
		t.Errorf("%d lines of errors", n+1)
	}
}

// FuzzTableFile: an error names a line inside the file; what is accepted
// compiles, and every entry is found again.
func FuzzTableFile(f *testing.F) {
	f.Add("# tenants\n192.0.2.0/24\tshop\n\n192.0.2.1\t/run/{local}/\n2001:db8::/64\t443\tmain\r\n10.0.0.0/8\treject\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := loadTable(t, text)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "/etc/tenants.tsv:") && !strings.HasPrefix(line, "and ") {
					t.Fatalf("%q: %s", text, line)
				}
			}
			return
		}
		table, destinations, err := c.Table()
		if err != nil {
			t.Fatal(err)
		}
		content := c.Tables[0].Content
		m, err := rule.CompileMap(content.Encoded, len(table.Targets), content.Paths.Len())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			fields := strings.Split(strings.TrimRight(line, "\r\n"), "\t")
			if len(fields) != 2 || strings.HasPrefix(line, "#") {
				continue
			}
			p, err := parsePrefix(fields[0])
			if err != nil {
				t.Fatalf("%q is accepted: %v", line, err)
			}
			to, ok := m.Lookup(p.Addr(), 0)
			if !ok {
				t.Fatalf("%q is not found", line)
			}
			if i, isPath := to.Path(); isPath {
				if _, ok := destinations[table.Maps[0].Target].Place(i); !ok {
					t.Fatalf("%q leads nowhere", line)
				}
			}
		}
	})
}
