package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

var defaults = Defaults{Dir: "/run/socketbox", User: "socketbox"}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func template(t *testing.T, text string) []rule.Template {
	t.Helper()
	parsed, err := rule.ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return []rule.Template{parsed}
}

func TestParse(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "full.toml"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("full.toml", text, defaults)
	if err != nil {
		t.Fatal(err)
	}
	base := rule.Hold{Connections: 100, Time: 30 * time.Second, Busy: time.Minute}
	want := &Config{
		Path: "full.toml", User: "www", Dir: "/srv/box", Guard: GuardOff, HoldTotal: 5000,
		Listeners: []Listener{
			{listen.Description{
				Name: "web", Network: listen.TCP, Address: netip.IPv6Unspecified(), Both: true, Port: 443,
				NetNS: "edge", Backlog: 128, FreeBind: true, Transparent: true, ReusePort: true,
				Device: "eth0", Mark: 4294967295, DeferAccept: 1500 * time.Millisecond,
			}, HandoffConnection, 8, Lend{}, rule.Limit{}},
			{listen.Description{
				Name: "[::]:80", Network: listen.TCP, Address: netip.IPv6Unspecified(), V6Only: true, Port: 80,
			}, HandoffAuto, 15, Lend{}, rule.Limit{}},
			{listen.Description{
				Name: "0.0.0.0:80", Network: listen.TCP, Address: netip.IPv4Unspecified(), Port: 80,
			}, HandoffListener, 19, Lend{Dirs: []string{"/run/shop", "/run/blog"}, Users: []string{"33", "shop"}, Groups: []string{"www-data"}}, rule.Limit{}},
			{listen.Description{
				Name: "unix:run-app.sock", Network: listen.Unix, Path: "/run/app.sock",
			}, HandoffAuto, 25, Lend{}, rule.Limit{Rate: rule.Rate{Count: 100, Per: time.Second}, Reject: true}},
		},
		Rules: []rule.Rule{
			{Listeners: []int{0}, Local: prefixes("2001:db8::/64"), Ports: []rule.PortRange{{First: 443, Last: 443}, {First: 8000, Last: 8099}, {First: 22, Last: 22}},
				Remote: prefixes("198.51.100.0/24", "203.0.113.7/32"), Target: 1, Line: 30},
			{Listeners: []int{1, 3}, Ports: []rule.PortRange{{First: 1, Last: 65535}}, Target: 3, Line: 37},
			{Remote: prefixes("10.0.0.0/8"), Reject: true, Line: 42},
			{Target: 2, Limit: rule.Limit{PerSource: [rule.Tiers]rule.Rate{{Count: 10, Per: time.Minute}, {}, {Count: 5, Per: time.Hour}}}, Line: 46},
			{Listeners: []int{0}, Target: 3, Line: 50},
			{Target: 2, Sessions: rule.Sessions{Max: 500, PerSource: 3, Reject: true}, Line: 54},
			{Line: 60},
		},
		Targets: []Target{
			{Name: "main", Hold: base},
			{"shop", template(t, "/run/socketbox/shop/"), 0, rule.Hold{Connections: 7, Time: 0, Busy: time.Minute}, 63},
			{"blog", append(template(t, "/run/blog.{port}.sock"), template(t, "/run/blog/")...), rule.SourceHash, base, 67},
			{"/run/tenant/{local}/", template(t, "/run/tenant/{local}/"), 0, base, 37},
		},
	}
	want.Sum = got.Sum // TestParseEmpty has one
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseEmpty(t *testing.T) {
	got, err := Parse("x", nil, defaults)
	if err != nil {
		t.Fatal(err)
	}
	const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of it
	want := &Config{Path: "x", Sum: nothing, User: "socketbox", Dir: "/run/socketbox", Guard: GuardAuto,
		Targets: []Target{{Name: "main", Hold: rule.Hold{Connections: 1024, Time: 30 * time.Second}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// manySockets lists n of them.
func manySockets(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("\"/%03d\"", i))
	}
	return strings.Join(all, ", ")
}

// inListener and the others make one line of a test the second line of a file
// that is sound otherwise.
func inListener(line string) string { return "[[listener]]\n" + line + "\naddress = \":80\"\n" }
func inRule(line string) string     { return "[[rule]]\n" + line + "\ntarget = \"reject\"\n" }
func inTarget(line string) string   { return "[target.t]\n" + line + "\nsockets = \"/x\"\n" }

func TestParseRefused(t *testing.T) {
	long := strings.Repeat("x", 65)
	for _, tc := range []struct{ text, want string }{
		// The form of the file.
		{"user = ", "1:7: "},
		{"user = \"a\"\nuser = \"b\"", "2:1: key user is already defined"},
		{"= 1", "1:1: "},
		{"user = \"\xff\"", "1:9: "},
		{"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q = 1", "1:33: key of more than 16 parts"},
		{"[a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q]", "1:34: key of more than 16 parts"},
		{"x = {a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q = 1}", "1:38: key of more than 16 parts"},

		// The top.
		{"usr = \"x\"", "1:1: unknown key \"usr\": expected user, dir, guard, hold_total, hold, target, table, listener, rule"},
		{"user = 1", "1:8: user: expected a string, got 1"},
		{"user = \"\"", "1:8: user: \"\": expected a user's name or number"},
		{"user = \"a b\"", "1:8: user: \"a b\": expected a user's"},
		{"dir = \"run\"", "1:7: dir: path \"run\" is not absolute"},
		{"dir = \"/\"", "1:7: dir: the root directory can't"},
		{"dir = \"/run/../x\"", "1:7: dir: path \"/run/../x\": expected it as \"/x\""},
		{"dir = \"/run/{port}\"", "1:7: dir: path \"/run/{port}\": the main socket directory can't have words"},
		{"dir = \"/" + strings.Repeat("x", 91) + "\"", "1:7: dir: path"},
		{"guard = \"on\"", "1:9: guard: \"on\": expected \"auto\", \"required\" or \"off\""},
		{"guard = false", "1:9: guard: expected a string, got false"},
		{"hold_total = -1", "1:14: hold_total: -1: expected 0 to 1048576"},
		{"hold_total = \"5\"", "1:14: hold_total: expected an integer, got \"5\""},
		{"hold = 5", "1:8: hold: expected a table, got 5"},
		{"hold = { connections = 0 }", "1:24: connections: 0: expected 1 to"},
		{"hold = { time = 30 }", "1:17: time: expected a duration such as \"30s\" or \"1m30s\", got 30"},
		{"hold = { time = \"30\" }", "1:17: time: \"30\": expected a duration"},
		{"hold = { busy = \"-1s\" }", "1:17: busy: \"-1s\": expected 0s to 24h0m0s"},
		{"hold = { buzy = \"1s\" }", "1:10: unknown key \"buzy\" in hold: expected connections, time, busy"},
		{"[hold]\nbusy = 1.5", "2:8: busy: expected a duration such as \"30s\" or \"1m30s\", got a fraction"},
		{"table = 1", "1:9: table: expected a table, got 1"},
		{"[table.t]\nhold = 1", "1:8: table \"t\": key file is missing: expected the path of a file of lines \"prefix<TAB>target\""},
		{"[table.t]\nfile = 1", "2:8: file: expected a string, got 1"},
		{"[table.t]\nfile = \"x/\"", "2:8: file: \"x/\": expected the path of a file"},
		{"[table.main]\nfile = \"x\"", "1:8: table: target name \"main\" is reserved"},

		// Listeners.
		{"listener = 1", "1:12: listener: expected tables, each headed [[listener]], got 1"},
		{"[listener]\naddress = \":80\"", "1:2: listener: expected tables, each headed [[listener]], got a table"},
		{"listener = [1]", "1:13: listener: expected a table, got 1"},
		{"listener = [{ address = \":80\" }, { adress = \":81\" }]", "1:34: listener: key address is missing"},
		{"[[listener]]\nname = \"x\"", "1:3: listener: key address is missing: expected one such as"},
		{"[[listener]]\naddress = 80", "2:11: address: expected a string, got 80"},
		{"[[listener]]\naddress = \"80\"", "2:11: address: address \"80\": expected an IP address and a port"},
		{"[[listener]]\naddress = \"localhost:80\"", "2:11: address: address \"localhost:80\": expected an IP address"},
		{"[[listener]]\naddress = \"[::]:65536\"", "2:11: address: "},
		{"[[listener]]\naddress = \"/run/x.sock\"", "2:11: address: address \"/run/x.sock\": expected an IP address and a port; a Unix socket is written \"unix:/run/x.sock\""},
		{"[[listener]]\naddress = \"unix:x.sock\"", "2:11: address: path \"x.sock\" is not absolute"},
		{"[[listener]]\naddress = \"unix:/" + long + "\"", "2:11: address: name \"unix:" + long + "\" is too long"},
		{"[[listener]]\naddress = \"[fe80::1]:80\"", "2:11: address: [fe80::1]:80 is link-local"},
		{inListener("adress = \":81\""), "2:1: unknown key \"adress\" in listener: expected sk_lookup, ports, address, name, netns, handoff, lend, allow, rate, per_source, over, options"},
		{inListener("name = \"\""), "2:8: name: a listener's name is empty"},
		{inListener("name = \"a/b\""), "2:8: name: name \"a/b\": expected letters, digits and"},
		{inListener("name = \".a\""), "2:8: name: name \".a\" begins with a dot"},
		{inListener("name = \"" + long + "\""), "2:8: name: name \"" + long + "\" is too long: at most 64 bytes"},
		{inListener("name = 1"), "2:8: name: expected a string, got 1"},
		{inListener("netns = \"a/b\""), "2:9: netns: \"a/b\": expected a name as in `ip netns list`, or an absolute path"},
		{inListener("handoff = \"x\""), "2:11: handoff: \"x\": expected \"auto\", \"connection\" or \"listener\""},
		{inListener("lend = []"), "2:1: lend: the list is empty"},
		{inListener("lend = [\"/x/\", 1]"), "2:16: lend: expected the path of a socket directory, got 1"},
		{inListener("lend = \"x\""), "2:8: lend: path \"x\" is not absolute"},
		{inListener("lend = \"/x/{port}/\""), "2:8: lend: path \"/x/{port}/\": the main socket directory can't"},
		{inListener("allow = {}"), "2:9: allow: key users is missing: expected users or groups"},
		{inListener("allow = { users = [] }"), "2:11: users: the list is empty"},
		{inListener("allow = { users = [\"a:b\"] }"), "2:20: users: \"a:b\": expected a user's name or number"},
		{inListener("allow = { groups = [true] }"), "2:21: groups: expected a name or a number, got true"},
		{inListener("allow = { users = 1, uid = 1 }"), "2:22: unknown key \"uid\" in allow: expected users, groups"},
		{inListener("handoff = \"connection\"\nlend = \"/x\""), "2:11: handoff: \"connection\", and yet it shall be lent"},
		{"[[listener]]\naddress = \"udp::53\"\nhandoff = \"connection\"", "3:11: handoff: udp:[::]:53 has no connections to hand off"},
		{"[[listener]]\naddress = \"unix:/x\"\nlend = \"/y\"", "3:8: lend: unix:/x is a Unix socket, which is never lent"},
		{"[[listener]]\naddress = \"udp::53\"\n[[rule]]\nlistener = \"udp::53\"\ntarget = \"reject\"", "4:12: listener: \"udp::53\" is a UDP socket"},
		{"[[listener]]\naddress = \":80\"\nhandoff = \"listener\"\n[[rule]]\nlistener = \":80\"\ntarget = \"reject\"", "5:12: listener: \":80\" has handoff = \"listener\" in line 1"},
		{inListener("options = 1"), "2:11: options: expected a table, got 1"},
		{inListener("options = { backlog = 0 }"), "2:23: backlog: 0: expected 1 to 2147483647"},
		{inListener("options.v6only = 1"), "2:18: v6only: expected true or false, got 1"},
		{inListener("options.x = 1"), "2:9: unknown key \"x\" in options: expected backlog, v6only, freebind, transparent, reuseport, device, mark, defer_accept"},
		{inListener("options = { device = \"sixteen-bytes-eh\" }"), "2:22: device: \"sixteen-bytes-eh\" is no interface name"},
		{inListener("options = { mark = 4294967296 }"), "2:20: mark: 4294967296: expected 0 to 4294967295"},
		{inListener("options = { defer_accept = \"2h\" }"), "2:28: defer_accept: 2h0m0s: expected 0s to 1h0m0s"},
		{"[[listener]]\naddress = \"0.0.0.0:80\"\n[listener.options]\nv6only = true", "4:10: v6only: 0.0.0.0:80 is an IPv4 address"},
		{"[[listener]]\naddress = \"unix:/x\"\nnetns = \"a\"", "3:9: netns: unix:/x: a path is the same in every network namespace"},
		{"[[listener]]\naddress = \"unix:/x\"\n[listener.options]\nmark = 1", "4:8: mark: unix:/x is a Unix socket: this is for TCP"},
		{inListener("name = \"a\"") + "[[listener]]\nname = \"a\"\naddress = \":81\"", "5:8: name: a listener is named \"a\" already in line 1"},
		{inListener("name = \":81\"") + "[[listener]]\naddress = \":81\"", "5:11: address: a listener is named \":81\" already in line 1"},
		{inListener("") + "[[listener]]\nname = \"b\"\naddress = \"[::]:80\"", "6:11: address: [::]:80 is taken by listener \":80\" in line 1"},
		{inListener("") + "[[listener]]\naddress = \"192.0.2.1:80\"", "5:11: address: 192.0.2.1:80 is taken by listener \":80\" in line 1"},
		{"[[listener]]\naddress = \"unix:/x\"\n[[listener]]\nname = \"b\"\naddress = \"unix:/x\"", "5:11: address: unix:/x is taken by"},

		// Rules.
		{"[rule]\ntarget = \"x\"", "1:2: rule: expected tables, each headed [[rule]], got a table"},
		{"[[rule]]\nport = 1", "1:3: rule: key target is missing: expected a target's name, an absolute path, \"table:NAME\" or \"reject\""},
		{"[[rule]]\ntarget = [\"a\"]", "2:1: target: expected a target's name, an absolute path, \"table:NAME\" or \"reject\", got a list"},
		{"[[rule]]\ntarget = \"shop\"", "2:10: target: no target is named \"shop\"; it may also be an absolute path or \"reject\""},
		{"[[rule]]\ntarget = \"shap\"\n[target.shop]\nsockets = \"/x\"", "2:10: target: no target is named \"shap\": expected \"shop\"; it may"},
		{"[[rule]]\ntarget = \"run/x\"", "2:10: target: no target is named \"run/x\""},
		{"[[rule]]\ntarget = \"/run/{prot}/\"", "2:10: target: path \"/run/{prot}/\": unknown word {prot}: expected {port}, {local}, {remote}, {family} or {listener}"},
		{"[[rule]]\ntarget = \"/run/../x\"", "2:10: target: path \"/run/../x\": component \"..\" is not allowed"},
		{"[[rule]]\ntarget = \"table:t\"", "2:10: target: no table is named \"t\""},
		{inRule("prot = 1"), "2:1: unknown key \"prot\" in rule: expected listener, local, remote, port, target"},
		{inRule("listener = \"web\""), "2:12: listener: no listener is named \"web\""},
		{inRule("listener = 1"), "2:12: listener: expected a listener's name, got 1"},
		{inRule("listener = []"), "2:1: listener: the list is empty: expected at least one entry, or no key"},
		{inListener("") + inRule("listener = [\":80\", \"web\"]"), "5:20: listener: no listener is named \"web\": expected \":80\""},
		{inRule("local = \"10.0.0.1/8\""), "2:9: local: prefix \"10.0.0.1/8\" has bits behind its length: expected \"10.0.0.0/8\" or \"10.0.0.1\""},
		{inRule("local = [\n\n  \"10.0.0.0/33\"]"), "4:3: local: prefix \"10.0.0.0/33\": expected one such as"},
		{inRule("remote = \"::ffff:10.0.0.0/104\""), "2:10: remote: prefix \"::ffff:10.0.0.0/104\": expected IPv4 as in \"10.0.0.0\""},
		{inRule("remote = \"fe80::1%eth0\""), "2:10: remote: prefix \"fe80::1%eth0\": expected one such as"},
		{inRule("remote = \"example.org\""), "2:10: remote: prefix \"example.org\""},
		{inRule("remote = [[\"::/0\"]]"), "2:1: remote: expected a prefix such as \"198.51.100.0/24\", got a list"},
		{inRule("port = 0"), "2:8: port: 0: expected a port from 1 to 65535"},
		{inRule("port = 65536"), "2:8: port: 65536: expected a port from 1 to 65535"},
		{inRule("port = true"), "2:8: port: expected a port such as 443 or a range such as \"8000-8099\", got true"},
		{inRule("max_sessions = 5"), "2:16: max_sessions: the rule rejects all that it takes: expected no limit"},
		{"[[rule]]\ntarget = \"/x\"\nmax_sessions = 0", "3:16: max_sessions: 0: expected 1 to 1048576"},
		{"[[rule]]\ntarget = \"/x\"\nover = \"reject\"", "3:8: over: the rule has no limit: expected max_sessions, "},
		{"[[rule]]\ntarget = \"/x\"\nmax_sessions = 1\nover = \"drop\"", "4:8: over: \"drop\": expected \"wait\" or \"reject\""},
		{"[[listener]]\nname = \"u\"\naddress = \"unix:/u\"\n[[rule]]\nlistener = \"u\"\ntarget = \"/x\"\nmax_sessions_per_source = 1", "7:27: max_sessions_per_source: listener \"u\" is a Unix socket"},
		{inRule("port = [80, \"90-80\"]"), "2:13: port: range \"90-80\" is reversed: expected \"80-90\""},
		{inRule("port = \"80-\""), "2:8: port: \"80-\": expected a port"},
		{inRule("port = \"0-80\""), "2:8: port: \"0-80\": expected a port"},
		{inRule("port = \"http\""), "2:8: port: \"http\": expected a port"},
		{inRule("port = 1979-05-27"), "2:8: port: expected a port such as 443 or a range such as \"8000-8099\", got a date or time"},

		{inRule("rate = \"10\""), "2:8: rate: \"10\": expected a number of connections in a second, minute or hour"},
		{inRule("rate = \"0/s\""), "2:8: rate: \"0/s\": expected a number"},
		{inRule("rate = \"99999999/s\""), "2:8: rate: \"99999999/s\": at most"},
		{inRule("rate = 5"), "2:8: rate: expected a string, got 5"},
		{"[[rule]]\ntarget = \"/x\"\nper_source = { host = \"1/s\", v6_64 = \"1/s\" }", "3:30: unknown key \"v6_64\" in per_source: expected host, v6_56, v6_48"},
		{inListener("over = \"reject\""), "2:8: over: the listener has no limit: expected rate or per_source too"},
		{inListener("rate = \"5/s\"\nhandoff = \"listener\""), "2:8: rate: the listener is lent"},
		{"[[listener]]\naddress = \"udp:[::]:53\"\nrate = \"5/s\"", "3:8: rate: udp:[::]:53 has no connections to count"},
		{"[[listener]]\naddress = \"unix:/u\"\nper_source = \"5/s\"", "3:14: per_source: unix:/u is a Unix socket, whose clients have no address"},
		{"[[rule]]\ntarget = \"reject\"\nrate = \"5/s\"", "3:8: rate: the rule rejects all that it takes"},

		// Targets.
		{"target = 1", "1:10: target: expected a table, got 1"},
		{"[target]\nt = 1", "2:5: t: expected a table, got 1"},
		{"[target.t]", "1:9: target \"t\": key sockets is missing: expected the path of a socket"},
		{"[target.t]\nsockets = []", "2:1: sockets: the list is empty"},
		{"[target.t]\nsockets = [1]", "2:12: sockets: expected the path of a socket, or of a socket directory with a trailing slash, got 1"},
		{"[target.t]\nsockets = [\"/a\", \"/b\", \"/a\"]", "2:24: sockets: \"/a\" is in the list already"},
		{"[target.t]\nsockets = [" + manySockets(65) + "]", "2:524: sockets: 65 sockets, at most 64"},
		{"[target.t]\nsockets = [\"a\"]", "2:12: sockets: path \"a\" is not absolute"},
		{inTarget("balance = \"round-robin\""), "2:11: balance: the target has one socket: expected several"},
		{inTarget("balance = \"x\""), "2:11: balance: \"x\": expected \"failover\", \"round-robin\" or \"source-hash\""},
		{inTarget("hold.time = \"x\""), "2:13: time: \"x\": expected a duration"},
		{inTarget("hodl = 1"), "2:1: unknown key \"hodl\" in target \"t\": expected sockets, balance, hold"},
		{"[target.reject]\nsockets = \"/x\"", "1:9: target name \"reject\" is reserved"},
		{"[target.main]\nsockets = \"/x\"", "1:9: target name \"main\" is reserved"},
		{"[target.\"a b\"]\nsockets = \"/x\"", "1:9: target name \"a b\": expected 1 to 64 letters"},
		{"[target.\"\"]\nsockets = \"/x\"", "1:9: target name \"\": expected 1 to 64 letters"},
	} {
		c, err := Parse("f", []byte(tc.text), defaults)
		switch {
		case err == nil:
			t.Errorf("%s\naccepted as %+v", tc.text, c)
		case !strings.HasPrefix(err.Error(), "f:"+tc.want):
			t.Errorf("%s\ngot  %v\nwant f:%s", tc.text, err, tc.want)
		case strings.Contains(err.Error(), "%!") || strings.Contains(err.Error(), "toml"):
			t.Errorf("%s\ngot  %v", tc.text, err)
		}
	}
}

// TestParseReportsAll: one line for each error, in the order of the file.
func TestParseReportsAll(t *testing.T) {
	_, err := Parse("/etc/x.toml", []byte(`user = 1
[[rule]]
target = "shop"
listener = ["web", "wob"]
[[listener]]
address = "web:80"
name = "web"
[[rule]]
target = "/x"
post = 80
[target.t]
sockets = "x"
[[listener]]
[[rule]]
target = "reject"
listener = ""
`), defaults)
	want := []string{
		"/etc/x.toml:1:8: user: expected a string, got 1",
		"/etc/x.toml:3:10: target: no target is named \"shop\": expected \"t\"; it may also be an absolute path or \"reject\"",
		"/etc/x.toml:4:20: listener: no listener is named \"wob\": expected \"web\"",
		"/etc/x.toml:6:11: address: address \"web:80\": expected an IP address and a port such as \":80\", \"192.0.2.1:80\" or \"[2001:db8::1]:80\"",
		"/etc/x.toml:10:1: unknown key \"post\" in rule: expected listener, local, remote, port, target, max_sessions, max_sessions_per_source, rate, per_source, over",
		"/etc/x.toml:12:11: sockets: path \"x\" is not absolute: it must begin with \"/\"",
		"/etc/x.toml:13:3: listener: key address is missing: expected one such as \":80\", \"192.0.2.1:80\" or \"unix:/path\"",
		"/etc/x.toml:16:12: listener: no listener is named \"\": expected \"web\"",
	}
	if got := fmt.Sprint(err); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	var first *Error
	if !errors.As(err, &first) || first.Where != "/etc/x.toml:1:8" {
		t.Errorf("no *Error in %T", err)
	}
}

func TestParseBounds(t *testing.T) {
	if _, err := Parse("f", make([]byte, MaxFile+1), defaults); err == nil || !strings.Contains(err.Error(), "f:1:1: the file has 4194305 bytes, at most 4194304") {
		t.Error(err)
	}
	listeners := strings.Repeat("[[listener]]\naddress = \"127.0.0.1:0\"\n", rule.MaxListeners+1)
	if _, err := Parse("f", []byte(listeners), defaults); err == nil || !strings.HasPrefix(err.Error(), "f:1:3: listener: 4097 of them, at most 4096") {
		t.Error(err)
	}
	if _, err := Parse("f", []byte(manyKeys(maxKeys+1)), defaults); err == nil || err.Error() != "f:4097:1: table of more than 4096 keys" {
		t.Error(err)
	}
	wide := "a = {" + strings.ReplaceAll(manyKeys(maxKeys+100), "\n", ",") + "}"
	if _, err := Parse("f", []byte(wide), defaults); err == nil || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
	rules := strings.Repeat("[[rule]]\ntarget = \"\"\n", 150)
	_, err := Parse("f", []byte(rules), defaults)
	if got := strings.Split(fmt.Sprint(err), "\n"); len(got) != maxErrors+1 || got[maxErrors] != "and 50 errors more" {
		t.Errorf("%d lines, the last: %s", len(got), got[len(got)-1])
	}
}

// TestParseHostile feeds what is large in some way; each must end soon.
func TestParseHostile(t *testing.T) {
	for name, text := range map[string]string{
		"deep lists":       "a = " + strings.Repeat("[", 1<<20),
		"deep tables":      "a = " + strings.Repeat("{a=", 9999) + "1" + strings.Repeat("}", 9999),
		"long key":         "a" + strings.Repeat(".a", 1<<20) + " = 1",
		"long header":      "[a" + strings.Repeat(".a", 1<<20) + "]",
		"long common name": "[" + strings.Repeat("a", 1<<18) + "]\n" + manyKeys(maxKeys),
		"wide table":       manyKeys(300_000),
		"wide value":       "a = {" + strings.ReplaceAll(manyKeys(200_000), "\n", ",") + "}",
		"wide target":      manyTargets(100_000),
		"empty tables":     strings.Repeat("[[rule]]\n", 1<<16),
	} {
		start := time.Now()
		if _, err := Parse("f", []byte(text), defaults); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d = 1\n", i)
	}
	return b.String()
}

func manyTargets(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[target.t%d]\nsockets = \"/x\"\n", i)
	}
	return b.String()
}

// FuzzParse: no panic; every error has a place inside the file; what parses
// has a table.
func FuzzParse(f *testing.F) {
	full, err := os.ReadFile(filepath.Join("testdata", "full.toml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte("listener = [{ address = \":80\", options.v6only = true }]\nrule = [{ target = \"/x/{port}\", port = [1, \"2-3\"] }]"))
	f.Add([]byte("a.b = [[{c = 1}], 2]\n[x.y]\n[[x.z]]\n[x.z.q]"))
	f.Add([]byte("hold.time = '1s'\n[hold]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("f", text, defaults)
		if err != nil {
			checkPlaces(t, text, err)
			return
		}
		table, destinations, err := c.Table()
		if err != nil {
			t.Fatal(err)
		}
		if len(destinations) != len(table.Targets) {
			t.Fatalf("%d destinations for %d targets", len(destinations), len(table.Targets))
		}
		for _, d := range destinations {
			if len(d.Sockets) == 0 && d.Paths == nil || len(d.Sockets) > rule.MaxPlaces {
				t.Fatalf("destination %+v", d)
			}
		}
		for _, d := range c.Descriptions() {
			if wrong := d.Check(); len(wrong) > 0 {
				t.Fatalf("%+v: %v", d, wrong[0])
			}
		}
	})
}

func checkPlaces(t *testing.T, text []byte, err error) {
	list, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T: %v", err, err)
	}
	lines := strings.Split(string(text), "\n")
	for i, err := range list.Unwrap() {
		var e *Error
		if !errors.As(err, &e) {
			if i != maxErrors {
				t.Fatalf("%T: %v", err, err)
			}
			continue
		}
		at := e.position
		if at.line < 1 || at.line > len(lines) || at.column < 1 || at.column > len(lines[at.line-1])+1 {
			t.Fatalf("%v is outside of the file", err)
		}
	}
}
