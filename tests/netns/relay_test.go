package netns

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relay starts socketbox-relay in ns and waits until it relays. It must leave
// nothing behind, and end in good order when it is told to.
func relay(t *testing.T, ns namespace, args ...string) *process {
	t.Helper()
	args = append([]string{filepath.Join(programs, "socketbox-relay"), "--log-connections"}, args...)
	p := start(t, ns.command(args...))
	p.waitLog("relaying")
	return p
}

// checkDescriptors waits until r has no more descriptors open than before,
// apart from pipes, of which each thread keeps some.
func checkDescriptors(t *testing.T, r *process, before []string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		now := slices.DeleteFunc(descriptors(t, r.pid()), func(d string) bool { return strings.HasPrefix(d, "pipe:") })
		if len(now) > len(before) {
			return fmt.Errorf("%d descriptors before, %d after: %v", len(before), len(now), now)
		}
		return nil
	})
}

// behind is a daemon in a namespace where only it, and what it lets in, is.
type behind struct {
	ns   namespace
	port int
}

// digester answers each connection, after its end, with the SHA-256 of what it
// brought.
const digester = `
import hashlib, socketserver, sys
class H(socketserver.BaseRequestHandler):
    def handle(self):
        h = hashlib.sha256()
        while True:
            b = self.request.recv(1 << 20)
            if not b: break
            h.update(b)
        self.request.sendall(h.hexdigest().encode())
class S(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 4096
s = S((sys.argv[1], int(sys.argv[2])), H)
print("listening", flush=True)
s.serve_forever()
`

// digest starts the digester on 127.0.0.1 of a namespace of its own.
func digest(t *testing.T) behind {
	t.Helper()
	b := behind{ns: ipNetns(t), port: freePort(t)}
	start(t, b.ns.command("python3", "-c", digester, "127.0.0.1", strconv.Itoa(b.port))).waitLog("listening")
	return b
}

// upload sends size random bytes with nc, which ends its side when they are
// through, and compares the answer.
func upload(t *testing.T, address string, port, size int) {
	t.Helper()
	text := make([]byte, size)
	rand.Read(text)
	nc := exec.Command(needProgram(t, "nc.openbsd"), "-N", address, strconv.Itoa(port))
	nc.Stdin = bytes.NewReader(text)
	out, err := nc.Output()
	if want := fmt.Sprintf("%x", sha256.Sum256(text)); err != nil || string(out) != want {
		t.Errorf("%s: %d bytes were answered with %q, %v; not %s", address, size, out, err, want)
	}
}

// From socketbox bind here, through a relay, to a daemon on the loopback of
// another namespace: half-closed connections stay so, in both families.
func TestRelayToLoopback(t *testing.T) {
	d := digest(t)
	b := bind(t, "--listen", fmt.Sprint(":", d.port))
	r := relay(t, here(), "--dir", b.dir, "--port", strconv.Itoa(d.port), "--netns", d.ns.name)
	open := descriptors(t, r.pid())
	upload(t, "127.0.0.1", d.port, 100<<20)
	upload(t, "::1", d.port, 1<<20)
	upload(t, "127.0.0.1", d.port, 0)
	r.waitLog("sent=104857600 received=64")
	checkDescriptors(t, r, open)
	r.signal(syscall.SIGTERM)
	if status := r.wait(10 * time.Second); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// Inside the daemon's namespace it needs no right and no flag but the port.
func TestRelayInside(t *testing.T) {
	d := digest(t)
	b := bind(t, "--listen", fmt.Sprint(":", d.port))
	relay(t, d.ns, "--dir", b.dir)
	upload(t, "127.0.0.1", d.port, 1<<20)
}

// In the listener's own namespace the default would expose what listens on
// loopback only.
func TestRelayRefusesOwnNamespace(t *testing.T) {
	port := freePort(t)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := bindConfig(t, listeners(port))
	r := relay(t, here(), "--dir", b.dir)
	isReset(t, client{to: at(port)})
	r.waitLog("in this very network namespace")
}

// resetting is a server in this process whose first connection the test gets.
func accepting(t *testing.T) (port int, conns <-chan *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := make(chan *net.TCPConn, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c <- conn.(*net.TCPConn)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, c
}

// A reset of either end reaches the other as a reset, after what was sent
// before it.
func TestRelayPassesResets(t *testing.T) {
	port, conns := accepting(t)
	at := freePort(t)
	r := relay(t, here(), "--listen", fmt.Sprint("127.0.0.1:", at), "--to", fmt.Sprint("127.0.0.1:", port))
	for _, by := range []string{"client", "destination"} {
		client := dialFrom(t, "127.0.0.1", fmt.Sprint("127.0.0.1:", at))
		server := <-conns
		from, to := client, server
		if by == "destination" {
			from, to = server, client
		}
		if _, err := from.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 10)
		if _, err := io.ReadFull(to, text); err != nil {
			t.Fatal(err)
		}
		from.SetLinger(0)
		from.Close()
		to.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := to.Read(text); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after a reset by the %s: read %d, %v", by, n, err)
		}
		to.Close()
		r.waitLog(by + " reset")
	}
}

// The log says who, where, how much and why.
func TestRelayLog(t *testing.T) {
	d := digest(t)
	r := relay(t, d.ns, "--log", "json", "--listen", fmt.Sprint("127.0.0.1:", d.port+1), "--to", fmt.Sprint("tcp:127.0.0.1:", d.port))
	out, err := d.ns.command("sh", "-c", fmt.Sprint("echo hello | nc.openbsd -N 127.0.0.1 ", d.port+1)).Output()
	if err != nil || len(out) != 64 {
		t.Fatalf("%q, %v", out, err)
	}
	r.waitLog(`"sent":6,"received":64`)
	r.signal(syscall.SIGUSR1)
	r.waitLog(`"bytes-out":6,"bytes-in":64`)
	for _, words := range []string{`"client":"127.0.0.1:`, fmt.Sprintf(`"to":"127.0.0.1:%d"`, d.port), `"end":"closed"`} {
		if !strings.Contains(r.log.String(), words) {
			t.Errorf("no %s in the log", words)
		}
	}
	r.signal(syscall.SIGTERM)
	r.wait(10 * time.Second)
	if !strings.Contains(r.log.String(), `"closed":1`) {
		t.Error("no counters at the end")
	}
}

// A destination that is a Unix socket, by a path with a word in it.
func TestRelayToUnix(t *testing.T) {
	port := freePort(t)
	path := filepath.Join(publicDir(t), fmt.Sprintf("%d.stream", port))
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	relay(t, here(), "--listen", fmt.Sprint("127.0.0.1:", port), "--to", "unix:"+filepath.Dir(path)+"/{port}.stream")
	c := dialFrom(t, "127.0.0.1", fmt.Sprint("127.0.0.1:", port))
	defer c.Close()
	text := make([]byte, 1<<20)
	rand.Read(text)
	go func() {
		c.Write(text)
		c.CloseWrite()
	}()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	os.Remove(path)
}
