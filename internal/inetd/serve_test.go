package inetd

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// variables makes a map of env(1)'s output.
func variables(text string) map[string]string {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		vars[name] = value
	}
	return vars
}

func TestEveryFamily(t *testing.T) {
	d := prepare(t, "--", "env")
	d.cmd.Env = append(os.Environ(), "REMOTE_HOST=forged", "TCPREMOTEINFO=forged", "MARK=kept")
	d.run().expect("receiving")
	path := filepath.Join(t.TempDir(), "stream")
	tests := []struct {
		network, address, proto string
	}{
		{"tcp4", "127.0.0.1:0", "TCP"}, {"tcp6", "[::1]:0", "TCP"}, {"tcp", "[::]:0", "TCP"}, {"unix", path, "UNIX"},
	}
	for _, tt := range tests {
		t.Run(tt.network+tt.address[:1], func(t *testing.T) {
			d.until("running", 0) // else TCPCONNNUM counts the one before
			client, accepted := pair(t, tt.network, tt.address, "")
			if err := send(d.sender(), accepted); err != nil {
				t.Fatal(err)
			}
			got := variables(answer(t, client))
			want := map[string]string{"PROTO": tt.proto, "SOCKETBOX_LISTENER": "web", "MARK": "kept", "TCPREMOTEINFO": ""}
			if tt.proto == "TCP" {
				host, port, _ := net.SplitHostPort(client.LocalAddr().String())
				localHost, localPort, _ := net.SplitHostPort(client.RemoteAddr().String())
				for name, value := range map[string]string{
					"TCPREMOTEIP": host, "REMOTE_HOST": host, "REMOTE_ADDR": host, "TCPREMOTEPORT": port, "REMOTE_PORT": port,
					"TCPLOCALIP": localHost, "TCPLOCALPORT": localPort, "TCPCONNNUM": "1",
				} {
					want[name] = value
				}
			} else {
				want["REMOTE_HOST"], want["REMOTE_ADDR"], want["UNIXLOCALPATH"] = "", "", path
				want["UNIXREMOTEEUID"] = fmt.Sprint(os.Geteuid())
			}
			for name, value := range want {
				if got[name] != value {
					t.Errorf("%s is %q, want %q", name, got[name], value)
				}
			}
		})
	}
}

// TestMappedAddress: an IPv4 client of an IPv6 socket is an IPv4 client.
func TestMappedAddress(t *testing.T) {
	d := start(t, "--", "env")
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	accepted, err := unix.Dup(int(file.Fd()))
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := send(d.sender(), accepted); err != nil {
		t.Fatal(err)
	}
	if got := variables(answer(t, client)); got["REMOTE_ADDR"] != "127.0.0.1" || got["TCPLOCALIP"] != "127.0.0.1" {
		t.Errorf("addresses %q, %q", got["REMOTE_ADDR"], got["TCPLOCALIP"])
	}
}

func TestAbstractUnixClient(t *testing.T) {
	d := start(t, "--", "env")
	fds, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds)
	name := fmt.Sprintf("@socketbox-test-%d", os.Getpid())
	if err := unix.Bind(fds, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "l"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := unix.Connect(fds, &unix.SockaddrUnix{Name: l.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	defer file.Close()
	accepted, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := send(d.sender(), accepted); err != nil {
		t.Fatal(err)
	}
	file.Close()
	var text bytes.Buffer
	buf := make([]byte, 65536)
	for n := 1; n > 0; {
		if n, err = unix.Read(fds, buf); err != nil {
			t.Fatal(err)
		}
		text.Write(buf[:n])
	}
	if got := variables(text.String())["REMOTE_ADDR"]; got != name {
		t.Errorf("REMOTE_ADDR is %q, want %q", got, name)
	}
}

// TestPlainForm: a datagram of one byte, as older senders write it.
func TestPlainForm(t *testing.T) {
	d := start(t, "--", "env")
	client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
	if err := unix.Sendmsg(d.sender(), []byte{0}, unix.UnixRights(accepted), nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(accepted)
	got := variables(answer(t, client))
	if _, named := got["SOCKETBOX_LISTENER"]; named || got["PROTO"] != "TCP" {
		t.Errorf("got %q", got)
	}
}

func TestBytesAndHalfClose(t *testing.T) {
	d := start(t, "--", "cat")
	sent := make([]byte, 4<<20)
	rand.Read(sent)
	client := d.connect()
	go func() {
		client.Write(sent)
		client.(*net.TCPConn).CloseWrite()
	}()
	if got := answer(t, client); got != string(sent) {
		t.Errorf("%d bytes came back, not those that were sent", len(got))
	}
}

// TestSilentClient: the socket comes non-blocking and leaves blocking; a
// program that reads before its client speaks waits.
func TestSilentClient(t *testing.T) {
	t.Parallel()
	d := start(t, "--", "sh", "-c", "grep flags: /proc/self/fdinfo/0 /proc/self/fdinfo/1; read line; echo $line")
	client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
	if err := unix.SetNonblock(accepted, true); err != nil {
		t.Fatal(err)
	}
	if err := send(d.sender(), accepted); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	fmt.Fprintln(client, "hello")
	text := answer(t, client)
	for line := range strings.Lines(text) {
		var name string
		var flags int
		if n, _ := fmt.Sscanf(line, "%s %o", &name, &flags); n == 2 && flags&unix.O_NONBLOCK != 0 {
			t.Errorf("non-blocking: %q", line)
		}
	}
	if strings.Count(text, "flags:") != 2 || !strings.HasSuffix(text, "hello\n") {
		t.Errorf("got %q", text)
	}
}

// TestOptionsAreNative: no socket option differs from a native accept's.
func TestOptionsAreNative(t *testing.T) {
	d := start(t, "--", "cat")
	client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
	keep, err := unix.Dup(accepted)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(keep)
	before := options(t, keep)
	if err := send(d.sender(), accepted); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(client, "x")
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if after := options(t, keep); after != before {
		t.Errorf("got %s, want %s", after, before)
	}
}

func options(t *testing.T, fd int) string {
	t.Helper()
	ints := [][2]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.SOL_SOCKET, unix.SO_RCVBUF}, {unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{unix.SOL_SOCKET, unix.SO_PRIORITY}, {unix.SOL_SOCKET, unix.SO_MARK}, {unix.SOL_SOCKET, unix.SO_OOBINLINE},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.IPPROTO_TCP, unix.TCP_CORK}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT}, {unix.IPPROTO_IP, unix.IP_TOS},
	}
	var b strings.Builder
	for _, o := range ints {
		v, err := unix.GetsockoptInt(fd, o[0], o[1])
		fmt.Fprintf(&b, "%d/%d=%d %v;", o[0], o[1], v, err)
	}
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		v, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, o)
		fmt.Fprintf(&b, "%d=%+v %v;", o, v, err)
	}
	linger, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	fmt.Fprintf(&b, "linger=%+v %v flags=%#x", linger, err, flags)
	return b.String()
}

func TestStderr(t *testing.T) {
	for where, want := range map[string]string{"inherit": "out\n", "socket": "err\nout\n", "null": "out\n"} {
		d := start(t, "--stderr", where, "--", "sh", "-c", "echo err >&2; echo out")
		if got := answer(t, d.connect()); got != want {
			t.Errorf("%s: got %q", where, got)
		}
		d.signal(unix.SIGTERM)
		d.exit() // the whole log is there
		if got := strings.Contains(d.log.String(), "\nerr\n"); got != (where == "inherit") {
			t.Errorf("%s: in the log: %v", where, got)
		}
	}
}

// TestEndOfOutputIsSeenAtOnce: the daemon keeps no copy of the socket that
// would hold the end of the connection back while the program lives on.
func TestEndOfOutputIsSeenAtOnce(t *testing.T) {
	d := start(t, "--kill-after", "1ms", "--", "sh", "-c", "echo ok; exec </dev/null >/dev/null; sleep 60")
	client := d.connect()
	began := time.Now()
	if got := answer(t, client); got != "ok\n" {
		t.Errorf("got %q", got)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end came after %v", took)
	}
	d.signal(unix.SIGTERM)
	d.signal(unix.SIGINT)
	d.exit()
}

func TestBadInput(t *testing.T) {
	d := start(t, "--", "cat")
	sock := d.sender()
	answerOne := func() {
		t.Helper()
		client := d.connect()
		fmt.Fprint(client, "ok")
		client.(*net.TCPConn).CloseWrite()
		if got := answer(t, client); got != "ok" {
			t.Fatalf("got %q", got)
		}
	}
	answerOne()
	d.until("ended", 1)
	before := d.descriptors()

	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null := int(file.Fd())
	socket := func(domain, kind int) int {
		fd, err := unix.Socket(domain, kind, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	listening := socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	_, tcp := pair(t, "tcp4", "127.0.0.1:0", "")
	defer unix.Close(tcp)
	many := make([]int, 250)
	for i := range many {
		many[i] = tcp
	}
	bad := []struct {
		name    string
		payload []byte
		fds     []int
	}{
		{"no descriptor", header, nil},
		{"empty datagram", nil, nil},
		{"empty datagram with a descriptor", nil, []int{tcp}},
		{"two descriptors", header, []int{tcp, tcp}},
		{"250 descriptors", header, many},
		{"a file", header, []int{null}},
		{"a UDP socket", header, []int{socket(unix.AF_INET, unix.SOCK_DGRAM)}},
		{"a Unix datagram socket", header, []int{socket(unix.AF_UNIX, unix.SOCK_DGRAM)}},
		{"a seqpacket socket", header, []int{socket(unix.AF_UNIX, unix.SOCK_SEQPACKET)}},
		{"a listening socket", header, []int{listening}},
		{"oversized payload", bytes.Repeat([]byte{'x'}, 129), []int{tcp}},
		{"64 KiB of payload", bytes.Repeat([]byte{'x'}, 65536), []int{tcp}},
	}
	for _, b := range bad {
		var control []byte
		if len(b.fds) > 0 {
			control = unix.UnixRights(b.fds...)
		}
		if err := unix.Sendmsg(sock, b.payload, control, nil, 0); err != nil {
			t.Fatalf("%s: %v", b.name, err)
		}
	}
	d.until("bad", len(bad))
	answerOne()
	d.until("ended", 2)
	if after := d.descriptors(); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	if n := d.count("started"); n != 2 {
		t.Errorf("%d children were started", n)
	}
}

func TestFromTakesOneSenderOnly(t *testing.T) {
	own := start(t, "--from", fmt.Sprint(os.Geteuid()), "--", "echo", "ok")
	if got := answer(t, own.connect()); got != "ok\n" {
		t.Errorf("got %q", got)
	}
	other := start(t, "--from", "54321", "--", "echo", "ok")
	client := other.connect()
	other.until("bad", 1)
	client.SetReadDeadline(time.Now().Add(time.Second))
	if text, err := io.ReadAll(client); len(text) > 0 {
		t.Errorf("got %q, %v", text, err)
	}
}

// TestConnectionThatWasReset: its client is gone, nothing is started.
func TestConnectionThatWasReset(t *testing.T) {
	d := start(t, "--", "cat")
	client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	time.Sleep(10 * time.Millisecond)
	if err := send(d.sender(), accepted); err != nil {
		t.Fatal(err)
	}
	d.until("gone", 1)
}

func TestDescriptorsDoNotLeak(t *testing.T) {
	d := start(t, "--", "true")
	before := d.descriptors()
	handOffMany(t, d, 2000)
	if after := d.descriptors(); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	if n := d.count("lost") + d.count("failed"); n != 0 {
		t.Errorf("%d connections were lost, or tried again", n)
	}
}

// handOffMany hands connections off and waits until all have ended.
func handOffMany(t *testing.T, d *instance, connections int) {
	t.Helper()
	sock := d.sender()
	want := d.count("ended") + d.count("gone") + connections
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range connections {
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := conn.(*net.TCPConn).SyscallConn()
		raw.Control(func(fd uintptr) { err = unix.Sendmsg(sock, header, unix.UnixRights(int(fd)), nil, 0) })
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conn.Close()
		client.Close()
	}
	for deadline := time.Now().Add(20 * time.Second); d.count("ended")+d.count("gone") != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections have not ended", want-d.count("ended")-d.count("gone"))
		}
	}
}
