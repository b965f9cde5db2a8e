package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/handoff"
)

// borrower accepts on a listener that it has borrowed and answers like a
// receiver.
type borrower struct {
	fd   int
	stop atomic.Bool
	done chan struct{}
}

// ownSocket is a socket as a daemon has before it binds.
func ownSocket(t *testing.T, domain, kind int, v6only bool) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if domain == unix.AF_INET6 {
		only := 0
		if v6only {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

// borrow borrows an IPv4 listener at name in b's directory and serves.
func (b *box) borrow(name string) *borrower {
	b.t.Helper()
	var fd int
	own := ownSocket(b.t, unix.AF_INET, unix.SOCK_STREAM, false)
	eventually(b.t, 5*time.Second, func() (err error) {
		fd, err = handoff.Borrow(filepath.Join(b.dir, name), own, 128)
		return err
	})
	l := &borrower{fd: fd, done: make(chan struct{})}
	go l.serve()
	b.t.Cleanup(l.end)
	return l
}

func (l *borrower) serve() {
	defer close(l.done)
	for !l.stop.Load() {
		unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 20)
		if conn, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC); err == nil {
			answer(conn, "borrower")
		}
	}
	unix.Close(l.fd)
}

// end closes the borrower's only copy.
func (l *borrower) end() {
	l.stop.Store(true)
	<-l.done
}

// is waits until the listener at index i is in a state.
func (b *box) is(i int, state binder.State) binder.ListenerStatus {
	b.t.Helper()
	var l binder.ListenerStatus
	eventually(b.t, 5*time.Second, func() error {
		if l = b.status().Listeners[i]; l.State != state {
			return fmt.Errorf("listener %s is %s (%s), not %s", l.Name, l.State, l.Why, state)
		}
		return nil
	})
	return l
}

func portName(port int, end string) string { return fmt.Sprintf("%d.%s", port, end) }

// A borrower before any receiver: the clients that waited in the backlog are
// its own, and a receiver that comes later gets none. While it restarts,
// clients wait.
func TestLoanBeforeReceiver(t *testing.T) {
	const clients = 20
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	waiting := begin(clients, to(at(port)))
	time.Sleep(200 * time.Millisecond)
	b.is(0, binder.Undecided)
	l := b.borrow(portName(port, "listener"))
	waiting.end().allServed(t, clients)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, portName(port, "sock"))})
	b.waitLog("a receiver gets nothing")
	takenBy(t, "borrower", client{to: at(port)})
	status := b.is(0, binder.Lent)
	if status.Loans != 1 || len(status.Borrowers) != 1 || status.Borrowers[0].PID != os.Getpid() || !status.Borrowers[0].Alive {
		t.Errorf("lent to %+v, not to process %d", status.Borrowers, os.Getpid())
	}

	l.end() // it dies, and comes back
	away := begin(clients, to(at(port)))
	time.Sleep(200 * time.Millisecond)
	b.borrow(portName(port, "listener"))
	away.end().allServed(t, clients)
	if n := b.status().Total.Accepted; n != 0 {
		t.Errorf("the dispatcher has accepted %d connections of a lent listener", n)
	}
}

// A receiver before any borrower, one that comes while clients wait, and
// default.sock, which takes clients after a second: the borrower is told to take
// connections.
func TestReceiverBeforeLoan(t *testing.T) {
	for _, name := range []string{"PORT.sock", "PORT.ipv4.sock", "default.sock"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const clients = 10
			port := freePort(t)
			b := bind(t, "--listen", at(port))
			name := strings.Replace(name, "PORT", fmt.Sprint(port), 1)
			waiting := begin(clients, to(at(port)))
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, name)})
			waiting.end().allServed(t, clients)
			b.is(0, binder.Connection)
			own := ownSocket(t, unix.AF_INET, unix.SOCK_STREAM, false)
			_, err := handoff.Borrow(filepath.Join(b.dir, portName(port, "listener")), own, 0)
			var refused *handoff.LoanError
			if !errors.As(err, &refused) || refused.Verdict != handoff.TakeConnections || !strings.Contains(refused.Reason, name) {
				t.Errorf("a borrower after %s: %v", name, err)
			}
			b.balance(clients)
		})
	}
}

// A borrower of another form is told to take connections, and changes nothing;
// of two listeners of one port the form decides; UDP is lent.
func TestLoanForms(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf("[[listener]]\naddress = \"127.0.0.1:%d\"\n[[listener]]\naddress = \"[::1]:%[1]d\"\n[[listener]]\naddress = \"udp:127.0.0.1:%[1]d\"\n"+
		"[[listener]]\nname = \"one\"\naddress = \"127.0.0.2:%d\"\n[[listener]]\nname = \"two\"\naddress = \"127.0.0.3:%[2]d\"\n", port, freePort(t)))
	path := filepath.Join(b.dir, portName(port, "listener"))
	refusal := func(path string, own int) string {
		fd, err := handoff.Borrow(path, own, 0)
		var refused *handoff.LoanError
		if !errors.As(err, &refused) || refused.Verdict != handoff.TakeConnections {
			t.Errorf("%s: lent as %d, %v", path, fd, err)
			return ""
		}
		return refused.Reason
	}
	if why := refusal(path, ownSocket(t, unix.AF_INET6, unix.SOCK_STREAM, false)); !strings.Contains(why, "both families") {
		t.Errorf("a dual-stack borrower: %s", why)
	}
	for i := range 2 {
		b.is(i, binder.Undecided)
	}
	second := b.status().Listeners[3].Address
	_, secondPort, _ := strings.Cut(second, ":")
	if why := refusal(filepath.Join(b.dir, secondPort+".listener"), ownSocket(t, unix.AF_INET, unix.SOCK_STREAM, false)); !strings.Contains(why, "give each a name") {
		t.Errorf("two listeners of one port and form: %s", why)
	}
	for i, own := range []int{
		ownSocket(t, unix.AF_INET, unix.SOCK_STREAM, false), ownSocket(t, unix.AF_INET6, unix.SOCK_STREAM, true), ownSocket(t, unix.AF_INET, unix.SOCK_DGRAM, false),
	} {
		fd, err := handoff.Borrow(path, own, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		b.is(i, binder.Lent)
	}
	b.borrow("two.listener")
	b.is(3, binder.Undecided)
	b.is(4, binder.Lent)
}

// The binder is killed while a listener is out: its clients notice nothing,
// neither then nor when a new one starts beside the loan, nor when the borrower
// hands over to the next and ends.
func TestBinderKilledWithLoan(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	b := bindIn(t, here(), dir, "--listen", at(port))
	l := b.borrow(portName(port, "listener"))
	load := keep(8, 2*time.Millisecond, to(at(port)))
	time.Sleep(100 * time.Millisecond)
	s := b.status()
	kill9(t, s.PID)
	gone(t, s.Dispatcher, 5*time.Second)
	time.Sleep(100 * time.Millisecond)
	next := bindIn(t, here(), dir, "--listen", at(port))
	if l := next.is(0, binder.Undecided); !strings.Contains(l.Why, "an earlier run lent") {
		t.Errorf("beside a loan: %s", l.Why)
	}
	time.Sleep(100 * time.Millisecond)
	next.borrow(portName(port, "listener"))
	c := load.end()
	c.allServed(t, c.total())
	l.end()
	takenBy(t, "borrower", client{to: at(port)})
	next.waitLog("the loan of an earlier run has ended")
}

// A reload leaves each state as it is, unless it says otherwise; a takeover
// brings it along.
func TestReloadInEachState(t *testing.T) {
	lent, handed, idle := freePort(t), freePort(t), freePort(t)
	text := func(handoff string) string {
		all := ""
		for _, port := range []int{lent, handed, idle} {
			all += fmt.Sprintf("[[listener]]\naddress = \"127.0.0.1:%d\"\nhandoff = %q\n", port, handoff)
		}
		return all
	}
	b := bindConfig(t, text("auto"))
	l := b.borrow(portName(lent, "listener"))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, portName(handed, "sock"))})
	check := func(states ...binder.State) {
		t.Helper()
		for i, state := range states {
			b.is(i, state)
		}
	}
	check(binder.Lent, binder.Connection, binder.Undecided)
	load := keep(4, 2*time.Millisecond, to(at(lent)))
	both := keep(4, 2*time.Millisecond, to(at(handed)))
	b.hup("configuration reloaded")
	check(binder.Lent, binder.Connection, binder.Undecided)
	b = b.takeOver("--config", filepath.Join(filepath.Dir(b.dir), "socketbox.toml"))
	check(binder.Lent, binder.Connection, binder.Undecided)
	c, d := load.end(), both.end()
	c.allServed(t, c.total())
	d.allServed(t, d.total())
	l.end()

	putConfig(t, b.dir, text("connection"))
	b.hup("configuration reloaded")
	check(binder.Connection, binder.Connection, binder.Connection)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, portName(lent, "sock"))})
	takenBy(t, portName(lent, "sock"), client{to: at(lent)})
	putConfig(t, b.dir, text("listener"))
	b.hup("configuration reloaded")
	check(binder.Lent, binder.Lent, binder.Lent)
	b.borrow(portName(handed, "listener"))
	takenBy(t, "borrower", client{to: at(handed)})
}

// A borrower that ends the shared listener does so for a moment: the binder has
// it listen again.
func TestListenerRevived(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	l := b.borrow(portName(port, "listener"))
	for range 3 {
		if err := unix.Shutdown(l.fd, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, func() error {
			if v := (client{to: at(port)}).visit(); v.outcome != served {
				return fmt.Errorf("%s: %v", v.outcome, v.err)
			}
			return nil
		})
	}
}

// Loans by allow, and in a directory that appears later.
func TestLoanRights(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	lend := filepath.Join(filepath.Dir(dir), "shop")
	b := bindConfigIn(t, here(), dir, listenerFor(port)+fmt.Sprintf("lend = %q\nallow = { users = [4711] }\n", lend))
	own := ownSocket(t, unix.AF_INET, unix.SOCK_STREAM, false)
	_, err := handoff.Borrow(filepath.Join(b.dir, "in.listener"), own, 0)
	var refused *handoff.LoanError
	if !errors.As(err, &refused) || refused.Verdict != handoff.Denied {
		t.Errorf("a user who is not in allow: %v", err)
	}
	if err := errors.Join(os.Mkdir(lend, 0o777), os.Chmod(lend, 0o777)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		_, err := os.Lstat(filepath.Join(lend, portName(port, "listener")))
		return err
	})
	b.is(0, binder.Undecided)

	// A group is enough, the first one or one of the others.
	for _, group := range []int{0, 4712} {
		port := freePort(t)
		b := bindConfig(t, listenerFor(port)+fmt.Sprintf("allow = { users = [4711], groups = [%d] }\n", group))
		daemon := []string{"python3", "-m", "http.server", "--bind", "127.0.0.1", fmt.Sprint(port)}
		as := append([]string{"setpriv", "--groups", "4712", "--"}, filepath.Join(programs, "socketbox-launch"), "--dir", b.dir, "-n", "--via", "notify", "--")
		start(t, exec.Command(as[0], append(as[1:], daemon...)...))
		b.is(0, binder.Lent)
	}
}
