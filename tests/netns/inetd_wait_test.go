package netns

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
)

// waitService starts socketbox-inetd --wait in an empty namespace.
func waitService(t *testing.T, dir string, port int, args ...string) *process {
	t.Helper()
	all := append([]string{filepath.Join(programs, "socketbox-inetd"), "--dir", dir, "--port", fmt.Sprint(port), "--wait"}, args...)
	return start(t, exec.Command("unshare", append([]string{"-n", "--"}, all...)...))
}

// acceptor serves what comes to the listening socket that it was started with,
// and ends when nobody has come for a moment.
const acceptor = `
import socketserver, socket, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"python %s:%d\n" % (self.client_address[0].encode(), self.client_address[1]))
class Server(socketserver.ThreadingTCPServer):
    timeout = 0.3
    idle = False
    def handle_timeout(self): self.idle = True
s = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
s.socket = socket.socket(fileno=0)
while not s.idle:
    s.handle_request()
`

// A wait service accepts on the listening socket itself, and ends when nobody has
// come for a while. The next client starts it again.
func TestInetdWait(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf("[[listener]]\naddress = \"127.0.0.1:%d\"\n", port))
	p := waitService(t, b.dir, port, "--", "/usr/bin/python3", "-c", acceptor)
	p.waitLog("waiting for clients")
	for n := range 3 {
		if v := (client{to: at(port)}).visit(); v.outcome != served || v.receiver != "python" {
			t.Fatalf("%s by %q: %v\n%s", v.outcome, v.receiver, v.err, p.log)
		}
		eventually(t, 5*time.Second, func() error {
			if ended := strings.Count(p.log.String(), "info: ended"); ended != n+1 {
				return fmt.Errorf("%d programs have ended", ended)
			}
			return nil
		})
	}
	b.is(0, binder.Lent)
	p.signal(unix.SIGTERM)
	if status := p.wait(10 * time.Second); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// echo answers datagrams until none comes for a moment.
const echo = `
import socket, sys
s = socket.socket(fileno=0)
s.settimeout(0.3)
n = 0
try:
    while True:
        data, who = s.recvfrom(100)
        n += 1
        s.sendto(b"%s %d" % (str(who[1]).encode(), n), who)
except TimeoutError:
    pass
`

// A datagram service, under the guard: it answers whoever has written to it.
func TestInetdWaitUDP(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf("guard = \"required\"\n[[listener]]\naddress = \"udp:127.0.0.1:%d\"\n", port))
	p := waitService(t, b.dir, port, "--stderr", "inherit", "--", "/usr/bin/python3", "-c", echo)
	p.waitLog("waiting for clients")
	for range 2 {
		c, err := net.Dial("udp", at(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, own, _ := net.SplitHostPort(c.LocalAddr().String())
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "x")
		answer := make([]byte, 100)
		n, err := c.Read(answer)
		if got := string(answer[:n]); err != nil || got != own+" 1" {
			t.Errorf("%q, %v; want %q\n%s", got, err, own+" 1", p.log)
		}
		eventually(t, 5*time.Second, func() error {
			if starts, ends := strings.Count(p.log.String(), "info: started"), strings.Count(p.log.String(), "info: ended"); ends != starts {
				return fmt.Errorf("%d starts, %d ends", starts, ends)
			}
			return nil
		})
	}
}

// A program that never accepts is not started a thousand times a second; TERM
// ends one that does not want to.
func TestInetdWaitMisused(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf("[[listener]]\naddress = \"127.0.0.1:%d\"\n", port))
	p := waitService(t, b.dir, port, "--", "/bin/true")
	p.waitLog("waiting for clients")
	begin(1, to(at(port)))
	time.Sleep(1500 * time.Millisecond)
	if n := strings.Count(p.log.String(), "info: started"); n < 2 || n > 8 {
		t.Errorf("%d starts in a second and a half:\n%s", n, p.log)
	}
	p.signal(unix.SIGTERM)
	p.wait(10 * time.Second)

	stubborn := waitService(t, b.dir, port, "--kill-after", "200ms", "--", "sh", "-c", "trap '' TERM; echo here >&2; while :; do sleep 0.1; done")
	stubborn.waitLog("here")
	stubborn.signal(unix.SIGTERM)
	stubborn.wait(10 * time.Second)

	for args, says := range map[string]string{
		"--wait":                  "whose socket?",
		"--wait --port 1 --max 5": "--max is about single connections",
	} {
		cmd := exec.Command(filepath.Join(programs, "socketbox-inetd"), append(strings.Fields(args), "--", "/bin/true")...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), says) {
			t.Errorf("%s: %v, %s", args, err, out)
		}
	}
	handed := bindConfig(t, listeners(freePort(t)))
	_, other, _ := strings.Cut(handed.status().Listeners[0].Address, ":")
	cmd := exec.Command(filepath.Join(programs, "socketbox-inetd"), "--dir", handed.dir, "--port", other, "--wait", "--", "/bin/true")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "it must be lent") {
		t.Errorf("of a listener that is handed off: %v, %s", err, out)
	}
}
