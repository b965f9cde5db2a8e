package netns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plainSender starts the older sender, which passes what it accepts to path,
// and returns the port that it accepts on.
func plainSender(t *testing.T, path string, args ...string) int {
	t.Helper()
	p := start(t, here().command(append([]string{compiled(t, "plain_send"), path}, args...)...))
	p.waitLog("port ")
	_, text, _ := strings.Cut(strings.TrimSpace(p.log.String()), " ")
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// The older sender, one byte and one descriptor in a datagram, works with
// socketbox-inetd.
func TestPlainSender(t *testing.T) {
	t.Run("connections", func(t *testing.T) {
		const clients = 200
		dir := publicDir(t)
		inetd(t, unshared(), dir, "--", compiled(t, "answer"), "us")
		port := plainSender(t, filepath.Join(dir, "default.sock"))
		c := rounds(16, clients, to(at(port)))
		c.allServed(t, clients)
		t.Log(c)
	})
	t.Run("environment", func(t *testing.T) {
		dir := publicDir(t)
		inetd(t, unshared(), dir, append([]string{"--"}, environmentOf...)...)
		c := dialFrom(t, "127.82.7.1", at(plainSender(t, filepath.Join(dir, "default.sock"))))
		client, server := ends(c)
		want := tcpEnviron(client, server, "", 1)
		delete(want, "SOCKETBOX_LISTENER") // the plain form has no name for it
		compareEnviron(t, environ(t, c), want)
	})
	// A sender that accepts with SOCK_NONBLOCK would break every program that
	// expects what inetd gave it: a read(2) that waits.
	t.Run("non-blocking", func(t *testing.T) {
		dir := publicDir(t)
		inetd(t, unshared(), dir, "--", compiled(t, "look"))
		lines := lookedAt(t, at(plainSender(t, filepath.Join(dir, "default.sock"), "n")))
		text := strings.Join(lines, "\n")
		if !strings.Contains(text, "\nO_NONBLOCK 0\n") || !strings.Contains(text, "\nread hello\n") {
			t.Errorf("of a connection in non-blocking mode the child says:\n%s", text)
		}
	})
}

// The older receiver, which reads one byte and one descriptor, works with
// socketbox bind.
func TestPlainReceiver(t *testing.T) {
	const clients = 500
	for _, listen := range []string{":", "127.0.0.1:"} {
		t.Run(listen+"PORT", func(t *testing.T) {
			port := freePort(t)
			b := bind(t, "--listen", listen+strconv.Itoa(port))
			p := start(t, unshared().command(compiled(t, "plain_receive"), filepath.Join(b.dir, strconv.Itoa(port)+".sock")))
			p.waitLog("receiving")
			c := rounds(16, clients, to(at(port)))
			c.allServed(t, clients)
			if n := c.by["plain"]; n != clients {
				t.Errorf("%d of %d answers are the receiver's", n, clients)
			}
			t.Log(c)
			b.balance(clients)
		})
	}
}

// What the dispatcher sends is the golden header: one of IPv4 that could not
// be converted says so in its flags, any other has none.
func TestHeaderOnTheWire(t *testing.T) {
	golden, err := os.ReadFile("../../internal/handoff/testdata/header.v1")
	if err != nil {
		t.Fatal(err)
	}
	const flags = 5 // offset of the flags (docs/protocol.md)
	ordinary := bytes.Clone(golden)
	ordinary[flags] = 0
	for _, test := range []struct {
		name   string
		server string
		closed bool // by the client, before it was accepted
		want   []byte
	}{
		{"IPv4", "127.0.0.1", false, ordinary},
		{"IPv6", "::1", false, ordinary},
		{"IPv6, closed", "::1", true, ordinary},
		{"IPv4, closed", "127.0.0.1", true, golden},
	} {
		t.Run(test.name, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, fmt.Sprintf("[[listener]]\nname = \"web\"\naddress = \":%d\"\n", port))
			s := bareReceiver(t, filepath.Join(b.dir, fmt.Sprint(port, ".sock")))
			resume := stopProcess(t, b.status().Dispatcher)
			c, err := net.Dial("tcp", net.JoinHostPort(test.server, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if test.closed {
				c.(*net.TCPConn).CloseWrite()
				time.Sleep(50 * time.Millisecond) // the kernel delivers it meanwhile
			}
			resume()
			payload, modes := bareReceive(t, s)
			if !bytes.Equal(payload, test.want) || !slices.Equal(modes, []int{unix.O_RDWR}) {
				t.Errorf("%q with descriptors in the modes %#x, want %q with one in mode %#x", payload, modes, test.want, unix.O_RDWR)
			}
		})
	}
}

// stopProcess stops a process until resume is called or the test ends.
func stopProcess(t *testing.T, pid int) (resume func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := true
	resume = func() {
		if stopped {
			stopped = false
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	t.Cleanup(resume)
	return resume
}

// bareReceiver is a socket that whoever may reach path can send to.
func bareReceiver(t *testing.T, path string) int {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s) })
	if err := unix.Bind(s, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	return s
}

// bareReceive takes one datagram and returns its payload and the status flags
// (fcntl(2)) of the descriptors that came with it, which it closes.
func bareReceive(t *testing.T, s int) (payload []byte, modes []int) {
	t.Helper()
	payload, control := make([]byte, 1000), make([]byte, 1000)
	n, controlLen, _, _, err := unix.Recvmsg(s, payload, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlLen])
	if err != nil {
		t.Fatal(err)
	}
	for i := range messages {
		came, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range came {
			mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if err != nil {
				t.Error(err)
			}
			modes = append(modes, mode)
			unix.Close(fd)
		}
	}
	return payload[:n], modes
}

// inetdState is what socketbox-inetd --log json says of itself after USR1.
type inetdState struct {
	Running, Held                            int
	Received, Bad, Gone, Lost, Ended, Failed int
	Timeouts                                 int
}

// state asks socketbox-inetd, started with --log json.
func (p *process) state() inetdState {
	p.t.Helper()
	lines := func() []string {
		var found []string
		for line := range strings.Lines(p.log.String()) {
			if strings.Contains(line, `"msg":"state"`) {
				found = append(found, line)
			}
		}
		return found
	}
	before := len(lines())
	p.signal(syscall.SIGUSR1)
	var s inetdState
	eventually(p.t, 5*time.Second, func() error {
		now := lines()
		if len(now) == before {
			return fmt.Errorf("no state in the log")
		}
		return json.Unmarshal([]byte(now[len(now)-1]), &s)
	})
	return s
}

// descriptors lists the open descriptors of a process.
func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		if what, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open = append(open, what)
		}
	}
	return open
}

// send sends one datagram to path: payload, and each of rights in a control
// message of its own.
func send(t *testing.T, path string, payload []byte, rights ...[]int) {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	var control []byte
	for _, fds := range rights {
		control = append(control, unix.UnixRights(fds...)...)
	}
	if err := unix.Sendmsg(s, payload, control, &unix.SockaddrUnix{Name: path}, 0); err != nil {
		t.Fatal(err)
	}
}

// tcpPair is a TCP connection that nobody has ever said anything on: the
// client, and the accepted side, which the caller owns.
func tcpPair(t *testing.T) (client net.Conn, accepted *os.File) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err = c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	return client, accepted
}

// newSocket returns a socket, listening if it is one of a stream.
func newSocket(t *testing.T, domain, kind int, listen bool) *os.File {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil && listen && domain == unix.AF_UNIX {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(t.TempDir(), "s")})
	}
	if err == nil && listen {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "socket")
}

// opened opens a file or directory.
func opened(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Whatever is sent to socketbox-inetd's socket that is no hand-off is counted
// and closed, and the next connection is served.
func TestBadInput(t *testing.T) {
	one, header := []byte{0}, []byte("sbox\x01\x00\x03web")
	file := func(f *os.File) []*os.File { return []*os.File{f} }
	tcp := func(n int) func(*testing.T) []*os.File {
		return func(t *testing.T) (all []*os.File) {
			for range n {
				_, accepted := tcpPair(t)
				all = append(all, accepted)
			}
			return all
		}
	}
	socket := func(domain, kind int, listen bool) func(*testing.T) []*os.File {
		return func(t *testing.T) []*os.File { return file(newSocket(t, domain, kind, listen)) }
	}
	open := func(path string, flags int) func(*testing.T) []*os.File {
		return func(t *testing.T) []*os.File { return file(opened(t, path, flags)) }
	}
	nothing := tcp(0)
	tests := []struct {
		name    string
		payload []byte
		with    func(*testing.T) []*os.File
		apart   bool // each descriptor in a control message of its own
		counted func(inetdState) int
	}{
		{name: "no descriptor", payload: one, with: nothing},
		{name: "header without descriptor", payload: header, with: nothing},
		{name: "two descriptors", payload: one, with: tcp(2)},
		{name: "two descriptors in two messages", payload: one, with: tcp(2), apart: true},
		{name: "as many descriptors as the kernel lets through", payload: header, with: tcp(253)},
		{name: "regular file", payload: one, with: open("wire_test.go", os.O_RDONLY)},
		{name: "directory", payload: header, with: open(".", os.O_RDONLY)},
		{name: "O_PATH", payload: one, with: open("wire_test.go", unix.O_PATH)},
		{name: "device", payload: one, with: open("/dev/null", os.O_RDWR)},
		{name: "pipe", payload: one, with: func(t *testing.T) []*os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			w.Close()
			return file(r)
		}},
		{name: "UDP", payload: one, with: socket(unix.AF_INET, unix.SOCK_DGRAM, false)},
		{name: "UDP of IPv6", payload: header, with: socket(unix.AF_INET6, unix.SOCK_DGRAM, false)},
		{name: "Unix datagram", payload: one, with: socket(unix.AF_UNIX, unix.SOCK_DGRAM, false)},
		{name: "Unix seqpacket", payload: one, with: socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, false)},
		{name: "netlink", payload: one, with: socket(unix.AF_NETLINK, unix.SOCK_RAW, false)},
		{name: "listening TCP", payload: header, with: socket(unix.AF_INET, unix.SOCK_STREAM, true)},
		{name: "listening Unix", payload: one, with: socket(unix.AF_UNIX, unix.SOCK_STREAM, true)},
		{name: "empty", with: nothing},
		{name: "empty with a connection", with: tcp(1)},
		{name: "one byte too long", payload: make([]byte, 129), with: tcp(1)},
		{name: "64 KiB", payload: make([]byte, 64<<10), with: tcp(1)},
		{name: "64 KiB without descriptor", payload: make([]byte, 64<<10), with: nothing},
		// These two are connections once, and nobody's now.
		{name: "never connected", payload: one, with: socket(unix.AF_INET, unix.SOCK_STREAM, false), counted: func(s inetdState) int { return s.Gone }},
		{name: "connection that its client has reset", payload: header, with: func(t *testing.T) []*os.File {
			client, accepted := tcpPair(t)
			client.(*net.TCPConn).SetLinger(0)
			client.Close()
			time.Sleep(20 * time.Millisecond)
			return file(accepted)
		}, counted: func(s inetdState) int { return s.Gone }},
	}
	dir := publicDir(t)
	path := filepath.Join(dir, "default.sock")
	p := inetd(t, unshared(), dir, "--log", "json", "--", compiled(t, "answer"), "us")
	checkServes(t, path)
	before := settledDescriptors(t, p)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			counted := test.counted
			if counted == nil {
				counted = func(s inetdState) int { return s.Bad }
			}
			was := p.state()
			var rights [][]int
			for _, f := range test.with(t) {
				defer f.Close()
				if test.apart || len(rights) == 0 {
					rights = append(rights, nil)
				}
				rights[len(rights)-1] = append(rights[len(rights)-1], int(f.Fd()))
			}
			send(t, path, test.payload, rights...)
			checkServes(t, path) // comes after it in the queue
			if now := p.state(); counted(now) != counted(was)+1 || now.Bad+now.Gone != was.Bad+was.Gone+1 || now.Lost != was.Lost {
				t.Errorf("counted before: %+v, after: %+v", was, now)
			}
		})
	}
	if after := settledDescriptors(t, p); len(after) != len(before) {
		t.Errorf("open before:\n%s\nopen after:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	p.waitLog("refused a datagram")
}

// checkServes hands a connection to path and fails the test unless it is
// served.
func checkServes(t *testing.T, path string) {
	t.Helper()
	client, accepted := tcpPair(t)
	send(t, path, []byte{0}, []int{int(accepted.Fd())})
	accepted.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	var text [100]byte
	n, err := client.Read(text[:])
	if want := "us " + client.LocalAddr().String() + "\n"; string(text[:n]) != want || err != nil {
		t.Errorf("a good connection got %q, %v; want %q", text[:n], err, want)
	}
}

// settledDescriptors are the descriptors of socketbox-inetd when nothing runs.
func settledDescriptors(t *testing.T, p *process) []string {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		if s := p.state(); s.Running+s.Held > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return descriptors(t, p.pid())
}
