package sockdiag

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) int {
	t.Helper()
	fd, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// pair is an accepted connection and its client.
type pair struct {
	client, server *net.TCPConn
	cookie         uint64
}

func (p *pair) close() {
	p.client.Close()
	p.server.Close()
}

func listenOn(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func portOf(l *net.TCPListener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

func connect(t *testing.T, l *net.TCPListener, to string) *pair {
	t.Helper()
	c, err := net.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(int(portOf(l)))))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{client: c.(*net.TCPConn), server: s}
	t.Cleanup(p.close)
	raw, err := s.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { p.cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func dump(t *testing.T, fd int, q Query) map[uint64]Socket {
	t.Helper()
	all := map[uint64]Socket{}
	if err := Dump(fd, q, func(s *Socket) error { all[s.Cookie] = *s; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDump(t *testing.T) {
	fd := open(t)
	for _, address := range []struct{ listen, dial string }{{"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {"[::]:0", "127.0.0.1"}} {
		l := listenOn(t, address.listen)
		a, b := connect(t, l, address.dial), connect(t, l, address.dial)
		if _, err := a.client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.server.Read(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		found := dump(t, fd, Query{States: Connections, LocalPort: portOf(l), Info: true})
		if len(found) != 2 {
			t.Fatalf("%s: %d sockets, expected 2: %+v", address.listen, len(found), found)
		}
		s := found[a.cookie]
		if local := s.Local.Addr().Unmap(); local != netip.MustParseAddr(address.dial) {
			t.Errorf("%s: local %s", address.listen, s.Local)
		}
		want := a.server.RemoteAddr().(*net.TCPAddr).AddrPort()
		if netip.AddrPortFrom(s.Remote.Addr().Unmap(), s.Remote.Port()) != netip.AddrPortFrom(want.Addr().Unmap(), want.Port()) {
			t.Errorf("%s: remote %s, expected %s", address.listen, s.Remote, want)
		}
		if s.State != Established || s.Inode == 0 || int(s.UID) != os.Geteuid() {
			t.Errorf("%s: %+v", address.listen, s)
		}
		if s.Info == nil || s.Info.Received != 1000 || s.Info.RTT <= 0 || s.Info.RTT > time.Second {
			t.Errorf("%s: info %+v", address.listen, s.Info)
		}
		if quiet := found[b.cookie]; quiet.Info == nil || quiet.Info.Received != 0 {
			t.Errorf("%s: info of an idle connection %+v", address.listen, quiet.Info)
		}
		listening := dump(t, fd, Query{States: Listening, LocalPort: portOf(l)})
		if len(listening) != 1 {
			t.Errorf("%s: %d listeners: %+v", address.listen, len(listening), listening)
		}
		if got := dump(t, fd, Query{States: StatesOf(CloseWait), LocalPort: portOf(l)}); len(got) != 0 {
			t.Errorf("%s: in CLOSE_WAIT: %+v", address.listen, got)
		}
	}
}

func TestAlive(t *testing.T) {
	fd := open(t)
	l := listenOn(t, "[::]:0")
	for _, dial := range []string{"127.0.0.1", "::1"} {
		p := connect(t, l, dial)
		s := dump(t, fd, Query{States: Connections, LocalPort: portOf(l)})[p.cookie]
		got, err := Alive(fd, &s)
		if err != nil || got.Cookie != p.cookie {
			t.Fatalf("%s: %+v, %v", dial, got, err)
		}
		other := s
		other.Cookie++
		if _, err := Alive(fd, &other); !errors.Is(err, ErrGone) {
			t.Errorf("%s: another cookie: %v", dial, err)
		}
		p.close()
		if _, err := Alive(fd, &s); !errors.Is(err, ErrGone) {
			t.Errorf("%s: after the end: %v", dial, err)
		}
	}
}

// events collects the ends that come within a second, until want are there.
func events(t *testing.T, fd, want int) map[uint64]bool {
	t.Helper()
	ended := map[uint64]bool{}
	buf := make([]byte, EventBuffer)
	for range 100 {
		err := ReadEvents(fd, buf, 1000, func(s *Socket) { ended[s.Cookie] = true })
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		if len(ended) >= want {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ended
}

func TestEvents(t *testing.T) {
	fd := open(t)
	watched, other := listenOn(t, "[::]:0"), listenOn(t, "127.0.0.1:0")
	if err := errors.Join(Subscribe(fd), FilterPorts(fd, []uint16{1, portOf(watched), 2})); err != nil {
		t.Fatal(err)
	}
	stays := connect(t, watched, "127.0.0.1")
	ends := []*pair{connect(t, watched, "127.0.0.1"), connect(t, watched, "::1")}
	elsewhere := connect(t, other, "127.0.0.1")
	elsewhere.close()
	for _, p := range ends {
		p.close()
	}
	ended := events(t, fd, 2)
	if !ended[ends[0].cookie] || !ended[ends[1].cookie] || len(ended) != 2 {
		t.Errorf("ended: %v, expected %d and %d (not %d: it lives; not %d: another port)",
			ended, ends[0].cookie, ends[1].cookie, stays.cookie, elsewhere.cookie)
	}
	if err := FilterPorts(fd, nil); err != nil {
		t.Fatal(err)
	}
	elsewhere = connect(t, other, "127.0.0.1")
	elsewhere.close()
	if ended := events(t, fd, 2); !ended[elsewhere.cookie] {
		t.Errorf("without a filter: %v, expected %d", ended, elsewhere.cookie)
	}
	if err := errors.Join(FilterPorts(fd, nil), Unsubscribe(fd)); err != nil {
		t.Error(err)
	}
}

// What does not fit in the socket's buffer is reported as lost, once, and what
// comes later is heard.
func TestEventsLost(t *testing.T) {
	fd := open(t)
	l := listenOn(t, "127.0.0.1:0")
	err := errors.Join(Subscribe(fd), FilterPorts(fd, []uint16{portOf(l)}), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		connect(t, l, "127.0.0.1").close()
	}
	time.Sleep(100 * time.Millisecond) // the kernel reports from a work queue
	lost, buf := 0, make([]byte, EventBuffer)
	for range 100 {
		err := ReadEvents(fd, buf, 1000, func(*Socket) {})
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		lost++
	}
	if lost == 0 {
		t.Fatal("50 events in a buffer for 4, and none is lost")
	}
	p := connect(t, l, "127.0.0.1")
	p.close()
	if ended := events(t, fd, 1); !ended[p.cookie] {
		t.Errorf("after the loss: %v, expected %d", ended, p.cookie)
	}
}

func TestDestroy(t *testing.T) {
	fd := open(t)
	l := listenOn(t, "[::]:0")
	victim, stays := connect(t, l, "127.0.0.1"), connect(t, l, "127.0.0.1")
	found := dump(t, fd, Query{States: Connections, LocalPort: portOf(l)})
	s := found[victim.cookie]
	wrong := s
	wrong.Cookie = stays.cookie
	if err := Destroy(fd, &wrong); err == nil {
		t.Error("addresses of one and cookie of another: ended")
	}
	err := Destroy(fd, &s)
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		t.Skip("needs CAP_NET_ADMIN")
	}
	if err != nil {
		t.Fatal(err)
	}
	victim.client.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := victim.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, expected a reset", err)
	}
	if err := Destroy(fd, &s); !errors.Is(err, ErrGone) {
		t.Errorf("a second time: %v", err)
	}
	left := found[stays.cookie]
	if _, err := Alive(fd, &left); err != nil {
		t.Errorf("the other connection: %v", err)
	}
}

// What the kernel never says is an error, not a crash.
func FuzzParse(f *testing.F) {
	s := Socket{Family: unix.AF_INET6, Local: netip.MustParseAddrPort("[::1]:80"), Remote: netip.MustParseAddrPort("[::1]:5"), Cookie: 7}
	body := append([]byte{unix.AF_INET6, 1, 0, 0}, s.request(unix.SOCK_DIAG_BY_FAMILY, 0)[headerSize+8:]...)
	body = append(body, make([]byte, 20)...)
	f.Add(append(header(unix.SOCK_DIAG_BY_FAMILY, 0, len(body)), body...))
	f.Add(append(header(unix.SOCK_DIAG_BY_FAMILY, 0, len(body)+12), append(body, 12, 0, attrInfo, 0, 1, 2, 3, 4, 5, 6, 7, 8)...))
	f.Add(header(unix.NLMSG_ERROR, 0, 0))
	f.Fuzz(func(t *testing.T, packet []byte) {
		for len(packet) > 0 {
			before := len(packet)
			m, rest, err := next(packet)
			if err != nil {
				return
			}
			if len(rest) >= before {
				t.Fatalf("%d bytes left of %d", len(rest), before)
			}
			packet = rest
			m.failure()
			s, err := parseSocket(m.body)
			if err == nil && s.Family != unix.AF_INET && s.Family != unix.AF_INET6 {
				t.Fatalf("family %d", s.Family)
			}
		}
	})
}
