package preload

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// datagram sends payload and descriptors to a receiving socket.
func datagram(t *testing.T, path, payload string, fds ...int) {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(s, []byte(payload), rights, &unix.SockaddrUnix{Name: path}, 0); err != nil {
		t.Fatalf("send %q: %v", payload, err)
	}
}

func descriptor(t *testing.T, fd int, err error) int {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// badOnes are datagrams that never may reach a daemon.
func badOnes(t *testing.T, path string) {
	t.Helper()
	socket := func(domain, kind, protocol int) int {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		return descriptor(t, fd, err)
	}
	var pipe [2]int
	descriptor(t, pipe[0], unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	listening := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	udp := socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err := unix.Connect(udp, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	datagram(t, path, "no descriptor")
	datagram(t, path, "")
	datagram(t, path, "x", pipe[0])
	datagram(t, path, "x", udp)
	datagram(t, path, "x", socket(unix.AF_NETLINK, unix.SOCK_RAW, 0))
	datagram(t, path, "x", socket(unix.AF_UNIX, unix.SOCK_STREAM, 0))
	datagram(t, path, "x", socket(unix.AF_INET, unix.SOCK_STREAM, 0))
	datagram(t, path, "x", listening)
}

// pair returns both ends of a TCP connection.
func pair(t *testing.T) (client *net.TCPConn, server int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, err := s.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	return c.(*net.TCPConn), descriptor(t, fd, err)
}

func TestBadHandoffsNeverReachTheDaemon(t *testing.T) {
	b := bind(t)
	p := b.small(plain(), []string{"SOCKETBOX_DEBUG=1"}, "many", fmt.Sprint(b.port), "3")
	path := b.path(".sock")
	badOnes(t, path)
	b.mustAsk("4", true)
	surplus, one := pair(t)
	_, two := pair(t)
	datagram(t, path, "x", one, two)
	long, three := pair(t)
	datagram(t, path, strings.Repeat("x", 129), three)
	unix.Close(one)
	unix.Close(three)
	b.mustAsk("6", true)
	for _, c := range []*net.TCPConn{surplus, long} {
		if said, _ := io.ReadAll(c); len(said) > 0 {
			t.Errorf("a bad hand-off was served: %q", said)
		}
	}
	// Any payload of 1..128 bytes is good, and O_NONBLOCK does not stick.
	client, four := pair(t)
	unix.SetNonblock(four, true)
	datagram(t, path, strings.Repeat("\xff", 128), four)
	unix.Close(four)
	if said, err := io.ReadAll(client); err != nil || len(said) == 0 {
		t.Errorf("garbage payload: %q, %v", said, err)
	}
	p.wait(0) // which has counted its descriptors
	if n := strings.Count(p.log.String(), "bad hand-off"); n != 10 {
		t.Errorf("%d bad hand-offs were noted, not 10:\n%s", n, p.log)
	}
}

func TestOnlyFrom(t *testing.T) {
	b := bind(t)
	stat, err := os.Stat(fmt.Sprintf("/proc/%d", b.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	uid := stat.Sys().(*syscall.Stat_t).Uid
	p := b.small(plain(), []string{fmt.Sprintf("SOCKETBOX_FROM=%d", uid), "SOCKETBOX_DEBUG=1"}, "many", fmt.Sprint(b.port), "1")
	b.mustAsk("4", true)
	p.wait(0)
	p = b.small(plain(), []string{fmt.Sprintf("SOCKETBOX_FROM=%d", uid+12345), "SOCKETBOX_DEBUG=1", "SOCKETBOX_HANDOFF=connection"}, "many", fmt.Sprint(b.port), "1")
	if err := b.ask("4", true); err == nil {
		t.Error("a stranger's connection was served")
	}
	p.waitLog("sender is another user")
}

func TestIPv6ClientOfAnIPv4Listener(t *testing.T) {
	b := bind(t)
	p := b.small(plain(), nil, "plain", "4", fmt.Sprint(b.port), "3")
	var names []string
	for range 2 {
		c := b.dial("6")
		line, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(line), "24") && !strings.HasPrefix(string(line), "25") {
			t.Fatalf("the daemon says %q, %v: no address of 240.0.0.0/4", line, err)
		}
		if !strings.Contains(string(line), fmt.Sprintf(":%d ", c.LocalAddr().(*net.TCPAddr).Port)) {
			t.Errorf("the daemon says %q: not the client's port", line)
		}
		name, _, _ := strings.Cut(string(line), ":")
		names = append(names, name)
	}
	if names[0] != names[1] {
		t.Errorf("one client, two addresses: %v", names)
	}
	b.mustAsk("4", false)
	p.wait(0)
	p = b.small(plain(), []string{"SOCKETBOX_V6=reject", "SOCKETBOX_DEBUG=1"}, "plain", "4", fmt.Sprint(b.port), "1")
	c := b.dial("6")
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("SOCKETBOX_V6=reject: %v, not a reset", err)
	}
	p.waitLog("rejected an IPv6 client (1 so far)")
	b.mustAsk("4", false)
	p.wait(0)
}

func TestModeWhateverTheUmask(t *testing.T) {
	for _, umask := range []string{"000", "077", "777"} {
		b := bind(t)
		p := b.daemon(plain(), nil, "sh", "-c", "umask "+umask+" && exec "+filepath.Join(daemons, "many")+fmt.Sprintf(" %d 1", b.port))
		p.waitLog("ready")
		st, err := os.Stat(b.path(".sock"))
		if err != nil || st.Mode().Perm() != 0o660 {
			t.Errorf("umask %s: %v, %v", umask, st, err)
		}
		entries, _ := os.ReadDir(b.dir)
		if len(entries) != 2 { // the binder's own loan socket is the other
			t.Errorf("umask %s: left behind: %v", umask, entries)
		}
		b.mustAsk("4", true)
		p.wait(0)
	}
}

func TestAnotherProcessTakesOver(t *testing.T) {
	b := bind(t)
	first := b.small(plain(), nil, "closed", fmt.Sprint(b.port))
	b.mustAsk("4", false)
	waiting := b.dial("4") // nobody accepts it
	defer waiting.Close()
	second := b.small(plain(), nil, "reuseport", fmt.Sprint(b.port))
	for range 6 {
		b.mustAsk("4", false)
	}
	first.stdin.Write([]byte("\n"))
	first.waitLog("closed")
	line, err := io.ReadAll(waiting)
	if want := seen(waiting.LocalAddr(), false); err != nil || !strings.HasPrefix(string(line), want+" ") {
		t.Errorf("what waited got %q, %v", line, err)
	}
	b.mustAsk("4", false)
	second.wait(0)
	// Without SO_REUSEPORT it is an error, as with TCP.
	alive := b.small(plain(), nil, "many", fmt.Sprint(b.port), "1")
	loser := b.daemon(plain(), nil, filepath.Join(daemons, "many"), fmt.Sprint(b.port), "1")
	loser.wait(1)
	if !strings.Contains(loser.log.String(), "address already in use") {
		t.Errorf("the second binder says:\n%s", loser.log)
	}
	b.mustAsk("4", true)
	alive.wait(0)
}

func TestSiblingsShareAPort(t *testing.T) {
	b := bind(t)
	p := b.small(plain(), nil, "siblings", fmt.Sprint(b.port))
	b.crowd(100, 16, "4", false)
	p.stdin.Write([]byte("\n"))
	p.wait(0)
	gone(t, b.path(".ipv4.sock"))
}

func TestWhatWaitsWhenAListenerEndsIsReset(t *testing.T) {
	b := bind(t)
	p := b.small(plain(), nil, "closed", fmt.Sprint(b.port))
	b.mustAsk("4", false)
	waiting := b.dial("4")
	defer waiting.Close()
	b.delivered(2)
	p.stdin.Write([]byte("\n"))
	p.waitLog("closed with 1 connections waiting: reset")
	if _, err := io.ReadAll(waiting); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, not a reset", err)
	}
	gone(t, b.path(".ipv4.sock"))
	// Whoever comes then is held until a daemon is back.
	held := b.dial("4")
	defer held.Close()
	b.small(plain(), nil, "plain", "4", fmt.Sprint(b.port), "1")
	if line, err := io.ReadAll(held); err != nil || len(line) == 0 {
		t.Errorf("held: %q, %v", line, err)
	}
}

func TestJailedDaemon(t *testing.T) {
	user := "65534"
	if os.Getenv(insideMark) != "" {
		user = "0" // no other user is there
	}
	b := bind(t)
	p := b.small(plain(), nil, "jailed", fmt.Sprint(b.port), t.TempDir(), user)
	for _, family := range []string{"4", "6", "4"} {
		b.mustAsk(family, true)
	}
	p.wait(0)
}
