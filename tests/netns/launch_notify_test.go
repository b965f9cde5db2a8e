package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/handoff"
)

var webDirectory string // of webProgram; TestMain removes it

var webProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sbxt-web-")
	if err != nil {
		return "", err
	}
	webDirectory = dir
	os.Chmod(dir, 0o755)
	program := filepath.Join(dir, "web")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/web")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return program, err
})

// web returns a static Go program that serves HTTP on its arguments.
func web(t *testing.T) string {
	t.Helper()
	program, err := webProgram()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// static compiles testdata/static.c against musl, without any shared library.
func static(t *testing.T) string {
	t.Helper()
	program := filepath.Join(publicDir(t), "static")
	mustRun(t, needProgram(t, "musl-gcc"), "-static", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, "testdata/static.c")
	return program
}

// lend lends fd at DIR/PORT.listener to whoever asks, with that verdict.
func lend(t *testing.T, dir string, port, fd int, verdict handoff.Verdict) {
	t.Helper()
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	path := filepath.Join(dir, fmt.Sprintf("%d.listener", port))
	if err == nil {
		err = errors.Join(unix.Bind(l, &unix.SockaddrUnix{Name: path}), unix.Listen(l, 8), os.Chmod(path, 0o666))
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { unix.Shutdown(l, unix.SHUT_RDWR); <-done; unix.Close(l) })
	go func() {
		defer close(done)
		for {
			conn, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			unix.Poll([]unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}}, 5000)
			if _, own, err := handoff.RecvLoanRequest(conn); err == nil {
				handoff.SendLoanAnswer(conn, handoff.LoanAnswer{Verdict: verdict, Reason: "the test says so"}, fd)
				handoff.CloseShown(own)
			}
			unix.Close(conn)
		}
	}()
}

// listening returns a socket of both families, listening or of UDP.
func listening(t *testing.T, kind, port int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0), unix.Bind(fd, &unix.SockaddrInet6{Port: port}))
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestLaunchNotify(t *testing.T) {
	program := static(t)
	for _, how := range []string{"plain", "copied", "watched", "flagged", "forked", "automatic"} {
		t.Run(how, func(t *testing.T) {
			eachUser(t, func(t *testing.T, as []string) {
				port, dir := freePort(t), publicDir(t)
				lend(t, dir, port, listening(t, unix.SOCK_STREAM, port), handoff.Lent)
				args := []string{"-n", "--", program, how, fmt.Sprint(port)}
				if how == "automatic" { // it connects to its own namespace
					args = append([]string{"--isolate", "off"}, args...)
				}
				p := launch(t, as, dir, args...)
				p.waitLog("ready")
				answers(t, p, port, true)
				answers(t, p, port, true)
			})
		})
	}
}

// A static program of Go, with no flag but -n.
func TestLaunchStaticGo(t *testing.T) {
	eachUser(t, func(t *testing.T, as []string) {
		port := freePort(t)
		b := bindAs(t, as, port)
		p := launch(t, as, b.dir, "-n", "--", web(t), fmt.Sprint(":", port), "127.0.0.1:0")
		p.waitLog("ready 127.0.0.1:")
		answers(t, p, port, true)
		b.is(0, binder.Lent)
		if strings.Contains(p.log.String(), "no_new_privs") {
			t.Errorf("no_new_privs is on, and is not needed:\n%s", p.log)
		}
	})
}

// TestLaunchNotifyRefused: what a static daemon and the administrator are told
// when the listener can't be had.
func TestLaunchNotifyRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		verdict int // -1: nobody lends
		args    []string
		say     []string
	}{
		{"connections", int(handoff.TakeConnections), nil, []string{"cannot assign requested address", `handoff = \"listener\"`, "the test says so"}},
		{"denied", int(handoff.Denied), nil, []string{"permission denied", "allow = "}},
		{"nobody, a port that was named", -1, []string{"--ports", "PORT"}, []string{"cannot assign requested address", "start `socketbox bind --listen :PORT"}},
		{"nobody", -1, nil, []string{"nobody lends the listener", "ready"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			port, dir := freePort(t), publicDir(t)
			if c.verdict >= 0 {
				lend(t, dir, port, -1, handoff.Verdict(c.verdict))
			}
			var args []string
			for _, a := range append(append([]string{"-n", "--wait", "200ms"}, c.args...), "--", web(t), ":PORT") {
				args = append(args, strings.ReplaceAll(a, "PORT", fmt.Sprint(port)))
			}
			p := launch(t, asRoot, dir, args...)
			for _, say := range c.say {
				p.waitLog(strings.ReplaceAll(say, "PORT", fmt.Sprint(port)))
			}
		})
	}
}

// TestLaunchNotifyWaits: the daemon may be started before somebody lends.
func TestLaunchNotifyWaits(t *testing.T) {
	port, dir := freePort(t), publicDir(t)
	p := launch(t, asRoot, dir, "-n", "--wait", "20s", "--", web(t), fmt.Sprintf(":%d", port))
	p.waitLog("started")
	lend(t, dir, port, listening(t, unix.SOCK_STREAM, port), handoff.Lent)
	answers(t, p, port, true)
}

// TestLaunchNotifyTwice: the kernel has one listener of notifications for a
// tree of processes.
func TestLaunchNotifyTwice(t *testing.T) {
	inner := filepath.Join(programs, "socketbox-launch")
	dir := publicDir(t)
	_, log, status := output(t, asRoot, "--dir", dir, "--via", "notify", "--", inner, "--dir", dir, "--via", "notify", "--", "true")
	if status != 125 || !strings.Contains(log, "another filter with notifications is already there") || !strings.Contains(log, "hint: ") {
		t.Errorf("status %d\n%s", status, log)
	}
}

// TestLaunchNoNewPrivs is under what systemd's NoNewPrivileges= does, and as
// one who has no rights over his own namespaces: the filter needs it.
func TestLaunchNoNewPrivs(t *testing.T) {
	for name, as := range map[string][]string{
		"already on":      {"setpriv", "--no-new-privs", "--"},
		"no capabilities": {"setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"},
	} {
		t.Run(name, func(t *testing.T) {
			port, dir := freePort(t), publicDir(t)
			lend(t, dir, port, listening(t, unix.SOCK_STREAM, port), handoff.Lent)
			p := launch(t, as, dir, "--via", "notify", "--", web(t), fmt.Sprintf(":%d", port))
			answers(t, p, port, true)
		})
	}
	needRoot(t)
	_, log, _ := output(t, asOrdinary, "--dir", publicDir(t), "--via", "notify", "--", "true")
	if !strings.Contains(log, "no_new_privs is on") {
		t.Errorf("it is not said:\n%s", log)
	}
}

// A static UDP server borrows its socket under the guard, and answers clients of
// both families with the addresses that they have.
func TestLaunchNotifyUDP(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf("guard = \"required\"\n[[listener]]\naddress = \"udp:[::]:%d\"\n", port))
	p := launch(t, asRoot, b.dir, "-n", "--via", "notify", "--", web(t), fmt.Sprintf("udp:[::]:%d", port))
	p.waitLog("ready")
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		answer := make([]byte, 100)
		_, err = fmt.Fprint(c, "who am I?")
		if err == nil {
			var n int
			n, err = c.Read(answer)
			answer = answer[:n]
		}
		want := strings.Replace(c.LocalAddr().String(), "127.0.0.1", "[::ffff:127.0.0.1]", 1)
		if got := string(answer); err != nil || got != want && got != c.LocalAddr().String() {
			t.Errorf("%s: %q, %v, expected %s", host, got, err, want)
		}
	}
	if s := b.status().Listeners[0]; s.State != binder.Lent || !s.Guarded {
		t.Errorf("%+v", s)
	}
}
