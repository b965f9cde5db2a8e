package netns

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
)

// reload --diff says what a reload would do, and does nothing without a yes.
func TestReloadDiff(t *testing.T) {
	keeps, goes, comes := freePort(t), freePort(t), freePort(t)
	rules := "[[rule]]\nport = 1\ntarget = \"reject\"\n[[rule]]\nport = 2\ntarget = \"DIR/a.sock\"\n"
	b := bindConfig(t, listeners(keeps, goes)+rules)
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--dir", b.dir, configOf(b)), 0, "nothing changes")
	next := strings.Replace(listeners(keeps, comes), "p", "q", 1)
	next = strings.Replace(next, `name = "p`, `name = "was`, 1)
	putConfig(t, b.dir, next+"[[rule]]\nport = 9\ntarget = \"t\"\n"+rules+"[target.t]\nsockets = \"DIR/t/\"\nhold = { time = \"1s\" }\n")
	out, status := outcome(t, socketbox(t, here(), 0, "reload", "--diff", "--json", "--dir", b.dir, configOf(b)))
	mustFit(t, "diff", out)
	d := &binder.Diff{}
	if err := json.Unmarshal([]byte(out), d); err != nil || status != 0 {
		t.Fatalf("exit %d, %v\n%s", status, err, out)
	}
	l := d.Listeners
	if len(l.Kept) != 1 || len(l.Added) != 1 || len(l.Dropped) != 1 || len(l.Renamed) != 1 || len(d.Restart) != 0 {
		t.Errorf("listeners: %+v", l)
	}
	if len(d.Rules) != 1 || d.Rules[0].Sign != "+" || d.Rules[0].Number != 1 || d.Rules[0].Text != "port 9 → t" {
		t.Errorf("rules: %+v", d.Rules)
	}
	if len(d.Targets) != 1 || d.Targets[0].Sign != "+" || !strings.Contains(d.Targets[0].Text, "/t/, hold 1024 connections, 1s") {
		t.Errorf("targets: %+v", d.Targets)
	}
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--dir", b.dir, configOf(b)), 0, "+ listener added", "nothing was changed")
	if s := b.status(); len(s.Rules) != 3 || s.Reloads.Succeeded != 0 {
		t.Errorf("it was put in force without a yes: %+v", s.Reloads)
	}
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--yes", "--dir", b.dir, configOf(b)), 0, "- listener dropped", "reloaded")
	if s := b.status(); len(s.Rules) != 4 || s.Reloads.Succeeded != 1 || s.Reloads.Failed != 0 {
		t.Errorf("%+v", s.Reloads)
	}
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--dir", b.dir, configOf(b)), 0, "nothing changes")
	limited := strings.Replace(next, "[[listener]]", "# a remark\n[[listener]]", 1)
	putConfig(t, b.dir, limited+"[[rule]]\nport = 9\ntarget = \"t\"\n"+rules+"[target.t]\nsockets = \"DIR/t/\"\nhold = { time = \"1s\" }\n")
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--dir", b.dir, configOf(b)), 0, "in comments or in keys that are not shown here")
	putConfig(t, b.dir, next+"[[rule]]\nport = 9\nmax_sessions = 7\ntarget = \"t\"\n"+rules+"[target.t]\nsockets = \"DIR/t/\"\nhold = { time = \"1s\" }\n")
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--dir", b.dir, configOf(b)), 0, "+ rule 1", "port 9 → t, at most 7 sessions, else wait")
	putConfig(t, b.dir, "guard = \"off\"\n"+listeners(keeps))
	expect(t, socketbox(t, here(), 0, "reload", "--diff", "--yes", "--dir", b.dir, configOf(b)), 1, `! needs a restart: guard changes from "auto" to "off"`, "needs a restart")
	if s := b.status(); s.Reloads.Failed != 1 || !strings.Contains(s.Reloads.Error, "guard") {
		t.Errorf("%+v", s.Reloads)
	}
}

// configOf is the file that bindConfig has written for b.
func configOf(b *box) string { return filepath.Join(filepath.Dir(b.dir), "socketbox.toml") }

// A terminal is asked, and only a yes counts.
func TestReloadDiffAsks(t *testing.T) {
	s := newStage(t)
	s.bind(shops)
	s.write("/etc/socketbox/socketbox.toml", strings.Replace(shops, `"127.0.0.1:8080"`, `"127.0.0.1:8081"`, 1)+"[[rule]]\nport = 1\ntarget = \"reject\"\n")
	ask := func(answer string) string {
		return s.sh("echo '" + answer + "' | script -qec 'socketbox reload --diff' /dev/null")
	}
	if out := ask("n"); !strings.Contains(out, "put this in force? [y/N]") || strings.Contains(out, "reloaded") {
		t.Errorf("after no: %s", out)
	}
	s.capture("operations.md", "diff", "socketbox reload --diff </dev/null")
	if out := ask("y"); !strings.Contains(out, "reloaded /etc/socketbox/socketbox.toml") {
		t.Errorf("after yes: %s", out)
	}
	if st := s.status(); len(st.Rules) != 6 {
		t.Errorf("%d rules", len(st.Rules))
	}
	// --watch shows it in place, again and again.
	out := s.sh("timeout 3 script -qec 'socketbox status --watch' /dev/null </dev/null")
	if n := strings.Count(out, "\x1b[Hbinder "); n < 2 || strings.Count(out, "\x1b[J") < 2 {
		t.Errorf("--watch has shown %d pages:\n%q", n, out)
	}
}

// The namespace of each listener is the real one, also of those that the
// binder can't look at.
func TestStatusNamespaces(t *testing.T) {
	needRoot(t)
	ns := ipNetns(t)
	b := bindConfig(t, listeners(freePort(t))+"[[listener]]\nname = \"there\"\naddress = \"127.0.0.1:80\"\nnetns = \""+ns.name+"\"\n")
	check := func(when string) {
		t.Helper()
		s := b.status()
		for i, path := range []string{"/proc/self/ns/net", "/run/netns/" + ns.name} {
			if want := inode(t, path); s.Listeners[i].Namespace != want {
				t.Errorf("%s: listener %s is in namespace %d, not %d", when, s.Listeners[i].Name, s.Listeners[i].Namespace, want)
			}
		}
	}
	check("at start")
	putConfig(t, b.dir, listeners(freePort(t))+"[[listener]]\nname = \"new\"\naddress = \"127.0.0.1:81\"\nnetns = \""+ns.name+"\"\n")
	expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, configOf(b)), 0, "reloaded")
	check("after a reload")
	for _, p := range b.status().Processes {
		if p.Problem != "" || p.Effective != "0" || p.Bounding != "0" || p.Seccomp != "filter" || !p.NoNewPrivs || p.UID == 0 || p.Threads == 0 {
			t.Errorf("%s: %+v", p.Role, p)
		}
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}
