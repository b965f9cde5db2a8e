package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/fdpass"
)

// takeOver starts an instance that takes over from b, and waits until it
// serves and b has ended in good order.
func (b *box) takeOver(args ...string) *box {
	b.t.Helper()
	args = append([]string{filepath.Join(programs, "socketbox"), "bind", "--takeover", "--dir", b.dir}, args...)
	next := &box{process: start(b.t, exec.Command(args[0], args[1:]...)), dir: b.dir}
	next.waitLog("serving")
	if status := b.wait(10 * time.Second); status != 0 {
		b.t.Errorf("the instance that was taken over from ended with %d", status)
	}
	return next
}

// waitingFor waits until n connections are on hold for a target of one path.
func (b *box) waitingFor(name string, n int) {
	b.t.Helper()
	eventually(b.t, 10*time.Second, func() error {
		for _, target := range b.status().Targets {
			if filepath.Base(target.Path) == name {
				if int(target.Waiting) == n {
					return nil
				}
				return fmt.Errorf("%d should wait for %s: %+v", n, name, target)
			}
		}
		return fmt.Errorf("no target %s", name)
	})
}

// An instance takes over from the one before, ten times in a row, under 64
// clients, with 50 connections on hold and a loan out: nobody is refused or lost, what was
// on hold still is, and no connection is missing in the counts.
func TestTakeover(t *testing.T) {
	const times, clients, onHold = 10, 64, 50
	port := freePort(t)
	lent := freePort(t)
	b := bindConfig(t, twoTargets(port, "")+fmt.Sprintf("[[listener]]\naddress = \"127.0.0.1:%d\"\nhandoff = \"listener\"\n", lent))
	config := filepath.Join(filepath.Dir(b.dir), "socketbox.toml")
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock"), Take: 100 * time.Microsecond})
	b.borrow(portName(lent, "listener"))
	waiting := begin(onHold, from("127.0.2.1", at(port))) // for b.sock, which nobody has bound yet
	b.waitingFor("b.sock", onHold)
	load := keep(clients, time.Millisecond, from("127.0.1.1", at(port)))
	native := keep(4, 2*time.Millisecond, to(at(lent)))
	for range times {
		time.Sleep(100 * time.Millisecond)
		b = b.takeOver("--config", config)
		b.waitingFor("b.sock", onHold)
		if l := b.is(1, binder.Lent); l.Loans != 1 || len(l.Borrowers) != 1 {
			t.Errorf("the loan is forgotten: %+v", l)
		}
	}
	c, d := load.end(), native.end()
	t.Logf("%d takeovers: %s; of the borrower: %s", times, c, d)
	c.allServed(t, c.total())
	d.allServed(t, d.total())
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "b.sock")})
	waiting.end().allServed(t, onHold)
	b.balance(c.total() + onHold)
}

// A successor that can't start, or dies at any point of the takeover, leaves
// the running instance serving, with what it has on hold.
func TestTakeoverFails(t *testing.T) {
	const onHold = 5
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, ""))
	config := filepath.Join(filepath.Dir(b.dir), "socketbox.toml")
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	waiting := begin(onHold, from("127.0.2.1", at(port)))
	b.waitingFor("b.sock", onHold)
	load := keep(8, time.Millisecond, from("127.0.1.1", at(port)))

	successor := func(args ...string) *exec.Cmd {
		return socketbox(t, here(), 0, append([]string{"bind", "--takeover", "--dir", b.dir}, args...)...)
	}
	expect(t, successor("--listen", "256.0.0.1:1"), 2, "256.0.0.1")
	expect(t, successor("--config", config, "--user", "daemon"), 1, "needs a restart")
	if os.Geteuid() == 0 {
		expect(t, socketbox(t, here(), 12345, "bind", "--takeover", "--dir", b.dir, "--config", config, "--user", "nobody"), 1, "control socket", "permission denied", "hint:")
	}
	for steps := range 4 {
		before := strings.Count(b.log.String(), "serving on")
		halfTakeover(t, b.dir+".control", steps)
		if steps >= 2 {
			eventually(t, 10*time.Second, func() error {
				if strings.Count(b.log.String(), "serving on") == before {
					return fmt.Errorf("after %d steps the instance does not say that it serves on:\n%s", steps, b.log)
				}
				return nil
			})
		}
		b.waitingFor("b.sock", onHold)
		takenBy(t, "a.sock", client{to: at(port), from: "127.0.1.2"})
	}
	c := load.end()
	t.Log(c)
	c.allServed(t, c.total())
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "b.sock")})
	waiting.end().allServed(t, onHold)
	b.balance(c.total() + onHold + 4)

	b.signal(unix.SIGTERM)
	b.wait(5 * time.Second)
	expect(t, successor("--config", config), 1, "hint:")
}

// halfTakeover behaves like a successor that dies: after its connect, after it
// got the listeners, after it asked the instance to yield, after it got
// everything and before its farewell.
func halfTakeover(t *testing.T, control string, steps int) {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: control}); err != nil {
		t.Fatal(err)
	}
	ask := func(op string) {
		if _, err := unix.Write(s, []byte(`{"op":"`+op+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(n int) {
		buf := make([]byte, 8192)
		m, err := fdpass.Recv(s, buf, 250, 0)
		if err != nil || len(m.FDs) != n {
			t.Fatalf("%d descriptors, expected %d (%v): %s", len(m.FDs), n, err, buf[:m.N])
		}
		m.Close()
	}
	if steps >= 1 {
		ask("takeover")
		receive(2)
		receive(1)
	}
	if steps >= 2 {
		ask("yield")
	}
	if steps >= 3 {
		receive(1)
		receive(5)
	}
}

// A service manager that stops and starts the program, with what it was given
// to keep, refuses no client: they wait in the backlog. What a reload drops, it
// is told to forget.
func TestRestartWithStore(t *testing.T) {
	const restarts = 5
	stays, goes := freePort(t), freePort(t)
	dir := socketDir(t)
	config := putConfig(t, dir, listeners(stays, goes))
	m := newManager(t, filepath.Join(filepath.Dir(dir), "notify"))
	runs := func() *box {
		b := &box{process: start(t, m.passTo(socketbox(t, here(), 0, "bind", "--dir", dir, "--config", config))), dir: dir}
		m.hears(t, "READY=1")
		return b
	}
	stops := func(b *box) {
		b.signal(unix.SIGTERM)
		m.hears(t, "STOPPING=1")
		if status := b.wait(10 * time.Second); status != 0 {
			t.Errorf("exit %d", status)
		}
	}
	b := runs()
	runReceiver(t, &receiver{Path: filepath.Join(dir, "default.sock")})
	load := keep(16, time.Millisecond, to(at(stays)))
	for range restarts {
		time.Sleep(50 * time.Millisecond)
		stops(b)
		time.Sleep(50 * time.Millisecond) // nobody is there, but the clients are
		b = runs()
		if len(m.store) != 2 {
			t.Fatalf("the service manager keeps %d sockets, expected 2", len(m.store))
		}
	}
	c := load.end()
	t.Log(c)
	c.allServed(t, c.total())

	putConfig(t, dir, listeners(stays))
	b.signal(unix.SIGHUP)
	m.hears(t, "RELOADING=1")
	m.hears(t, "READY=1")
	if len(m.store) != 1 {
		t.Errorf("the service manager keeps %d sockets after a reload that dropped one of two", len(m.store))
	}
	stops(b)
	putConfig(t, dir, listeners(goes))
	runs() // what it keeps is not wanted any more
	if len(m.store) != 1 || m.store["listener-127.0.0.1_"+fmt.Sprint(goes)] == nil {
		t.Errorf("the service manager keeps %v", m.store)
	}
}
