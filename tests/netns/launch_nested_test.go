package netns

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"socketbox/internal/binder"
)

// Linux lets one supervisor listen to a process's notifications: a second one
// below it is told why, and what to do instead.
func TestLaunchBelowAnother(t *testing.T) {
	eachUser(t, func(t *testing.T, as []string) {
		port := freePort(t)
		b := bindAs(t, as, port)
		again := []string{filepath.Join(programs, "socketbox-launch"), "--dir", b.dir, "--via", "notify", "--", web(t), fmt.Sprint(":", port)}
		out, err := launched(as, b.dir, append([]string{"-n", "--via", "notify", "--"}, again...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "device or resource busy") || !strings.Contains(string(out), "hint:") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// Inside of bubblewrap, in its namespaces, and with bubblewrap inside; with
// no_new_privs as a service manager may have it.
func TestLaunchBubblewrap(t *testing.T) {
	needProgram(t, "bwrap")
	inside := []string{"bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"}
	for name, c := range map[string]struct{ before, flags, after []string }{
		"inside":       {before: append(append([]string{}, inside...), "--unshare-net", "--")},
		"outside":      {flags: []string{"-n"}, after: append(append([]string{}, inside...), "--unshare-user", "--")}, // root has no CAP_SYS_ADMIN there
		"no new privs": {before: []string{"setpriv", "--no-new-privs", "--"}, flags: []string{"-n"}},
	} {
		for via, daemon := range map[string][]string{
			"preload": {"/usr/bin/python3", "-m", "http.server", "--bind", "::", "--directory", publicDir(t)},
			"notify":  {web(t)},
		} {
			t.Run(name+", "+via, func(t *testing.T) {
				eachUser(t, func(t *testing.T, as []string) {
					port := freePort(t)
					b := bindAs(t, as, port)
					where := fmt.Sprint(port)
					if via == "notify" {
						where = ":" + where
					}
					all := append(append(append([]string{}, as...), c.before...), filepath.Join(programs, "socketbox-launch"), "--dir", b.dir, "--via", via)
					all = append(append(append(append(append(all, c.flags...), "--"), c.after...), daemon...), where)
					p := start(t, exec.Command(all[0], all[1:]...))
					answers(t, p, port, false)
					// Root in a user namespace of bubblewrap's own may not reach the loan, and receives connections.
					if name != "outside" {
						b.is(0, binder.Lent)
					}
				})
			})
		}
	}
}
