package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	tableEntries = 1_000_000
	plainRules   = 1000
	tableClients = 64
)

// Names of the variants; ratios refer to the first.
const (
	tenRules     = "10 rules"
	manyRules    = "1,000 rules"
	millionTable = "a table of 1,000,000 entries"
	plainAddress = "a listener of that address and port"
	wholePrefix  = "sk_lookup, a /16 with 65,535 ports"
)

// tablesTables measures what rules and tables cost, and what it takes to load
// one; and a listener that a whole prefix is brought to.
func (b *bench) tablesTables() error {
	if b.reference {
		fmt.Fprintln(b.log, "tables: socketbox alone has these; left out")
		return nil
	}
	large := b.rulesVariant(millionTable, 0, tableEntries)
	groups := [][]*variant{{b.rulesVariant(tenRules, 10, 0), b.rulesVariant(manyRules, plainRules, 0), large}}
	if os.Geteuid() == 0 {
		groups = append(groups, []*variant{b.prefixVariant(plainAddress, false), b.prefixVariant(wholePrefix, true)})
	}
	if err := b.measureRounds("tables", groups...); err != nil {
		return err
	}
	b.title("Rules, tables, prefixes", fmt.Sprintf("The dispatcher's CPU in µs per connection; %d clients. Aims: with the table 0.95 of the rate with ten rules, with 1,000 rules 0.90, with sk_lookup 0.95 of a plain listener's.", tableClients))
	b.head("variant", "CPU µs", "conn/s", "of the first", "p50", "p99", "lost")
	for _, group := range groups {
		for _, v := range group {
			if v.err != nil {
				b.failedRow(v)
				continue
			}
			b.row(v.name, exact(v.of(cpuOf)), whole(v.of(rateOf)), ratio(v, group[0], rateOf), whole(v.of(p50Of)), whole(v.of(p99Of)), v.lost())
		}
	}
	b.printResident(groups[0])
	if large.err == nil && groups[0][0].err == nil {
		grown := large.resident()["dispatcher"] - groups[0][0].resident()["dispatcher"]
		fmt.Fprintf(b.out, "\nMemory for each entry of the table: %d bytes in the dispatcher (aim: at most 200).\n", grown*1024/tableEntries)
	}
	return b.reloadTable()
}

// rulesVariant measures a binder whose last rule takes what comes.
func (b *bench) rulesVariant(name string, rules, entries int) *variant {
	return &variant{name: name, clients: tableClients, measure: func() (sample, error) {
		start := func() (*server, error) { s, _, err := b.startRules(rules, entries); return s, err }
		return b.sampleServer(start, own, loadSpec{clients: tableClients, count: b.count, limit: b.limit})
	}}
}

// startRules starts a binder with so many rules or, where entries is not 0, with
// a table; it returns the path of its configuration too.
func (b *bench) startRules(rules, entries int) (_ *server, config string, err error) {
	s, err := b.withReceiver(func(s *server, path string) (err error) {
		if config, err = b.writeConfig("socketbox.toml", rulesConfig(s.port, path, rules, entries)); err != nil {
			return err
		}
		if entries > 0 {
			if err := writeTable(config, entries); err != nil {
				return err
			}
		}
		return s.addBinder(b, s.port, "--config", config)
	})
	return s, config, err
}

func rulesConfig(port int, path string, rules, entries int) string {
	var text strings.Builder
	fmt.Fprintf(&text, "[[listener]]\naddress = \"0.0.0.0:%d\"\n[target.shop]\nsockets = %q\n", port, path)
	for i := range rules - 1 {
		fmt.Fprintf(&text, "[[rule]]\nlocal = \"10.%d.%d.0/24\"\ntarget = \"shop\"\n", i/256, i%256)
	}
	if entries > 0 {
		return text.String() + "[[rule]]\ntarget = \"table:tenants\"\n[table.tenants]\nfile = \"tenants.tsv\"\n"
	}
	return text.String() + "[[rule]]\nlocal = \"127.0.0.0/8\"\ntarget = \"shop\"\n"
}

// writeTable writes the table of a configuration: 127.0.0.1, and for the rest IPv4
// addresses and IPv6 /64s, half and half.
func writeTable(config string, entries int) error {
	var text bytes.Buffer
	text.WriteString("127.0.0.1\tshop\n")
	for i := 1; i < entries; i++ {
		if i%2 == 0 {
			fmt.Fprintf(&text, "10.%d.%d.%d\tshop\n", i>>16, i>>8&255, i&255)
		} else {
			fmt.Fprintf(&text, "2001:db8:%x:%x::/64\tshop\n", i>>16, i&0xffff)
		}
	}
	path := filepath.Join(filepath.Dir(config), "tenants.tsv")
	if err := os.WriteFile(path+".new", text.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// prefixVariant measures a listener on 127.77.0.1, one of its own or one of a
// whole prefix.
func (b *bench) prefixVariant(name string, steered bool) *variant {
	const address = "127.77.0.1"
	start := func() (*server, error) {
		return b.startBeside(func(port int) string {
			if steered {
				return "address = \"127.77.0.0/16\"\nports = \"1-65535\"\nsk_lookup = true\n"
			}
			return fmt.Sprintf("address = \"%s:%d\"\n", address, port)
		})
	}
	return &variant{name: name, clients: tableClients, measure: func() (sample, error) {
		return b.sampleServer(start, own, loadSpec{address: address, clients: tableClients, count: b.count, limit: b.limit})
	}}
}

// startBeside starts a binder with the listener that these keys describe, and one more at
// 127.0.0.1 for the bench itself, which asks there whether it serves.
func (b *bench) startBeside(listener func(port int) string) (*server, error) {
	return b.withReceiver(func(s *server, path string) error {
		text := fmt.Sprintf("[[listener]]\n%s[[listener]]\naddress = \"127.0.0.1:%d\"\n[[rule]]\ntarget = %q\n", listener(s.port), s.port, path)
		config, err := b.writeConfig("socketbox.toml", text)
		if err != nil {
			return err
		}
		return s.addBinder(b, s.port, "--config", config)
	})
}

// reloadTable measures how long a table of a million entries takes to load, at
// start and by `socketbox reload`, and what the clients meanwhile feel of it.
func (b *bench) reloadTable() error {
	quiet := &variant{name: "before", clients: 8}
	during := &variant{name: "during reloads", clients: 8}
	took := &variant{name: "reload"}
	for round := range b.rounds {
		where := fmt.Sprintf("reload, round %d of %d", round+1, b.rounds)
		before, while, seconds, err := b.sampleReload()
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		quiet.samples, during.samples = append(quiet.samples, before), append(during.samples, while)
		took.samples = append(took.samples, sample{cpu: seconds})
		fmt.Fprintf(b.log, "%s: %.2f s, p99.9 %v before, %v during\n", where, seconds, before.p999, while.p999)
	}
	b.title("A table of a million entries is reloaded", "8 clients at the old table, half a second before and while `socketbox reload` runs: it reads, checks and sorts the file, the dispatcher compiles it, and it is in force when the command returns. Latencies in µs. Aims: at most 3 s; no connection waits 50 ms longer.")
	b.head("", "seconds", "p50", "p99", "p99.9", "lost")
	for _, v := range []*variant{quiet, during} {
		seconds := "-"
		if v == during {
			seconds = exact(took.of(cpuOf))
		}
		b.row(v.name, seconds, whole(v.of(p50Of)), whole(v.of(p99Of)), whole(v.of(p999Of)), v.lost())
	}
	return nil
}

// sampleReload puts a large table in the place of one with one entry, under load.
func (b *bench) sampleReload() (before, during sample, seconds float64, err error) {
	s, config, err := b.startRules(1, 1)
	if err != nil {
		return before, during, 0, err
	}
	defer s.stop()
	if err := writeTable(config, tableEntries); err != nil {
		return before, during, 0, err
	}
	l := loadSpec{port: s.port, clients: 8, count: 1_000_000, limit: 500 * time.Millisecond}
	if before, err = b.sampleLoad(s, own, l); err != nil {
		return before, during, 0, err
	}
	l.limit = b.limit
	running, err := b.startLoad(l)
	if err != nil {
		return before, during, 0, err
	}
	begun := time.Now()
	out, err := exec.CommandContext(b.ctx, b.program("socketbox"), "reload", "--dir", s.dir, config).CombinedOutput()
	seconds = time.Since(begun).Seconds()
	result, loadErr := finishLoad(running)
	if err != nil {
		return before, during, 0, fmt.Errorf("reload: %w: %s", err, strconv.Quote(string(out)))
	}
	return before, sample{loadResult: result}, seconds, loadErr
}
