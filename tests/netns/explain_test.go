package netns

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"socketbox/internal/binder"
)

// shops is the configuration of the captures: two tenants, an administrator's
// page, and the rest refused.
const shops = `[[listener]]
name    = "web"
address = ":80"

[[listener]]
name    = "admin"
address = "127.0.0.1:8080"

[[rule]]
local  = ["192.0.2.10", "2001:db8::10"]
target = "shop"

[[rule]]
local  = ["192.0.2.11", "2001:db8::11"]
target = "/run/socketbox/blog/"

[[rule]]
listener = "admin"
remote   = ["127.0.0.0/8"]
target   = "/run/socketbox/admin.sock"

[[rule]]
target = "reject"

[target.shop]
sockets = "/run/socketbox/shop/"
hold    = { time = "2s" }
`

// shopsOpen starts both tenants' machine: the shop is open, the blog's daemon
// has not come yet.
func shopsOpen(t *testing.T) *stage {
	t.Helper()
	s := newStage(t)
	s.must("ip addr add 192.0.2.10/24 dev lo; ip addr add 192.0.2.11/24 dev lo; ip addr add 203.0.113.9/32 dev lo; ip addr add 2001:db8::10/64 dev lo nodad")
	s.bind(shops)
	s.must("install -d -m 2750 -g socketbox /run/socketbox/shop /run/socketbox/blog")
	inetd(t, s.namespace, "/run/socketbox/shop", "--port", "80", "--", "echo", "welcome")
	return s
}

// explainJSON returns what `socketbox explain --json` says.
func (s *stage) explainJSON(args string) *binder.Explanation {
	s.t.Helper()
	e := &binder.Explanation{}
	out := s.sh("socketbox explain --json " + args)
	mustFit(s.t, "explain", out)
	if err := json.Unmarshal([]byte(out), e); err != nil {
		s.t.Fatalf("explain %s: %v\n%s", args, err, out)
	}
	return e
}

// What explain says of a connection is what becomes of it.
func TestExplainIsTrue(t *testing.T) {
	s := shopsOpen(t)
	for _, c := range []struct {
		args, verdict, listener string
		rule, tried             int
	}{
		{"--from 203.0.113.9 --to 192.0.2.10:80", "delivered", "web", 1, 1},
		{"--from 2001:db8::10 --to [2001:db8::10]:80", "delivered", "web", 1, 1},
		{"--from 203.0.113.9 --to 192.0.2.11:80", "held", "web", 2, 2},
		{"--from 203.0.113.9 --to 203.0.113.9:80", "rejected", "web", 4, 4},
		{"--from 127.0.0.1 --to 127.0.0.1:8080", "held", "admin", 3, 3},
		{"--from 127.0.0.1 --to 127.0.0.1:81", "refused", "", 0, 0},
	} {
		e := s.explainJSON(c.args)
		listener := ""
		if e.Listener != nil {
			listener = e.Listener.Name
		}
		if e.Verdict != c.verdict || listener != c.listener || e.Rule != c.rule || len(e.Rules) != c.tried || !e.Running {
			t.Errorf("explain %s: %s by rule %d of %d at %q, expected %+v", c.args, e.Verdict, e.Rule, len(e.Rules), listener, c)
		}
	}
	for to, says := range map[string]string{"192.0.2.10": "welcome", "203.0.113.9": "reset", "192.0.2.11": "timed out"} {
		out := s.sh("timeout 1 busybox nc -w 1 " + to + " 80 </dev/null 2>&1 || true")
		if says == "welcome" && !strings.Contains(out, says) {
			t.Errorf("a client of %s gets %q", to, out)
		}
	}
	st := s.status()
	if st.Rules[1].Accepted != 1 || st.Rules[2].Accepted != 1 || st.Rules[4].Rejected != 1 {
		t.Errorf("the rules' counts: %+v", st.Rules)
	}
}

// A file is explained without any instance, and a wrong question is refused.
func TestExplainFile(t *testing.T) {
	dir := socketDir(t)
	config := putConfig(t, dir, "[[listener]]\naddress = \"127.0.0.1:80\"\n[[rule]]\nport = 81\ntarget = \"reject\"\n[[rule]]\nremote = [\"192.0.2.0/24\"]\ntarget = \"DIR/{remote}.sock\"\n")
	explain := func(args ...string) []string {
		return append([]string{"explain", "--config", config, "--dir", dir}, args...)
	}
	expect(t, socketbox(t, here(), 0, explain("--from", "192.0.2.7:1", "--to", "127.0.0.1:80")...), 0,
		"rule 1 (socketbox.toml:3)", "no: port is 80, not 81", "rule 2 (socketbox.toml:6)", "yes: remote 192.0.2.0/24", "it is reset: the socket directory does not exist")
	expect(t, socketbox(t, here(), 0, explain("--from", "198.51.100.7", "--to", "127.0.0.1:80")...), 0,
		"no: remote is 198.51.100.7, not 192.0.2.0/24", "no rule", "main socket directory")
	expect(t, socketbox(t, here(), 0, explain("--to", "127.0.0.1:82")...), 0, "no listener takes 127.0.0.1:82")
	expect(t, socketbox(t, here(), 0, explain("--to", "127.0.0.1")...), 2, `--to "127.0.0.1"`)
	expect(t, socketbox(t, here(), 0, explain("--from", "2001:db8::1", "--to", "127.0.0.1:80")...), 2, "different families")
	expect(t, socketbox(t, here(), 0, explain("--listener", "nosuch", "--to", "127.0.0.1:80")...), 1, `no listener is named "nosuch"`)
	expect(t, socketbox(t, here(), 0, "explain", "--dir", filepath.Join(dir, "none"), "--to", "127.0.0.1:80"), 1, "hint:")
}

// The captures of the operations page, as they are printed.
func TestExplainCaptures(t *testing.T) {
	s := shopsOpen(t)
	s.sh("timeout 1 busybox nc -w 1 192.0.2.10 80 </dev/null")
	s.sh("timeout 1 busybox nc -w 1 203.0.113.9 80 </dev/null")
	s.sh("timeout 1 busybox nc -w 1 192.0.2.11 80 </dev/null")
	s.capture("operations.md", "status", "socketbox status")
	s.capture("operations.md", "explain",
		"socketbox explain --from 203.0.113.9 --to 192.0.2.10:80", "socketbox explain --from 203.0.113.9 --to 192.0.2.11:80")
}

// status returns what `socketbox status --json` says on the stage.
func (s *stage) status() *binder.Status {
	s.t.Helper()
	st := &binder.Status{}
	out := s.sh("socketbox status --json")
	mustFit(s.t, "status", out)
	if err := json.Unmarshal([]byte(out), st); err != nil {
		s.t.Fatalf("status: %v\n%s", err, out)
	}
	return st
}
