package preload

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"socketbox/internal/binder"
)

// lending are the daemons that a listener of their own form is enough for. The
// others look closer at what is not quite so: a borrowed socket listens as soon
// as it is bound.
var lending = []behaviour{
	{name: "copies", args: []string{"PORT"}, family: four},
	{name: "many", args: []string{"PORT", "COUNT"}, six: true, crowd: 10_000},
	{name: "twice", args: []string{"PORT"}, family: four},
	{name: "arguments", args: []string{"PORT"}, family: four[:3]},
	{name: "threads", args: []string{"PORT", "COUNT"}, six: true, crowd: 400},
	{name: "prefork", args: []string{"PORT", "COUNT"}, crowd: 400},
	{name: "reexec", args: []string{"PORT"}, family: append(four, "4")},
	{name: "early", args: []string{"PORT"}, family: four},
	{name: "pass", args: []string{"PORT"}, six: true, family: four[:3]},
	{name: "full", args: []string{"PORT"}, family: four[:3]},
	{name: "numbers", args: []string{"PORT"}, family: four[:2]},
	{name: "lent", args: []string{"PORT"}, six: true, family: []string{"4", "6"}},
}

// listener is the state of the box's one listener.
func (b *box) listener() binder.ListenerStatus {
	b.t.Helper()
	out, err := exec.Command(filepath.Join(programs, "socketbox"), "status", "--dir", b.dir, "--json").Output()
	var s binder.Status
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil || len(s.Listeners) == 0 {
		b.t.Fatalf("status: %v\n%s", err, out)
	}
	return s.Listeners[0]
}

func lendingBox(t *testing.T, six bool) *box {
	address := "0.0.0.0:PORT"
	if six {
		address = ":PORT"
	}
	return bindWith(t, "[[listener]]\naddress = \""+address+"\"\n")
}

// An unmodified daemon borrows its listener without being told to, and none of
// its connections goes through the dispatcher.
func TestBorrowers(t *testing.T) {
	for _, s := range []setting{plain(), underValgrind(t), withSanitizers(t)} {
		for _, v := range lending {
			if s.name == "valgrind" && v.name == "full" {
				continue // valgrind keeps descriptors above the limit for itself
			}
			t.Run(strings.Join(append([]string{s.name, v.name}, v.args[:len(v.args)-1]...), "_"), func(t *testing.T) {
				b := lendingBox(t, v.six)
				v.serve(t, b, s)
				if l := b.listener(); l.State != binder.Lent || l.Loans == 0 || l.Accepted != 0 {
					t.Errorf("%+v", l)
				}
			})
		}
	}
}

// While a borrower is away its clients wait; the next one gets them. Killed, it
// leaves nothing to clean up.
func TestBorrowerKilledAndBack(t *testing.T) {
	b := lendingBox(t, true)
	daemon := func() *process { return b.small(plain(), nil, "many", fmt.Sprint(b.port), "1000000") }
	for range 5 {
		p := daemon()
		b.crowd(50, 8, "4", true)
		p.cmd.Process.Signal(syscall.SIGKILL)
		<-p.done
		var early []*net.TCPConn
		for range 20 {
			early = append(early, b.dial("6"))
		}
		p = daemon()
		for _, c := range early {
			if said, err := io.ReadAll(c); err != nil || len(said) == 0 {
				t.Errorf("a client that came while the daemon was away: %v", err)
			}
		}
		p.cmd.Process.Signal(syscall.SIGKILL)
		<-p.done
	}
	if l := b.listener(); l.Loans != 10 || l.Accepted != 0 {
		t.Errorf("%+v", l)
	}
}

// What a variable insists on, and what the binder decides, goes.
func TestWhoBorrows(t *testing.T) {
	for _, c := range []struct {
		name, keys string
		env        []string
		state      binder.State
		says       string // and the daemon ends
	}{
		{name: "auto", state: binder.Lent},
		{name: "connection", env: []string{"SOCKETBOX_HANDOFF=connection"}, state: binder.Connection},
		{name: "handed off", keys: "handoff = \"connection\"\n", state: binder.Connection},
		{name: "handed off, insisting", keys: "handoff = \"connection\"\n", env: []string{"SOCKETBOX_HANDOFF=listener"},
			state: binder.Connection, says: `handoff = "connection"`},
		{name: "not allowed", keys: "allow = { users = [4711] }\n", state: binder.Undecided, says: "uid 0 is not in allow"},
		{name: "from", env: []string{"SOCKETBOX_FROM=4711"}, state: binder.Undecided, says: "it is not uid 4711 who lends there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bindWith(t, "[[listener]]\naddress = \":PORT\"\n"+c.keys)
			p := b.daemon(plain(), c.env, filepath.Join(daemons, "many"), fmt.Sprint(b.port), "20")
			if c.says != "" {
				p.wait(1)
				if said := p.log.String(); !strings.Contains(said, c.says) || !strings.Contains(said, fmt.Sprintf("%d.listener", b.port)) {
					t.Errorf("it says:\n%s", said)
				}
			} else {
				p.waitLog("ready")
				b.crowd(20, 4, "4", true)
				p.wait(0)
			}
			if l := b.listener(); l.State != c.state {
				t.Errorf("%s (%s), not %s", l.State, l.Why, c.state)
			}
		})
	}
}

// A daemon that starts before socketbox waits for it, and borrows.
func TestBorrowerFirst(t *testing.T) {
	b := lendingBox(t, true)
	args := b.cmd.Args
	b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait(0)
	p := b.daemon(plain(), []string{"SOCKETBOX_WAIT=20s", "SOCKETBOX_DEBUG=1"}, filepath.Join(daemons, "many"), fmt.Sprint(b.port), "10")
	p.waitLog("waiting for")
	again := start(t, exec.Command(args[0], args[1:]...))
	again.waitLog("serving")
	p.waitLog("ready")
	b.crowd(10, 2, "6", true)
	p.wait(0)
}

// In a directory where the binder can't make sockets, nobody waits for a loan.
func TestNoWaitWhereNothingIsLent(t *testing.T) {
	for mode, waits := range map[os.FileMode]bool{0o750: false, 0o770: true} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "-n", "--", "env", "LD_PRELOAD="+library(), "SOCKETBOX_DIR="+dir, "SOCKETBOX_WAIT=60ms", "SOCKETBOX_DEBUG=1",
			"timeout", "0.3", filepath.Join(daemons, "many"), "80", "1")
		out, _ := cmd.CombinedOutput()
		if strings.Contains(string(out), "waiting for 80.listener") != waits || !strings.Contains(string(out), "receives on 80") {
			t.Errorf("%v:\n%s", mode, out)
		}
	}
}

// A UDP server gets its socket by the same way, with the options that it has
// set, and sees its clients' addresses.
func TestBorrowUDP(t *testing.T) {
	b := bindWith(t, "[[listener]]\naddress = \"udp:0.0.0.0:PORT\"\n")
	p := b.small(plain(), nil, "echo", fmt.Sprint(b.port), "3")
	for range 3 {
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", b.port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "x")
		buf := make([]byte, 200)
		n, err := c.Read(buf)
		if want := c.LocalAddr().String() + " 127.0.0.1\n"; err != nil || string(buf[:n]) != want {
			t.Errorf("%q, %v; want %q", buf[:n], err, want)
		}
	}
	p.wait(0)
	if l := b.listener(); l.Loans != 1 {
		t.Errorf("%+v", l)
	}
}

// nginx, Redis and a reload of nginx under load, by borrowed listeners.
func TestBorrowersOfDebian(t *testing.T) {
	t.Run("nginx", func(t *testing.T) {
		b, p := nginxAt(t, lendingBox(t, true), "listen [::]:PORT ipv6only=off reuseport;")
		for host, want := range map[string]string{"127.0.0.1": "::ffff:127.0.0.1 ::ffff:127.0.0.1 PORT", "[::1]": "::1 ::1 PORT"} {
			body, err := get(b, host)
			if want = strings.ReplaceAll(want, "PORT", fmt.Sprint(b.port)); err != nil || body != want {
				t.Errorf("%s: %q, %v; want %q", host, body, err, want)
			}
		}
		reloads(t, b, p)
		if l := b.listener(); l.State != binder.Lent || l.Accepted != 0 {
			t.Errorf("%+v", l)
		}
	})
	t.Run("redis", func(t *testing.T) {
		needProgram(t, "redis-server", "redis-cli")
		b := lendingBox(t, false)
		p := b.daemon(plain(), nil, "redis-server", "--port", fmt.Sprint(b.port), "--save", "", "--dir", t.TempDir(), "--bind", "0.0.0.0", "--protected-mode", "yes")
		p.waitLog("Ready to accept")
		out, err := exec.Command("redis-cli", "-h", "127.0.0.1", "-p", fmt.Sprint(b.port), "client", "list").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "addr=127.0.0.1:") {
			t.Errorf("%v\n%s", err, out)
		}
		if l := b.listener(); l.State != binder.Lent {
			t.Errorf("%+v", l)
		}
	})
}

// nginx with a socket for each family is told to take connections
// where socketbox has one for both.
func TestOtherFormTakesConnections(t *testing.T) {
	b, _ := nginxAt(t, lendingBox(t, true), "listen PORT; listen [::]:PORT;")
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		if _, err := get(b, host); err != nil {
			t.Error(err)
		}
	}
	if l := b.listener(); l.State != binder.Connection || !slices.ContainsFunc([]string{"ipv4", "ipv6"}, func(f string) bool { return strings.Contains(l.Why, f) }) {
		t.Errorf("%s: %s", l.State, l.Why)
	}
}
