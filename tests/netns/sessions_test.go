package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/handoff"
	"socketbox/internal/rule"
)

// keeper is a daemon whose sessions live until it is told to end them.
type keeper struct {
	t    *testing.T
	wire *handoff.Receiver
	done chan struct{}

	mu   sync.Mutex
	live map[netip.AddrPort]int // descriptors, by client
	most map[netip.Addr]int     // sessions at once, by source
	took int
}

func keep1(t *testing.T, path string) *keeper {
	t.Helper()
	wire, err := handoff.Listen(path, handoff.Options{Group: -1, From: -1})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, wire: wire, done: make(chan struct{}), live: map[netip.AddrPort]int{}, most: map[netip.Addr]int{}}
	go k.serve()
	t.Cleanup(func() {
		wire.Shutdown()
		<-k.done
		k.end(func(netip.AddrPort) bool { return true })
	})
	return k
}

func (k *keeper) serve() {
	defer close(k.done)
	for {
		conn, err := k.wire.Recv()
		switch {
		case errors.Is(err, handoff.ErrBad):
			continue
		case err != nil:
			k.wire.Close()
			return
		}
		client, err := netip.ParseAddrPort(peerOf(conn.FD))
		if err != nil {
			unix.Close(conn.FD) // reset by its client on the way
			continue
		}
		k.mu.Lock()
		k.took++
		k.live[client] = conn.FD
		source, n := rule.Source(client.Addr()), 0
		for other := range k.live {
			if rule.Source(other.Addr()) == source {
				n++
			}
		}
		k.most[source] = max(k.most[source], n)
		k.mu.Unlock()
	}
}

// end closes the sessions of the clients that which names, and returns how many
// that were.
func (k *keeper) end(which func(netip.AddrPort) bool) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for client, fd := range k.live {
		if which(client) {
			unix.Close(fd)
			delete(k.live, client)
			n++
		}
	}
	return n
}

// endOneEach ends one session of each source.
func (k *keeper) endOneEach() int {
	seen := map[netip.Addr]bool{}
	return k.end(func(client netip.AddrPort) bool {
		source := rule.Source(client.Addr())
		first := !seen[source]
		seen[source] = true
		return first
	})
}

func (k *keeper) count() (live, took int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.live), k.took
}

// has waits until the keeper has taken n connections, and looks whether it is
// given more.
func (k *keeper) has(n int) {
	k.t.Helper()
	eventually(k.t, 20*time.Second, func() error {
		if _, took := k.count(); took < n {
			return fmt.Errorf("the daemon has been given %d connections, expected %d", took, n)
		}
		return nil
	})
	time.Sleep(50 * time.Millisecond)
	if _, took := k.count(); took != n {
		k.t.Errorf("the daemon has been given %d connections, expected %d", took, n)
	}
}

// never looks whether a source had more than limit sessions at once.
func (k *keeper) never(limit, sources int) {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.most) != sources {
		k.t.Errorf("sessions of %d sources, expected %d", len(k.most), sources)
	}
	for source, n := range k.most {
		if n > limit {
			k.t.Errorf("%s had %d sessions at once, %d are allowed", source, n, limit)
			return
		}
	}
}

// crowdOf opens connections from addresses of its own, and keeps them.
type crowdOf struct {
	t     *testing.T
	conns []net.Conn
}

func (c *crowdOf) dial(to string, from ...string) {
	c.t.Helper()
	for _, source := range from {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 10 * time.Second}
		conn, err := d.Dial("tcp", to)
		if err != nil {
			c.t.Fatal(err)
		}
		c.conns = append(c.conns, conn)
	}
}

func (c *crowdOf) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

func newCrowdOf(t *testing.T) *crowdOf {
	c := &crowdOf{t: t}
	t.Cleanup(c.close)
	return c
}

// limitedTo is a configuration with one listener and one rule.
func limitedTo(port int, keys string) string {
	return listenerFor(port) + "[[rule]]\ntarget = \"DIR/a.sock\"\n" + keys + "\n"
}

// A limit for each source holds for a thousand of them while their sessions live
// in a daemon, far from the dispatcher; what is over it waits, and goes on as soon
// as one of its source's sessions has ended.
func TestSessionsPerSource(t *testing.T) {
	const sources, limit = 1000, 2
	port := freePort(t)
	b := bindConfig(t, "hold = { connections = 4000 }\n"+limitedTo(port, "max_sessions_per_source = 2"))
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	var from []string
	for range limit + 1 {
		for i := range sources {
			from = append(from, fmt.Sprintf("127.3.%d.%d", i/250, i%250+1))
		}
	}
	clients := newCrowdOf(t)
	clients.dial(at(port), from...)
	k.has(sources * limit)
	b.waiting(sources)
	if n := k.endOneEach(); n != sources {
		t.Fatalf("ended %d sessions", n)
	}
	k.has(sources * (limit + 1))
	k.never(limit, sources)
	b.balance(sources * (limit + 1))
	t.Logf("dispatcher %s, binder %s", rss(t, b.status().Dispatcher), rss(t, b.binderPID()))
}

// Addresses of one IPv6 /64 are one source.
func TestSessionsPerNetwork(t *testing.T) {
	const networks = 50
	port := freePort(t)
	ns := ipNetns(t)
	mustRun(t, "ip", "-n", ns.name, "-6", "route", "add", "local", "2001:db8:5::/48", "dev", "lo")
	mustRun(t, "ip", "netns", "exec", ns.name, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind")
	b := bindConfig(t, fmt.Sprintf("[[listener]]\nnetns = %q\naddress = \"[2001:db8:5::1]:%d\"\n", ns.name, port)+
		"[[rule]]\ntarget = \"DIR/a.sock\"\nmax_sessions_per_source = 2\n")
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	var from []string
	for host := range 5 {
		for n := range networks {
			from = append(from, fmt.Sprintf("2001:db8:5:%x::%x:1", n+1, host+1))
		}
	}
	clients := newCrowdOf(t)
	err := elsewhere(func() error { return enterNamed(ns.name) }, func() error {
		clients.dial(fmt.Sprintf("[2001:db8:5::1]:%d", port), from...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	k.has(networks * 2)
	k.endOneEach()
	k.has(networks * 3)
	k.never(2, networks)
}

func enterNamed(name string) error {
	fd, err := unix.Open("/run/netns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// sessions is how many the dispatcher counts for the one rule.
func (b *box) sessions() int {
	b.t.Helper()
	rules := b.status().Rules
	if len(rules) != 2 || rules[1].Sessions == nil {
		b.t.Fatalf("no rule with a limit: %+v", rules)
	}
	return rules[1].Sessions.Live
}

// counts waits until n sessions are counted, and looks whether that stays.
func (b *box) counts(n int) {
	b.t.Helper()
	eventually(b.t, 10*time.Second, func() error {
		if got := b.sessions(); got != n {
			return fmt.Errorf("%d sessions are counted, %d live", got, n)
		}
		return nil
	})
	time.Sleep(100 * time.Millisecond)
	if got := b.sessions(); got != n {
		b.t.Errorf("a moment later %d sessions are counted, %d live", got, n)
	}
}

// Ten thousand short sessions leave a count that is right: what lives, and
// nothing else; at each moment of them the limit holds.
func TestSessionsChurn(t *testing.T) {
	const short, clients, stay = 10000, 32, 7
	port := freePort(t)
	b := bindConfig(t, limitedTo(port, "max_sessions = 1000\nmax_sessions_per_source = 40"))
	keeping := keep1(t, filepath.Join(b.dir, "a.sock"))
	lasting := newCrowdOf(t)
	for range stay {
		lasting.dial(at(port), "127.0.4.1")
	}
	keeping.has(stay)
	keeping.wire.Shutdown()
	<-keeping.done
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	c := rounds(clients, short, from("127.0.4.2", at(port)))
	t.Log(c)
	c.allServed(t, short)
	b.counts(stay)
	lasting.close()
	keeping.end(func(netip.AddrPort) bool { return true })
	b.counts(0)
	b.balance(short + stay)
}

// While the binder can't listen, sessions end, and the kernel drops most of what
// it has to say about that. The binder looks for what it missed.
func TestSessionsEventsLost(t *testing.T) {
	const short, clients, stay = 8000, 32, 5
	port := freePort(t)
	b := bindConfig(t, limitedTo(port, "max_sessions = 100000"))
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	lasting := newCrowdOf(t)
	for range stay {
		lasting.dial(at(port), "127.0.4.1")
	}
	k.has(stay)
	pid := b.binderPID()
	k.wire.Shutdown()
	<-k.done
	r := runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	takenBy(t, "a.sock", client{to: at(port), from: "127.0.4.2"}) // the dispatcher knows the way
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c := rounds(clients, short, from("127.0.4.2", at(port)))
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.allServed(t, short)
	if r.count.Load() != short+1 {
		t.Errorf("%d sessions", r.count.Load())
	}
	b.counts(stay)
	if s := b.status(); s.Events.Lost == 0 || s.Events.Recounts == 0 {
		t.Errorf("nothing was lost: %+v; the test shows nothing", s.Events)
	}
}

// A dispatcher dies, a reload changes the rule, a limit is new to sessions that
// live, another instance takes over: what lives is still counted.
func TestSessionsOutliveTheirCounters(t *testing.T) {
	const stay, limit = 6, 8
	port := freePort(t)
	b := bindConfig(t, limitedTo(port, fmt.Sprintf("max_sessions = %d", limit)))
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	lasting := newCrowdOf(t)
	for range stay {
		lasting.dial(at(port), "127.0.4.1")
	}
	k.has(stay)
	b.counts(stay)

	for range 3 {
		s := b.status()
		kill9(t, s.Dispatcher)
		eventually(t, 5*time.Second, func() error {
			if n := b.status(); n.Dispatcher == s.Dispatcher || n.Dispatcher == 0 {
				return errors.New("the dispatcher was not replaced")
			}
			return nil
		})
	}
	b.counts(stay)
	// One ends while there is no dispatcher to hear of it.
	s := b.status()
	unix.Kill(s.Dispatcher, unix.SIGSTOP)
	k.endOneEach()
	kill9(t, s.Dispatcher)
	b.counts(stay - 1)

	reload := func(keys string) {
		t.Helper()
		expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, putConfig(t, b.dir, limitedTo(port, keys))), 0)
	}
	reload("remote = [\"127.0.0.0/8\"]\nmax_sessions = 8")
	b.counts(stay - 1)
	reload("")
	reload("max_sessions_per_source = 8")
	b.counts(stay - 1)
	reload("max_sessions = 8")
	b.counts(stay - 1)

	b = b.takeOver("--config", configOf(b))
	b.counts(stay - 1)

	// And the count is one that limits.
	more := newCrowdOf(t)
	for range limit {
		more.dial(at(port), "127.0.4.2")
	}
	k.has(stay + limit - (stay - 1))
	k.end(func(netip.AddrPort) bool { return true })
	k.has(stay + limit)
	b.counts(stay - 1)
}

// A listener in another namespace that a reload by root adds has its limit too:
// the binder could not look into that namespace by itself.
func TestSessionsOfReloadedNamespace(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, listenerFor(port))
	ns := ipNetns(t)
	text := fmt.Sprintf("[[listener]]\nname = \"in\"\nnetns = %q\naddress = \"127.0.0.1:%d\"\n[[rule]]\ntarget = \"DIR/a.sock\"\nmax_sessions = 2\n", ns.name, port)
	expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, putConfig(t, b.dir, text)), 0)
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	clients := newCrowdOf(t)
	err := elsewhere(func() error { return enterNamed(ns.name) }, func() error {
		clients.dial(at(port), "127.0.0.2", "127.0.0.3", "127.0.0.4")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	k.has(2)
	k.endOneEach()
	k.has(3)
}

// With over = "reject" what exceeds the limit is reset and counted as rejected; the
// others are served.
func TestSessionsRejected(t *testing.T) {
	const limit, more = 3, 5
	port := freePort(t)
	b := bindConfig(t, limitedTo(port, "max_sessions_per_source = 3\nover = \"reject\""))
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	clients := newCrowdOf(t)
	for range limit {
		clients.dial(at(port), "127.0.4.1")
	}
	k.has(limit)
	c := atOnce(more, from("127.0.4.1", at(port)))
	if c.count(reset) != more {
		t.Errorf("%s, expected %d resets", c, more)
	}
	clients.dial(at(port), "127.0.4.2")
	k.has(limit + 1)
	b.balance(limit + 1 + more)
	if s := b.status().Total; int(s.Rejected) != more || int(s.Delivered) != limit+1 {
		t.Errorf("%+v", s)
	}
}

// What waits for a session to end waits no longer than hold.busy, and TERM does
// not wait for it longer than hold.time.
func TestSessionsWaitBounded(t *testing.T) {
	for _, end := range []string{"busy", "TERM"} {
		port := freePort(t)
		hold := `hold = { busy = "300ms" }`
		if end == "TERM" {
			hold = `hold = { time = "300ms" }`
		}
		b := bindConfig(t, hold+"\n"+limitedTo(port, "max_sessions_per_source = 1"))
		k := keep1(t, filepath.Join(b.dir, "a.sock"))
		clients := newCrowdOf(t)
		clients.dial(at(port), "127.0.4.1")
		k.has(1)
		waiting := begin(2, from("127.0.4.1", at(port)))
		eventually(t, 5*time.Second, func() error {
			if s := b.status(); s.Total.Waiting != 2 && s.Total.Failed == 0 {
				return fmt.Errorf("%+v", s.Total)
			}
			return nil
		})
		if end == "TERM" {
			b.signal(unix.SIGTERM)
		}
		if c := waiting.end(); c.count(reset) != 2 {
			t.Errorf("%s: %s, expected 2 resets", end, c)
		}
		if end == "TERM" {
			if status := b.wait(10 * time.Second); status != 0 {
				t.Errorf("exit %d", status)
			}
			continue
		}
		for _, target := range b.status().Targets {
			if target.Failed > 0 && target.Causes["max_sessions"] != 2 {
				t.Errorf("%+v", target)
			}
		}
	}
}

// list runs `socketbox sessions --json` with more arguments.
func (b *box) list(args ...string) *binder.Sessions {
	b.t.Helper()
	cmd := socketbox(b.t, here(), 0, append([]string{"sessions", "--json", "--dir", b.dir}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%s: %v", cmd, err)
	}
	mustFit(b.t, "sessions", string(out))
	s := &binder.Sessions{}
	if err := json.Unmarshal(out, s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// ss returns what ss(8) says of established connections to port that some process
// has: a line "CLIENT INODE" each.
func ss(t *testing.T, ns namespace, port int) []string {
	t.Helper()
	out, err := ns.command("ss", "-Htne", "state", "established", "sport", "=", fmt.Sprintf(":%d", port)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		_, inode, _ := strings.Cut(line, "ino:")
		inode, _, _ = strings.Cut(inode, " ")
		found = append(found, strings.ReplaceAll(strings.ReplaceAll(f[3], "[::ffff:", ""), "]", "")+" "+inode)
	}
	slices.Sort(found)
	return found
}

// same compares a list of sessions with what ss says.
func same(t *testing.T, s *binder.Sessions, want []string) {
	t.Helper()
	var got []string
	for _, st := range s.Sessions {
		got = append(got, fmt.Sprintf("%s %d", st.Client, st.Inode))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("sessions: %d\n%s\nss: %d\n%s", len(got), strings.Join(got, "\n"), len(want), strings.Join(want, "\n"))
	}
}

// `socketbox sessions` lists what ss finds in the listener's namespace, with what
// only the dispatcher knew where the rule limits sessions; --kill ends exactly what
// was chosen.
func TestSessionsListed(t *testing.T) {
	const each = 20
	far, near := freePort(t), freePort(t)
	ns := ipNetns(t)
	b := bindConfig(t, fmt.Sprintf(`
[[listener]]
name = "far"
netns = %q
address = "[::]:%d"
[[listener]]
name = "near"
address = "127.0.0.1:%d"
[[rule]]
listener = "far"
target = "DIR/a.sock"
max_sessions = 1000
[[rule]]
target = "DIR/a.sock"
`, ns.name, far, near))
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	clients := newCrowdOf(t)
	var from []string
	for i := range each {
		from = append(from, fmt.Sprintf("127.0.%d.9", i%2+5))
	}
	err := elsewhere(func() error { return enterNamed(ns.name) }, func() error {
		clients.dial(at(far), from...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	clients.dial(at(near), from...)
	k.has(2 * each)
	if _, err := clients.conns[0].Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}

	same(t, b.list("--listener", "far"), ss(t, ns, far))
	same(t, b.list("--listener", "near"), ss(t, here(), near))
	all := b.list()
	if len(all.Sessions) != 2*each || len(all.Unseen) != 0 {
		t.Errorf("%d sessions, expected %d; unseen %v", len(all.Sessions), 2*each, all.Unseen)
	}
	bytes := uint64(0)
	for _, st := range all.Sessions {
		rule := map[string]int{"far": 1, "near": 2}[st.Listener]
		if st.Rule == nil || *st.Rule != rule || st.Target != filepath.Join(b.dir, "a.sock") || st.RTT <= 0 || st.State != "established" {
			t.Errorf("%+v", st)
		}
		if (st.Since != nil) != (st.Listener == "far") || st.Listener == "far" && (st.Age <= 0 || st.Age > 60 || filepath.Base(st.Path) != "a.sock") {
			t.Errorf("what is remembered: %+v", st)
		}
		bytes += st.Received
	}
	if bytes != 5 {
		t.Errorf("%d bytes received, expected 5", bytes)
	}

	kill := func(want int, args ...string) {
		t.Helper()
		if got := b.list(append([]string{"--kill"}, args...)...); len(got.Sessions) != want {
			t.Errorf("%v: ended %d, expected %d", args, len(got.Sessions), want)
		}
	}
	one := b.list("--listener", "near", "--from", "127.0.5.9").Sessions[3].Client
	kill(1, "--from", one)
	kill(each/2, "--listener", "far", "--from", "127.0.5.0/24")
	kill(0, "--listener", "far", "--rule", "2")
	kill(0, "--target", "nothing")
	left := b.list()
	if len(left.Sessions) != 2*each-1-each/2 {
		t.Errorf("%d are left", len(left.Sessions))
	}
	for _, st := range left.Sessions {
		if st.Client == one && st.Listener == "near" || st.Listener == "far" && strings.HasPrefix(st.Client, "127.0.5.") {
			t.Errorf("still there: %+v", st)
		}
	}
	same(t, b.list("--listener", "far"), ss(t, ns, far))
	same(t, b.list("--listener", "near"), ss(t, here(), near))
	for i, c := range clients.conns {
		own, far := c.LocalAddr().String(), i < each
		ended := own == one && !far || far && strings.HasPrefix(own, "127.0.5.")
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		if ended != errors.Is(err, syscall.ECONNRESET) || !ended && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("client %s (far: %v): %v; ended: %v", own, far, err, ended)
		}
	}
	expect(t, socketbox(t, here(), 0, "sessions", "--dir", b.dir, "--kill"), 2, "--all")
	expect(t, socketbox(t, here(), 0, "sessions", "--dir", b.dir, "--from", "nonsense"), 2, "expected a prefix")
}

// Without the right --kill says which one, and ends nothing.
func TestSessionsKillLacksRight(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	b := bindConfig(t, limitedTo(port, ""))
	k := keep1(t, filepath.Join(b.dir, "a.sock"))
	clients := newCrowdOf(t)
	clients.dial(at(port), "127.0.4.1")
	k.has(1)
	expect(t, socketbox(t, namespace{exec: []string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps=-net_admin", "--"}}, 0,
		"sessions", "--dir", b.dir, "--kill", "--all"), 1, "operation not permitted", "hint: it takes CAP_NET_ADMIN")
	if left := b.list(); len(left.Sessions) != 1 {
		t.Errorf("%d sessions are left", len(left.Sessions))
	}
}

// The captures of the operations page.
func TestSessionsCaptures(t *testing.T) {
	s := newStage(t)
	s.must("for a in 203.0.113.9 198.51.100.77 192.0.2.10; do ip address add $a/32 dev lo; done; ip address add 2001:db8:7::5/128 dev lo nodad")
	s.bind(`[[listener]]
name = "db"
address = ":5432"

[[listener]]
name = "web"
address = ":80"

[[rule]]
listener = "db"
target = "pg"
max_sessions = 90
max_sessions_per_source = 10

[[rule]]
remote = "198.51.100.0/24"
target = "reject"

[target.pg]
sockets = "/run/socketbox/"
`)
	for _, port := range []string{"5432", "80"} {
		start(t, s.command("socketbox-inetd", "--port", port, "--", "cat")).waitLog("receiving")
	}
	clients := start(t, s.command("python3", "-c", `
import socket, time
def client(own, to): c = socket.create_connection(to, 5, own); c.sendall(b"hello\n"); return c
keep = [client(("203.0.113.9", 40122), ("192.0.2.10", 5432)), client(("2001:db8:7::5", 51100), ("2001:db8:7::5", 5432)),
        client(("203.0.113.9", 61000), ("192.0.2.10", 80))]
print("connected", flush=True)
time.sleep(100)`))
	clients.waitLog("connected")
	eventually(t, 10*time.Second, func() error {
		list := s.sh("socketbox sessions --json")
		if n := strings.Count(list, `"sent": 6`); n != 3 {
			return fmt.Errorf("%d of 3 clients are served:\n%s", n, list)
		}
		return nil
	})
	s.capture("operations.md", "sessions", "socketbox sessions", "socketbox sessions --listener db --from 203.0.113.0/24 --kill")
}
