package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// activated is a daemon that knows socket activation: it serves what it was
// passed, and says what that was.
const activated = `
import http.server, os, socket, sys
first = int(sys.argv[1])
print("fds", os.environ.get("LISTEN_FDS"), "pid", os.environ.get("LISTEN_PID") == str(os.getpid()),
      "names", os.environ.get("LISTEN_FDNAMES"), "list", os.environ.get("MINE"), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host, port = self.client_address[:2]
        host = host.removeprefix("::ffff:")
        self.send_response(200)
        self.end_headers()
        self.wfile.write((f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode())
    def log_message(self, *args): pass
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6
s = Server(("::", 0), Handler, bind_and_activate=False)
s.socket.close()
s.socket = socket.socket(fileno=first)
s.serve_forever()
`

func TestLaunchListenFDs(t *testing.T) {
	for _, c := range []struct {
		name  string
		args  []string
		first string
		say   string
	}{
		{"systemd's", nil, "3", "fds 1 pid True names 80 list None"},
		{"numbers of one's own", []string{"--fd", "7", "--fd-env", "MINE"}, "7", "fds None pid False names None list 7;"},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachUser(t, func(t *testing.T, as []string) {
				port, dir := freePort(t), publicDir(t)
				lend(t, dir, port, listening(t, unix.SOCK_STREAM, port), handoff.Lent)
				args := append([]string{"-n", "--via", "listen-fds", "--ports", fmt.Sprintf("80=%d", port)}, c.args...)
				p := launch(t, as, dir, append(args, "--", "/usr/bin/python3", "-c", activated, c.first)...)
				p.waitLog(c.say)
				answers(t, p, port, true)
			})
		})
	}
}

// TestLaunchNginxInherits: nginx takes listening sockets by its own variable.
func TestLaunchNginxInherits(t *testing.T) {
	needProgram(t, "nginx")
	port, dir := freePort(t), publicDir(t)
	lend(t, dir, port, listening(t, unix.SOCK_STREAM, port), handoff.Lent)
	file := nginxConf(t, asRoot, port)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	conf := strings.Replace(string(text), fmt.Sprintf("listen %d;", port), "", 1)
	conf = strings.Replace(conf, fmt.Sprintf("listen [::]:%d;", port), fmt.Sprintf("listen [::]:%d ipv6only=off;", port), 1)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p := launch(t, asRoot, dir, "-n", "--via", "listen-fds", "--ports", fmt.Sprint(port), "--fd-env", "NGINX", "--", "nginx", "-e", "stderr", "-c", file)
	for range 4 { // by both workers
		for _, host := range loopbacks {
			eventually(t, 15*time.Second, func() error { _, _, err := fetch(host, port); return err })
		}
	}
	if !strings.Contains(p.log.String(), "using inherited sockets") {
		t.Errorf("nginx has not inherited:\n%s", p.log)
	}
}

func TestLaunchListenFDsRefused(t *testing.T) {
	dir := publicDir(t)
	port := freePort(t)
	_, log, status := output(t, asRoot, "--dir", dir, "--wait", "50ms", "--via", "listen-fds", "--ports", fmt.Sprint(port), "--", "true")
	if status != 125 || !strings.Contains(log, fmt.Sprintf("%d.listener: no such file", port)) {
		t.Errorf("nobody lends: status %d\n%s", status, log)
	}
	lend(t, dir, port, -1, handoff.TakeConnections)
	_, log, status = output(t, asRoot, "--dir", dir, "--via", "listen-fds", "--ports", fmt.Sprint(port), "--", "true")
	if status != 125 || !strings.Contains(log, `hint: `) || !strings.Contains(log, "the test says so") {
		t.Errorf("connections are handed off: status %d\n%s", status, log)
	}
	_, log, status = output(t, asRoot, "--via", "listen-fds", "--", "true")
	if status != 125 || !strings.Contains(log, "name them: --ports") {
		t.Errorf("no port: status %d\n%s", status, log)
	}
}

// TestLaunchIsolates: what the flags say reaches the daemon. What it takes is
// tested where it is made.
func TestLaunchIsolates(t *testing.T) {
	const try = `
import errno, socket
def say(what, f):
    try: f(); print(what, "yes", flush=True)
    except OSError as e: print(what, errno.errorcode[e.errno], flush=True)
def listener():
    s = socket.socket(); s.bind(("127.0.0.1", 7070)); s.listen(); return s
kept = []
say("bind", lambda: kept.append(listener()))
say("connect", lambda: socket.create_connection(("127.0.0.1", 7070)))
say("fastopen", lambda: socket.socket().sendto(b"x", 0x20000000, ("127.0.0.1", 7070)))
print(open("/proc/self/status").read().split("NoNewPrivs:")[1].split()[0], flush=True)
`
	script := filepath.Join(publicDir(t), "try.py")
	if err := os.WriteFile(script, []byte(try), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"by itself", "bind yes\nconnect EACCES\nfastopen ENOTSUP\n1\n", []string{"-n"}},
		{"allowed", "bind yes\nconnect yes\nfastopen ENOTSUP\n1\n", []string{"-n", "--allow-connect", "7070"}},
		{"strict", "bind EACCES\nconnect EACCES\nfastopen ENOTSUP\n1\n", []string{"-n", "--isolate", "strict"}},
		{"strict and allowed", "bind yes\nconnect EACCES\nfastopen ENOTSUP\n1\n", []string{"-n", "--isolate", "strict", "--allow-bind", "7070"}},
		{"off", "bind yes\nconnect yes\n", []string{"-n", "--isolate", "off"}},
	} {
		eachUser(t, func(t *testing.T, as []string) {
			args := append([]string{"--dir", publicDir(t), "--ports", "1"}, c.args...)
			out, log, status := output(t, as, append(args, "--", "/usr/bin/python3", script)...)
			if status != 0 || !strings.HasPrefix(out, c.want) {
				t.Errorf("%s: status %d\n%s%s", c.name, status, out, log)
			}
		})
	}
}
