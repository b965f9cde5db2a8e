//go:build docker

package docker

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bare makes an image of static programs and nothing else: socketbox's own, a
// web server, and one that tries to get out.
func (e *engine) bare(name string) {
	e.t.Helper()
	root := filepath.Join(temporary(e.t), "root")
	if err := os.MkdirAll(filepath.Join(root, "tmp"), 0o755); err != nil {
		e.t.Fatal(err)
	}
	for _, program := range []string{"socketbox-launch", "socketbox-inetd"} {
		if out, err := exec.Command("cp", filepath.Join(*bin, program), root).CombinedOutput(); err != nil {
			e.t.Fatalf("%v: %s", err, out)
		}
	}
	for _, program := range []string{"web", "escape"} {
		build := exec.Command("go", "build", "-o", filepath.Join(root, program), "../netns/testdata/"+program)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			e.t.Fatalf("%v: %s", err, out)
		}
	}
	tar := filepath.Join(filepath.Dir(root), "root.tar")
	if out, err := exec.Command("tar", "-C", root, "-cf", tar, ".").CombinedOutput(); err != nil {
		e.t.Fatalf("%v: %s", err, out)
	}
	e.must("import", "--change", `CMD ["/socketbox-launch", "--", "/web", ":80"]`, tar, name)
}

// shop is the directory that the containers get: the binder lends there.
const shop = "/run/socketbox/shop"

// bindLending starts `socketbox bind` with a listener that is lent and one that
// is handed off.
func bindLending(t *testing.T, guard string) *process {
	t.Helper()
	config := filepath.Join(temporary(t), "socketbox.toml")
	text := fmt.Sprintf("guard = %q\nuser = \"nobody\"\n[[listener]]\naddress = \":80\"\nlend = %q\n"+
		"[[listener]]\naddress = \":81\"\n[[rule]]\nport = 81\ntarget = %q\n", guard, shop, shop+"/81.sock")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := start(t, exec.Command(filepath.Join(*bin, "socketbox"), "bind", "--config", config))
	p.says(t, "serving")
	info, err := os.Stat("/run/socketbox")
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid)
	if out, err := exec.Command("install", "-d", "-o", "root", "-g", group, "-m", "3770", shop).CombinedOutput(); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	return p
}

// A static program in a container without a network, under Docker's own seccomp
// profile and without any flag about rights: it borrows the listener, and no
// client is lost while the container restarts.
func TestDockerStatic(t *testing.T) {
	e := startEngine(t)
	e.bare("static")
	bindLending(t, "auto")
	e.must("run", "-d", "--name", "web", "--network", "none", "-v", shop+":/run/socketbox", "static")
	waitFor(t, 30*time.Second, func() error {
		_, _, err := get("", "127.0.0.1:80")
		return err
	})
	for from, to := range map[string]string{client4: server4 + ":80", client6: "[" + server6 + "]:80"} {
		body, truth, err := get(from, to)
		if client, _, _ := strings.Cut(truth, " "); err != nil || !strings.Contains(body, client) {
			t.Errorf("client %s: %q, %v; want %s", from, body, err, client)
		}
	}
	c := begin(8, 20_000, 2*time.Millisecond, "127.0.0.1:80", "[::1]:80")
	for range 2 {
		time.Sleep(500 * time.Millisecond)
		e.must("restart", "-t", "1", "web")
	}
	time.Sleep(time.Second)
	c.end()
	t.Log(c)
	// What the server had accepted and not answered when it was ended is its
	// own to lose: it knows no graceful end.
	if lost := c.lost.Load(); lost > 8 {
		t.Errorf("%d requests were lost", lost)
	}
	t.Log(e.must("logs", "web"))
}

// A daemon in hostile hands, root in its container, tries to reach a service of
// the host's loopback by the connection that it was handed; without the guard,
// so that the test is seen to fail, and with it.
func TestDockerEscape(t *testing.T) {
	e := startEngine(t)
	e.bare("static")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("host only\n"))
			c.Close()
		}
	}()
	for guard, want := range map[string]string{"off": "open", "required": "operation not permitted"} {
		t.Run("guard "+guard, func(t *testing.T) {
			p := bindLending(t, guard)
			report := filepath.Join(shop, "report")
			if err := os.WriteFile(report, nil, 0o666); err != nil {
				t.Fatal(err)
			}
			e.must("run", "-d", "--name", "web", "--network", "none", "-v", shop+":/run/socketbox", "static",
				"/socketbox-inetd", "--port", "81", "--", "/escape", "-kind", "connection", "-tcp", l.Addr().String(), "-udp", l.Addr().String(),
				"-port", "8181", "-report", "/run/socketbox/report")
			defer e.try("rm", "-f", "web")
			conn, err := net.Dial("tcp", "127.0.0.1:81")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var text []byte
			waitFor(t, 30*time.Second, func() error {
				if text, err = os.ReadFile(report); err == nil && !strings.HasSuffix(string(text), "\nend\n") {
					err = fmt.Errorf("escape has not ended:\n%s\n%s", text, e.try("logs", "web"))
				}
				return err
			})
			for _, way := range []string{"connect", "sendto fastopen", "sendmsg fastopen", "connect fastopen"} {
				if !strings.Contains("\n"+string(text), "\n"+way+"\t"+want+"\n") {
					t.Errorf("%s is not %q:\n%s", way, want, text)
				}
			}
			p.cmd.Process.Signal(syscall.SIGTERM)
			<-p.done
		})
	}
}
