package netns

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"socketbox/internal/doctor"
)

// healthy is what the doctor finds nothing wrong with, once it runs and its
// receiver does.
const healthy = "[[listener]]\naddress = \":80\"\n[[rule]]\ntarget = \"/run/socketbox/shop/\"\n"

// examine returns what the doctor finds on the stage.
func (s *stage) examine(args string) *doctor.Report {
	s.t.Helper()
	out := s.sh("socketbox doctor --json " + args + " 2>/dev/null")
	mustFit(s.t, "doctor", out)
	r := &doctor.Report{}
	if err := json.Unmarshal([]byte(out), r); err != nil {
		s.t.Fatalf("doctor: %v\n%s", err, out)
	}
	return r
}

// mustFind fails the test unless the doctor finds this, and nothing else that
// is a problem or a warning.
func mustFind(t *testing.T, r *doctor.Report, level doctor.Level, check, text string) {
	t.Helper()
	found := false
	for _, f := range faults(r, text) {
		if f.Level == level && f.Check == check && strings.Contains(f.Text, text) && f.Cure != "" {
			found = true
		} else {
			t.Errorf("besides %s it finds %s: %s: %s", text, f.Level, f.Check, f.Text)
		}
	}
	if !found {
		t.Errorf("no %s of %s that says %q with its cure", level, check, text)
	}
}

// faults are the problems and warnings, but for what this machine lacks
// itself: descriptors, and what other instances on it have left.
func faults(r *doctor.Report, planted string) (all []doctor.Finding) {
	for _, f := range r.Findings {
		if f.Check == "limits" || f.Check == "leftovers" && strings.HasPrefix(f.Text, "control group") && !strings.Contains(f.Text, planted) {
			continue
		}
		if f.Level == doctor.Problem || f.Level == doctor.Warning {
			all = append(all, f)
		}
	}
	return all
}

// deadAt makes a socket file at path that nobody is behind.
func deadAt(path, kind string) string {
	return fmt.Sprintf("python3 -c \"import socket; socket.socket(socket.AF_UNIX, socket.%s).bind('%s')\"", kind, path)
}

// Faults are planted one at a time: each is found, with its cure and nothing
// else beside it.
func TestDoctorFindsFaults(t *testing.T) {
	s := newStage(t)
	s.must("sysctl -qw net.unix.max_dgram_qlen=512")
	b := s.bind(healthy)
	s.must("socketbox dir create shop --owner root")
	inetd(t, s.namespace, "/run/socketbox/shop", "--port", "80", "--", "true")
	const config = "/etc/socketbox/socketbox.toml"
	restore := fmt.Sprintf("printf '%s' > %s", strings.ReplaceAll(healthy, "\n", `\n`), config)
	if found := faults(s.examine(""), "none"); len(found) > 0 {
		t.Fatalf("before anything is planted: %+v", found)
	}
	group := groupOfDead(t)
	for _, f := range []struct {
		plant, undo string
		level       doctor.Level
		check, text string
	}{
		{"chmod 0700 /run/socketbox/shop", "chmod 2750 /run/socketbox/shop", doctor.Problem, "directory", "directory /run/socketbox/shop (owner 0:"},
		{"mv /run/socketbox/shop /run/socketbox/.shop", "mv /run/socketbox/.shop /run/socketbox/shop", doctor.Problem, "directory", "no socket directory /run/socketbox/shop"},
		{"chmod 3777 /run/socketbox", "chmod 3771 /run/socketbox", doctor.Problem, "directory", "everybody may write to it"},
		{"chown 0:0 /run/socketbox", "chgrp socketbox /run/socketbox; chmod 3771 /run/socketbox", doctor.Problem, "directory", "it should be 0:"},
		{deadAt("/run/socketbox/shop/81.sock", "SOCK_DGRAM"), "rm /run/socketbox/shop/81.sock", doctor.Warning, "receiver", "nobody receives on /run/socketbox/shop/81.sock"},
		{"chmod 0600 /run/socketbox/shop/80.sock", "chmod 0660 /run/socketbox/shop/80.sock", doctor.Problem, "receiver", "socket file /run/socketbox/shop/80.sock"},
		{"echo nonsense = 1 >> " + config, restore, doctor.Problem, "config", config + ":5:"},
		{"printf '[[listener]]\\naddress = \":81\"\\n' >> " + config, restore, doctor.Warning, "config", "is not in force: 0 rules and 0 targets differ, 1 listeners come"},
		{"chmod 0600 " + config, "chmod 0644 " + config, doctor.Warning, "config", "the binder can't read"},
		{"sysctl -qw net.core.somaxconn=16", "sysctl -qw net.core.somaxconn=4096", doctor.Warning, "sysctl", "net.core.somaxconn is 16"},
		{"sysctl -qw net.unix.max_dgram_qlen=1", "sysctl -qw net.unix.max_dgram_qlen=512", doctor.Warning, "sysctl", "net.unix.max_dgram_qlen is 1"},
		{deadAt("/run/socketbox.control.99999", "SOCK_SEQPACKET"), "socketbox doctor --fix >/dev/null; test ! -e /run/socketbox.control.99999", doctor.Warning, "leftovers", "belongs to an instance that has died"},
		{"cp /etc/passwd /etc/passwd.all; sed -i /^socketbox:/d /etc/passwd", "mv /etc/passwd.all /etc/passwd", doctor.Warning, "user", "no user socketbox"},
		{"mkdir " + group, "socketbox doctor --fix >/dev/null; test ! -e " + group, doctor.Warning, "leftovers", group + " belongs to an instance that has died"},
		{"mount -t proc -o hidepid=2 proc /proc", "umount /proc", doctor.Problem, "proc", "hidepid"},
	} {
		s.must(f.plant)
		r := s.examine("")
		if !t.Run(f.text, func(t *testing.T) { mustFind(t, r, f.level, f.check, f.text) }) {
			t.Logf("planted by %s", f.plant)
		}
		s.must(f.undo)
	}
	if found := faults(s.examine(""), "none"); len(found) > 0 {
		t.Errorf("after everything is mended: %+v", found)
	}
	s.dyingDispatcher(b)
}

// groupOfDead is where a binder that has died would have had its guard.
func groupOfDead(t *testing.T) string {
	t.Helper()
	dir := strings.TrimSpace(mustRun(t, "findmnt", "-nt", "cgroup2", "-o", "TARGET", "--first-only"))
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(dir, fmt.Sprintf("socketbox-%d", cmd.Process.Pid))
	t.Cleanup(func() { os.Remove(group) })
	return group
}

// dyingDispatcher plants what can't be undone.
func (s *stage) dyingDispatcher(b *process) {
	s.t.Helper()
	s.must(fmt.Sprintf("kill -9 %d", s.status().Dispatcher))
	b.waitLog("starting another")
	mustFind(s.t, s.examine(""), doctor.Warning, "instance", "1 dispatchers have died")
	s.must("socketbox doctor --fix >/dev/null; chmod 0700 /run/socketbox/shop")
	s.capture("operations.md", "doctor", "socketbox doctor 2>&1 | sed -n '/ config /,/^$/p'")
}

// Before an instance runs, a port that is taken and a namespace that is not
// there are found.
func TestDoctorBeforeStart(t *testing.T) {
	s := newStage(t)
	s.must("mkdir /run/socketbox; chgrp socketbox /run/socketbox; chmod 3771 /run/socketbox")
	s.write("/etc/socketbox/socketbox.toml", "[[listener]]\naddress = \":80\"\n[[listener]]\naddress = \"127.0.0.1:81\"\nnetns = \"edge\"\n")
	start(t, s.command("busybox", "httpd", "-f", "-p", "127.0.0.1:80"))
	eventuallyFind := func(check, text string) {
		t.Helper()
		var r *doctor.Report
		eventually(t, 5*time.Second, func() error {
			r = s.examine("")
			for _, f := range r.Findings {
				if f.Level == doctor.Problem && f.Check == check && strings.Contains(f.Text, text) && f.Cure != "" {
					return nil
				}
			}
			return fmt.Errorf("no %s: %s in %+v", check, text, r.Findings)
		})
	}
	eventuallyFind("port", "listener :80: another program (uid 0) listens on 127.0.0.1:80")
	eventuallyFind("config", "no network namespace edge")
	if out, status := outcome(t, s.command("socketbox", "doctor")); status != 1 || !strings.Contains(out, "cure: ip netns add edge") {
		t.Errorf("exit %d:\n%s", status, out)
	}
}
