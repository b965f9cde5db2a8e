package netns

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
)

// These tests are a daemon's attempts to get out of an empty network namespace
// by a socket that was passed to it (testdata/escape), against the guard in
// `socketbox bind`, against what socketbox-launch isolates, both, and neither.
//
//	host: services on loopback ── socketbox bind ──► namespace: escape
//	                         ◄─────── ? ────────────

// cure is what stands against the daemon.
type cure struct{ guard, isolate string }

var (
	noCure  = cure{"off", "off"}
	guarded = cure{"required", "off"}
)

func (c cure) String() string { return "guard " + c.guard + ", isolate " + c.isolate }

// hostOnly are services that only the tests' namespace reaches, on loopback
// addresses of both families, on the same ports. They say so.
type hostOnly struct{ tcp, udp int }

const secret = "host only\n"

func serveHostOnly(t *testing.T) hostOnly {
	t.Helper()
	h := hostOnly{freePort(t), freePort(t)}
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(h.tcp)))
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", net.JoinHostPort(host, strconv.Itoa(h.udp)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Write([]byte(secret))
				time.AfterFunc(time.Second, func() { conn.Close() }) // the client first, lest its port stay taken
			}
		}()
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				u.WriteTo([]byte(secret), from)
			}
		}()
	}
	return h
}

var escapeProgram = sync.OnceValues(func() (string, error) {
	program := filepath.Join(programs, "test-escape")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/escape")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return program, nil
})

// attempt is one run of escape.
type attempt struct {
	t      *testing.T
	host   string // loopback address of the family
	report string
	begin  string // file that lets it begin
	args   []string
}

func newAttempt(t *testing.T, h hostOnly, host, kind string, c cure) *attempt {
	t.Helper()
	program, err := escapeProgram()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(socketDir(t))
	a := &attempt{t: t, host: host, report: filepath.Join(dir, "report"), begin: filepath.Join(dir, "begin")}
	if err := os.WriteFile(a.report, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(a.report, 0o666) // whatever the umask: for other users
	a.args = []string{program, "-kind", kind, "-isolate", c.isolate, "-report", a.report, "-wait", a.begin,
		"-tcp", net.JoinHostPort(host, strconv.Itoa(h.tcp)), "-udp", net.JoinHostPort(host, strconv.Itoa(h.udp)), "-port", strconv.Itoa(freePort(t))}
	return a
}

// outcomes lets the daemon begin, comes where it listens, and returns what
// became of each attempt.
func (a *attempt) outcomes() map[string]string {
	a.t.Helper()
	if err := os.WriteFile(a.begin, nil, 0o644); err != nil {
		a.t.Fatal(err)
	}
	found := map[string]string{}
	come := map[string]bool{}
	eventually(a.t, 30*time.Second, func() error {
		text, err := os.ReadFile(a.report)
		if err != nil {
			return errStop{err}
		}
		ended := false
		for line := range strings.Lines(string(text)) {
			name, outcome, whole := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			switch {
			case name == "come" && strings.HasSuffix(line, "\n"):
				if !come[outcome] {
					go a.visit(outcome)
				}
				come[outcome] = true
			case whole:
				found[name] = outcome
			}
			ended = line == "end\n"
		}
		if !ended {
			return fmt.Errorf("escape has not ended:\n%s", text)
		}
		return nil
	})
	return found
}

// visit is a client on the host that comes to a port.
func (a *attempt) visit(port string) {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(a.host, port), 500*time.Millisecond)
	if err == nil {
		time.AfterFunc(time.Second, func() { conn.Close() })
	}
}

// mustBe fails the test where an outcome is not the one expected: "open", the
// text of an error, or "closed" for any error.
func mustBe(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, outcome := range want {
		switch {
		case got[name] == "":
			t.Errorf("%s: was not tried", name)
		case outcome == "closed" && got[name] != "open", outcome == got[name]:
		default:
			t.Errorf("%s: %s, expected %s", name, got[name], outcome)
		}
	}
}

// ways are what a daemon can do with a TCP socket, and what it gets for it. A
// way that is not in the list of a cure is as open as without one.
var (
	waysOut = []string{"connect", "sendto fastopen", "sendmsg fastopen", "connect fastopen", "bind", "listen"}

	withGuard = map[string]string{
		"connect": "operation not permitted", "sendto fastopen": "operation not permitted", "sendmsg fastopen": "operation not permitted",
		"connect fastopen": "operation not permitted", "bind": "operation not permitted",
		"listen": "connection timed out", // it may listen, nobody gets there
	}
	withAuto = map[string]string{
		"connect": "permission denied", "sendto fastopen": "operation not supported", "sendmsg fastopen": "operation not supported",
		"connect fastopen": "permission denied", "network namespace": "operation not permitted", "change an interface": "operation not permitted",
	}
	withStrict = map[string]string{"bind": "permission denied"}
)

// expected is the list for a cure and a daemon that is root on the machine, or
// not.
func expected(c cure, root bool, host string) map[string]string {
	want := map[string]string{"read an interface": "open", "as an MPTCP socket": "closed", "by an MPTCP socket of its own": "closed"}
	for _, way := range append(waysOut, "network namespace", "change an interface") {
		want[way] = "open"
	}
	if !root {
		want["network namespace"], want["change an interface"] = "operation not permitted", "operation not permitted"
	}
	apply := func(list map[string]string) {
		for name, outcome := range list {
			want[name] = outcome
		}
	}
	if c.guard != "off" {
		apply(withGuard)
	}
	if c.isolate != "off" {
		apply(withAuto)
	}
	if c.isolate == "strict" {
		apply(withStrict)
	}
	if c.guard != "off" && c.isolate == "auto" {
		want["bind"] = withGuard["bind"]
	}
	if host == "::1" {
		want["connect to a mapped address"] = want["connect"]
	}
	return want
}

var cures = []cure{noCure, guarded, {"off", "auto"}, {"off", "strict"}, {"required", "auto"}}

// users are who the daemon is: root in a namespace of `ip netns`, and somebody
// in a user namespace.
var users = []struct {
	name string
	root bool
	as   []string
}{
	{"root", true, nil},
	{"user namespace", false, []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Ur"}},
}

// each runs a test for every cure, user and family.
func each(t *testing.T, run func(t *testing.T, c cure, root bool, as []string, host string)) {
	needRoot(t)
	needGuard(t)
	for _, c := range cures {
		for _, user := range users {
			for family, host := range map[string]string{"IPv4": "127.0.0.1", "IPv6": "::1"} {
				t.Run(fmt.Sprintf("%s, %s, %s", c, user.name, family), func(t *testing.T) {
					t.Parallel()
					run(t, c, user.root, user.as, host)
				})
			}
		}
	}
}

// needGuard skips a test where there is no cgroup v2, unless everything is
// required.
func needGuard(t *testing.T) {
	t.Helper()
	if groups, err := filepath.Glob("/sys/fs/cgroup/cgroup.procs"); err == nil && groups == nil {
		if groups, _ = filepath.Glob("/sys/fs/cgroup/*/cgroup.procs"); groups == nil && os.Getenv("NETNS") != "require" {
			t.Skip("no cgroup v2")
		}
	}
}

// handOffTo starts a binder and an inetd in a namespace whose command is the
// daemon, and gives it a connection.
func (a *attempt) handOffTo(ns namespace, c cure, as []string) *box {
	a.t.Helper()
	port := freePort(a.t)
	b := bind(a.t, "--guard", c.guard, "--listen", allOf(a.host, port))
	inetd(a.t, ns, b.dir, append([]string{"--port", strconv.Itoa(port), "--"}, append(as, a.args...)...)...)
	conn, err := net.Dial("tcp", net.JoinHostPort(a.host, strconv.Itoa(port)))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return b
}

// A daemon that is handed connections.
func TestEscapeByConnection(t *testing.T) {
	h := serveHostOnly(t)
	t.Run("cures", func(t *testing.T) {
		each(t, func(t *testing.T, c cure, root bool, as []string, host string) {
			a := newAttempt(t, h, host, "connection", c)
			b := a.handOffTo(ipNetns(t), c, as)
			mustBe(t, a.outcomes(), expected(c, root, host))
			r := b.status().GuardState.Refusals
			if tried := c.guard != "off" && c.isolate == "off"; tried != (r.Connect > 0 && r.Bind > 0 && r.Listen > 0) {
				t.Errorf("the guard has counted %+v", r)
			}
		})
	})
}

// A daemon that is lent a listener, and accepts from it.
func TestEscapeByListener(t *testing.T) {
	h := serveHostOnly(t)
	t.Run("cures", func(t *testing.T) {
		each(t, func(t *testing.T, c cure, root bool, as []string, host string) {
			port := freePort(t)
			l := lender{Guard: c.guard != "off", Make: []lent{{familyOf(host), unix.SOCK_STREAM, port}}}
			_, sockets := l.lend(t)
			a := newAttempt(t, h, host, "listener", c)
			a.runWith(ipNetns(t), as, sockets[0])
			conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			want := map[string]string{"accept": "open", "denial of service": "open"}
			for name, outcome := range expected(c, root, host) {
				want["accepted: "+name] = outcome
				if name != "bind" && name != "listen" { // it has a port, and keeps it
					want[name] = outcome
				}
			}
			mustBe(t, a.outcomes(), want)
		})
	})
}

// A daemon that is lent a UDP socket. Landlock does not know UDP: only the
// guard keeps it from sending where it likes.
func TestEscapeByUDP(t *testing.T) {
	h := serveHostOnly(t)
	t.Run("cures", func(t *testing.T) {
		each(t, func(t *testing.T, c cure, root bool, as []string, host string) {
			port := freePort(t)
			l := lender{Guard: c.guard != "off", Make: []lent{{familyOf(host), unix.SOCK_DGRAM, port}}}
			_, sockets := l.lend(t)
			a := newAttempt(t, h, host, "udp", c)
			a.runWith(ipNetns(t), as, sockets[0])
			client, err := net.Dial("udp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.Write([]byte("hello"))
			want := map[string]string{"answer a client": "open", "connect to a client": "open"}
			ways := []string{"sendto", "sendmsg", "connect", "disconnect, sendto"}
			if host == "::1" {
				ways = append(ways, "sendto a mapped address")
			}
			for _, way := range ways {
				want[way] = "open"
				if c.guard != "off" {
					want[way] = "operation not permitted"
				}
			}
			for _, name := range []string{"network namespace", "read an interface", "change an interface"} {
				want[name] = expected(c, root, host)[name]
			}
			mustBe(t, a.outcomes(), want)
			client.SetReadDeadline(time.Now().Add(time.Second))
			answer := make([]byte, 16)
			if n, err := client.Read(answer); err != nil || string(answer[:n]) != "hello" {
				t.Errorf("the client was answered %q, %v", answer[:n], err)
			}
		})
	})
}

// allOf is what to listen on for clients of host's family: for IPv6 the address
// of both families.
func allOf(host string, port int) string {
	if host == "::1" {
		host = "::"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func familyOf(host string) int {
	if host == "::1" {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// runWith runs the daemon in a namespace, with a socket as descriptor 3.
func (a *attempt) runWith(ns namespace, as []string, socket *os.File) *process {
	a.t.Helper()
	cmd := ns.command(append(as, append(a.args, "-fd", "3")...)...)
	cmd.ExtraFiles = []*os.File{socket}
	return start(a.t, cmd)
}

// The guard outlives the binder that made it: killed, its directory removed by
// the next start, and that one serving.
func TestEscapeAfterBinder(t *testing.T) {
	needRoot(t)
	needGuard(t)
	h := serveHostOnly(t)
	for _, again := range []bool{false, true} {
		for family, host := range map[string]string{"IPv4": "127.0.0.1", "IPv6": "::1"} {
			t.Run(fmt.Sprintf("%s, started again %v", family, again), func(t *testing.T) {
				a := newAttempt(t, h, host, "connection", guarded)
				b := a.handOffTo(ipNetns(t), guarded, nil)
				eventually(t, 5*time.Second, func() error {
					if n := b.status().Total.Delivered; n != 1 {
						return fmt.Errorf("%d connections delivered", n)
					}
					return nil
				})
				st := b.status()
				b.kill()
				if again {
					next := bind(t, "--guard", "required", "--listen", allOf(host, int(st.Listeners[0].Description.Port)))
					if !next.status().Listeners[0].Guarded {
						t.Error("the next binder's listener is not guarded")
					}
					if _, err := os.Stat(st.GuardState.Group); err == nil {
						t.Errorf("%s is still there", st.GuardState.Group)
					}
				}
				mustBe(t, a.outcomes(), expected(guarded, true, host))
			})
		}
	}
}

// A dispatcher in hostile hands, even one that got rid of its filters, can't
// turn the sockets around that it has: it runs in a group that is exempt from
// nothing. The binder's own group may bind, which shows that the test can fail.
func TestEscapeByDispatcher(t *testing.T) {
	needRoot(t)
	needGuard(t)
	h := serveHostOnly(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		for group, want := range map[string]string{"dispatcher": "operation not permitted", ".": "open"} {
			t.Run(host+" in "+group, func(t *testing.T) {
				port := freePort(t)
				b := bind(t, "--guard", "required", "--listen", net.JoinHostPort(host, strconv.Itoa(port)))
				st := b.status()
				if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", st.Dispatcher)); err != nil || !strings.Contains(string(text), filepath.Base(st.GuardState.Group)+"/dispatcher\n") {
					t.Errorf("the dispatcher is in %s, %v", text, err)
				}
				listener := stealListener(t, st.PID)
				// Lest the one accepts first, and the other listens again where the escape has ended that.
				for _, pid := range []int{st.Dispatcher, st.PID} {
					if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
						t.Fatal(err)
					}
				}
				a := newAttempt(t, h, host, "listener", cure{"required", "off"})
				a.runWith(namespace{exec: []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, filepath.Join(st.GuardState.Group, group)}},
					[]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, listener)
				conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				got := a.outcomes()
				mustBe(t, got, map[string]string{"accepted: bind": want, "accepted: connect": "operation not permitted", "connect": "operation not permitted"})
			})
		}
	}
}

// stealListener copies the one TCP listener of a process.
func stealListener(t *testing.T, pid int) *os.File {
	t.Helper()
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p)
	for fd := range 256 {
		copied, err := unix.PidfdGetfd(p, fd, 0)
		if err != nil {
			continue
		}
		listens, _ := unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if family, _ := unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_DOMAIN); listens == 1 && family != unix.AF_UNIX {
			f := os.NewFile(uintptr(copied), "listener")
			t.Cleanup(func() { f.Close() })
			return f
		}
		unix.Close(copied)
	}
	t.Fatalf("process %d has no listener", pid)
	return nil
}

// Groups of dead binders go with the tests.
func removeGuards() { privsep.RemoveDeadGuards() }
