package netns

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// service is a listener on a port of its own and socketbox-inetd behind it,
// in a namespace without any network, with a child that answers.
type service struct {
	*box
	port   int
	inetd  *process
	args   []string
	answer string
}

// serve starts a service; args are flags of socketbox-inetd, and took is how
// many milliseconds a child takes.
func serve(t *testing.T, took int, args ...string) *service {
	t.Helper()
	s := &service{port: freePort(t), answer: compiled(t, "answer")}
	s.box = bind(t, "--listen", fmt.Sprint(":", s.port))
	s.args = append(append([]string{"--log", "json"}, args...), "--", s.answer, "us", strconv.Itoa(took), s.journal())
	s.start(t)
	return s
}

func (s *service) start(t *testing.T) {
	t.Helper()
	s.inetd = inetd(t, unshared(), s.dir, s.args...)
}

// journal is where the children write down when they begin and end.
func (s *service) journal() string { return filepath.Join(filepath.Dir(s.dir), "journal") }

// atOnce reads the journal: the most children at once, in all and for one
// client address.
func (s *service) atOnce(t *testing.T) (all, perSource int) {
	t.Helper()
	text, err := os.ReadFile(s.journal())
	if err != nil {
		t.Fatal(err)
	}
	now, of := 0, map[string]int{}
	for line := range strings.Lines(string(text)) {
		sign, source, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		change := map[string]int{"+": 1, "-": -1}[sign]
		now += change
		of[source] += change
		all, perSource = max(all, now), max(perSource, of[source])
	}
	if now != 0 {
		t.Errorf("%d children have not ended", now)
	}
	return all, perSource
}

// --max bounds the children; whoever is above it waits and is served.
func TestMax(t *testing.T) {
	const clients, most = 100, 4
	s := serve(t, 20, "--max", strconv.Itoa(most))
	open := settledDescriptors(t, s.inetd)
	c := atOnce(clients, to(at(s.port)))
	t.Log(c)
	c.allServed(t, clients)
	if all, _ := s.atOnce(t); all != most {
		t.Errorf("%d children at once, not %d", all, most)
	}
	s.balance(clients)
	if now := settledDescriptors(t, s.inetd); len(now) != len(open) {
		t.Errorf("%d descriptors open before, %d after: %v", len(open), len(now), now)
	}
}

// --max-per-source bounds those of one client address and delays no other.
func TestMaxPerSource(t *testing.T) {
	const clients, sources, took = 40, 4, 50
	s := serve(t, took, "--max-per-source", "1")
	c := atOnce(clients, func(i int) client { return client{to: at(s.port), from: fmt.Sprintf("127.0.4.%d", i%sources+1)} })
	t.Log(c)
	c.allServed(t, clients)
	all, perSource := s.atOnce(t)
	if perSource != 1 || all != sources {
		t.Errorf("of %d sources there were %d children at once, %d of one source", sources, all, perSource)
	}
	// One source with many clients does not delay another one.
	crowd := begin(clients, from("127.0.4.1", at(s.port)))
	time.Sleep(2 * took * time.Millisecond)
	if v := (client{to: at(s.port), from: "127.0.4.9"}).visit(); v.outcome != served || v.took > clients/2*took*time.Millisecond {
		t.Errorf("beside a crowd from another address: %s after %v", v.outcome, v.took)
	}
	crowd.end().allServed(t, clients)
}

// An IPv6 client counts by its /64, which is one customer's.
func TestMaxPerSourceOfIPv6(t *testing.T) {
	ns := ipNetns(t)
	local := []string{"2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"}
	for _, a := range local {
		ns.ip(t, "-6 addr add "+a+"/128 dev lo nodad")
	}
	const port = 8080
	b := bindIn(t, ns, socketDir(t), "--listen", fmt.Sprint("[::1]:", port))
	s := &service{box: b}
	inetd(t, unshared(), b.dir, "--max-per-source", "1", "--", compiled(t, "answer"), "us", "100", s.journal())
	var conns []net.Conn
	for i := range 9 {
		from := netip.AddrPortFrom(netip.MustParseAddr(local[i%len(local)]), 0)
		conns = append(conns, ns.dial(t, from, netip.AddrPortFrom(netip.IPv6Loopback(), port), ""))
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(clientLimit))
		text := make([]byte, 100)
		n, err := c.Read(text)
		if want := "us " + c.LocalAddr().String() + "\n"; string(text[:n]) != want || err != nil {
			t.Errorf("%q, %v; want %q", text[:n], err, want)
		}
		c.Close()
	}
	eventually(t, 5*time.Second, func() error {
		if text, _ := os.ReadFile(s.journal()); bytes.Count(text, []byte("-")) != len(conns) {
			return fmt.Errorf("not all children have ended: %s", text)
		}
		return nil
	})
	if all, _ := s.atOnce(t); all != 2 {
		t.Errorf("clients of two /64 had %d children at once, not two", all)
	}
}

// --rate delays what comes too fast, and is over as soon as it is quiet.
func TestRate(t *testing.T) {
	const rate, burst, clients = 20, 20, 60
	s := serve(t, 0, "--rate", fmt.Sprint(rate, "/s"))
	begun := time.Now()
	c := atOnce(clients, to(at(s.port)))
	took, least := time.Since(begun), time.Second*(clients-burst)/rate
	t.Logf("%d clients in %v: %s", clients, took.Round(time.Millisecond), c)
	c.allServed(t, clients)
	if took < least-50*time.Millisecond || took > least+2*time.Second {
		t.Errorf("%d clients at %d/s took %v, not %v", clients, rate, took, least)
	}
	time.Sleep(500 * time.Millisecond)
	begun = time.Now()
	atOnce(rate/4, to(at(s.port))).allServed(t, rate/4)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("after a pause %d clients took %v", rate/4, took)
	}
}

// --timeout ends a child, with KILL if TERM does not do.
func TestTimeout(t *testing.T) {
	const limit, kill = 300 * time.Millisecond, 200 * time.Millisecond
	for _, test := range []struct {
		name, script string
		least        time.Duration
	}{
		{"ends by TERM", "sleep 60", limit},
		{"ignores TERM", "trap '' TERM; sleep 60; sleep 60", limit + kill},
	} {
		t.Run(test.name, func(t *testing.T) {
			port := freePort(t)
			b := bind(t, "--listen", at(port))
			p := inetd(t, unshared(), b.dir, "--log", "json", "--timeout", limit.String(), "--kill-after", kill.String(), "--", "sh", "-c", test.script)
			v := client{to: at(port)}.visit()
			hold := 200 * time.Millisecond // what the first client of default.sock waits
			if v.outcome != empty || v.took < test.least || v.took > test.least+hold+time.Second {
				t.Errorf("the client was %s after %v, not %s after %v", v.outcome, v.took, empty, test.least)
			}
			eventually(t, 5*time.Second, func() error {
				if s := p.state(); s.Running != 0 || s.Timeouts != 1 {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
		})
	}
}

// --from takes connections of one user alone.
func TestFrom(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	sender := b.status().UID
	answer := compiled(t, "answer")
	for _, test := range []struct {
		uid  int
		want string
		bad  int
	}{{sender, served, 0}, {sender + 1, empty, 1}} {
		p := inetd(t, unshared(), b.dir, "--log", "json", "--from", strconv.Itoa(test.uid), "--", answer, "us")
		if v := (client{to: at(port)}).visit(); v.outcome != test.want {
			t.Errorf("--from %d, the sender is uid %d: the client was %s, not %s", test.uid, sender, v.outcome, test.want)
		}
		if s := p.state(); s.Bad != test.bad {
			t.Errorf("--from %d, the sender is uid %d: %+v", test.uid, sender, s)
		}
		p.signal(syscall.SIGTERM)
		p.wait(5 * time.Second)
	}
}

// TERM under load loses nobody: what is queued or held is served, what comes
// later waits for the next one, which may start while the last children run.
func TestInetdTermUnderLoad(t *testing.T) {
	const restarts, clients = 5, 24
	for _, flags := range [][]string{
		{"--max", "3"},            // the others wait in the receiving socket
		{"--max-per-source", "3"}, // the others wait in socketbox-inetd
	} {
		t.Run(flags[0], func(t *testing.T) {
			s := serve(t, 10, flags...)
			load := keep(clients, 0, to(at(s.port)))
			waited := 0
			for range restarts {
				time.Sleep(300 * time.Millisecond)
				if !strings.Contains(s.replace(t), `"held":0`) {
					waited++
				}
			}
			time.Sleep(300 * time.Millisecond)
			c := load.end()
			t.Log(c)
			c.allServed(t, c.total())
			if waited == 0 || c.total() < 3*clients {
				t.Errorf("no load: %d clients, in %d of %d cases some waited at the time of TERM", c.total(), waited, restarts)
			}
			s.balance(c.total())
		})
	}
}

// replace ends socketbox-inetd by TERM, starts the next as soon as its path is
// free, and returns the log of the one that ended.
func (s *service) replace(t *testing.T) string {
	t.Helper()
	old := s.inetd
	old.signal(syscall.SIGTERM)
	eventually(t, 5*time.Second, func() error {
		if _, err := os.Stat(filepath.Join(s.dir, "default.sock")); err == nil {
			return fmt.Errorf("the receiving socket is still there")
		}
		return nil
	})
	s.start(t)
	if status := old.wait(10 * time.Second); status != 0 {
		t.Errorf("ended with %d: %s", status, old.log)
	}
	return old.log.String()
}

// The receiving socket has the rights asked for, whatever the umask.
func TestSocketRights(t *testing.T) {
	needRoot(t)
	group, err := user.LookupGroup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		umask string
		args  []string
		mode  fs.FileMode
		group string
	}{
		{"0", nil, 0o660, "0"},
		{"077", nil, 0o660, "0"},
		{"077", []string{"--mode", "0606", "--group", "daemon"}, 0o606, group.Gid},
		{"0", []string{"--mode", "600"}, 0o600, "0"},
	} {
		t.Run(fmt.Sprint(test.umask, test.args), func(t *testing.T) {
			dir := publicDir(t)
			ns := namespace{exec: []string{"sh", "-c", "umask " + test.umask + ` && exec "$@"`, "sh"}}
			inetd(t, ns, dir, append(test.args, "--", "true")...)
			info, err := os.Stat(filepath.Join(dir, "default.sock"))
			if err != nil {
				t.Fatal(err)
			}
			gid := fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid)
			if info.Mode().Perm() != test.mode || gid != test.group {
				t.Errorf("mode %04o, group %s; want %04o, %s", info.Mode().Perm(), gid, test.mode, test.group)
			}
		})
	}
}

// A child is in a session of its own, has no descriptor but three and no
// signal blocked or ignored, and is what the flags say.
func TestChild(t *testing.T) {
	const script = `echo $$; pwd; nice; ulimit -n; id -u; id -g; echo err >&2; echo end; read -r line`
	dir := publicDir(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		flags []string
		root  bool
		want  []string // after the process id
	}{
		{"flags", []string{"--chdir", dir, "--nice", "5", "--rlimit", "nofile=77", "--stderr", "socket"}, false,
			[]string{dir, "5", "77", strconv.Itoa(os.Geteuid()), strconv.Itoa(os.Getegid()), "err"}},
		{"user", []string{"--chdir", dir, "--user", "nobody", "--stderr", "null", "--nice", "0", "--rlimit", "nofile=78:79"}, true,
			[]string{dir, "0", "78", nobody.Uid, nobody.Gid}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.root {
				needRoot(t)
			}
			port := freePort(t)
			b := bind(t, "--listen", at(port))
			inetd(t, unshared(), b.dir, append(test.flags, "--", "sh", "-c", script)...)
			c := dialFrom(t, "127.0.0.1", at(port))
			defer c.Close()
			lines := linesUntil(t, c, "end")
			if !slices.Equal(lines[1:], test.want) {
				t.Errorf("%q, want %q", lines[1:], test.want)
			}
			pid, err := strconv.Atoi(lines[0])
			if err != nil {
				t.Fatal(err)
			}
			if session, err := unix.Getsid(pid); session != pid || err != nil {
				t.Errorf("the child %d is in session %d, %v", pid, session, err)
			}
			if open := descriptors(t, pid); len(open) != 3 {
				t.Errorf("the child has the descriptors %q", open)
			}
			for _, line := range []string{"SigBlk:\t0000000000000000\n", "SigIgn:\t0000000000000000\n"} {
				if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); !strings.Contains(string(status), line) {
					t.Errorf("no line %q in the child's status, %v:\n%s", line, err, status)
				}
			}
		})
	}
}

// linesUntil reads lines up to one that says end.
func linesUntil(t *testing.T, c net.Conn, end string) []string {
	t.Helper()
	c.SetDeadline(time.Now().Add(clientLimit))
	var lines []string
	for from := bufio.NewScanner(c); from.Scan(); {
		if from.Text() == end {
			return lines
		}
		lines = append(lines, from.Text())
	}
	t.Fatalf("no %q after %q", end, lines)
	return nil
}

// user12345 is somebody without any right: a user of the machine or, where
// the tests are not root, of a user namespace.
func user12345() namespace {
	if os.Getenv(insideMark) != "" {
		return namespace{exec: []string{"unshare", "-U", "--map-user=12345", "--map-group=12345", "--"}}
	}
	return namespace{exec: []string{"setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "--"}}
}

// within returns the namespace as it is entered from another one.
func (n namespace) within(outer namespace) namespace {
	return namespace{exec: slices.Concat(outer.exec, n.exec)}
}

// ownRun is a mount namespace with an empty /run.
func ownRun(t *testing.T) namespace {
	t.Helper()
	holder := start(t, exec.Command("unshare", "-m", "--", "sh", "-c", "mount -t tmpfs -o mode=755 tmpfs /run && echo ready && exec sleep 1000"))
	holder.waitLog("ready")
	return namespace{exec: []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", holder.pid()), "--"}}
}

// Without any flag but where to listen, socketbox bind and socketbox-inetd
// find each other, whichever comes first, also for a client that comes
// between them.
func TestStartOrder(t *testing.T) {
	for _, who := range []struct {
		name string
		// prepare returns where both run, how inetd gets into a network
		// namespace of its own there, and their environment.
		prepare func(*testing.T) (place, isolation namespace, environment []string)
	}{
		{"root", func(t *testing.T) (place, isolation namespace, environment []string) {
			return ownRun(t), unshared(), nil
		}},
		{"ordinary user", func(t *testing.T) (place, isolation namespace, environment []string) {
			run := publicDir(t)
			if os.Getenv(insideMark) == "" {
				if err := os.Chown(run, 12345, 12345); err != nil {
					t.Fatal(err)
				}
			}
			// As oneself in a user namespace, not as its uid 0, for whom the
			// main directory is root's.
			return user12345(), namespace{exec: []string{"unshare", "--map-current-user", "-n", "--"}}, []string{"XDG_RUNTIME_DIR=" + run}
		}},
	} {
		for _, first := range []string{"bind", "inetd"} {
			t.Run(who.name+", "+first+" first", func(t *testing.T) {
				place, isolation, environment := who.prepare(t)
				port := freePort(t)
				run := func(ns namespace, program string, args ...string) *process {
					cmd := ns.command(append([]string{publicCopy(t, filepath.Join(programs, program))}, args...)...)
					cmd.Env = append(cmd.Environ(), environment...)
					return start(t, cmd)
				}
				bind := func() { run(place, "socketbox", "bind", "--listen", at(port)).waitLog("serving") }
				answer := compiled(t, "answer")
				inetd := func() *process { return run(isolation.within(place), "socketbox-inetd", "--", answer, "us") }
				if first == "bind" {
					bind()
					early := begin(3, to(at(port)))
					time.Sleep(100 * time.Millisecond)
					inetd().waitLog("receiving")
					early.end().allServed(t, 3)
				} else {
					p := inetd()
					if who.name == "root" {
						p.waitLog("waiting for the socket directory")
					} else {
						p.waitLog("receiving") // a user's own directory is made by whoever comes first
					}
					bind()
					p.waitLog("receiving")
				}
				c := rounds(4, 20, to(at(port)))
				t.Log(c)
				c.allServed(t, 20)
			})
		}
	}
}
