package netns

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// A directory that dir create makes serves a daemon of that user, and nobody
// else sees into it; podman's users are those of /etc/subuid.
func TestDirCreate(t *testing.T) {
	const tenant, stranger = 12345, 12346
	s := newStage(t)
	s.must("useradd --uid 12345 --user-group --no-create-home shop; useradd --uid 12346 --no-create-home stranger; printf 'shop:300000:65536\\n' > /etc/subuid")
	s.bind("[[listener]]\naddress = \":80\"\n[[rule]]\ntarget = \"/run/socketbox/shop/\"\n")
	s.capture("operations.md", "dircreate",
		"socketbox dir create shop --owner shop", "socketbox dir create shop/web --owner podman:shop:33",
		"socketbox dir create shop --owner shop", "socketbox dir create shop/web --owner podman:shop:33 --tmpfiles")
	if out := s.must("stat -c %u /run/socketbox/shop/web"); out != "300032\n" {
		t.Errorf("uid 33 of a container of shop is %s", out)
	}
	program := publicCopy(t, filepath.Join(programs, "socketbox-inetd"))
	start(t, s.command(asUser(tenant, program, "--dir", "/run/socketbox/shop", "--port", "80", "--", "echo", "welcome")...)).waitLog("receiving")
	if out := s.sh("timeout 2 busybox nc -w 1 127.0.0.1 80 </dev/null"); out != "welcome\n" {
		t.Errorf("a client gets %q\n%s", out, s.sh("socketbox status"))
	}
	if out := s.sh(strings.Join(asUser(stranger, "ls", "/run/socketbox/shop"), " ")); !strings.Contains(out, "Permission denied") {
		t.Errorf("a stranger sees %s", out)
	}
	for args, says := range map[string]string{
		"shop --owner podman:shop:70000": "65536 ids",
		"shop":                           "--owner is missing",
		"../shop --owner shop":           "begins with a dot",
		"shop --owner nosuch":            "no such user",
	} {
		if out := s.sh("socketbox dir create " + args); !strings.Contains(out, says) {
			t.Errorf("dir create %s says %q, not %q", args, out, says)
		}
	}
	if out := s.sh(fmt.Sprintf("socketbox dir create shop --owner %d", stranger)); !strings.Contains(out, "mended: owner 12346") {
		t.Errorf("another owner: %s", out)
	}
}
