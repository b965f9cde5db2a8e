package netns

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// answering starts a server in ns that tells each client its address, as the
// kernel has it.
func answering(t *testing.T, ns namespace, address string, port int) {
	t.Helper()
	const program = `
import socket, sys
s = socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, backlog=512)
print("listening", flush=True)
while True:
    c, a = s.accept()
    c.sendall(("%s %s %d" % (sys.argv[3], a[0], a[1])).encode())
    c.close()
`
	start(t, ns.command("python3", "-c", program, address, strconv.Itoa(port), "us")).waitLog("listening")
}

// asked connects inside ns and returns the answer.
func asked(t *testing.T, ns namespace, address string, port int) string {
	t.Helper()
	out, err := ns.command("nc.openbsd", "-w", "10", address, strconv.Itoa(port)).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s: %v", out, err)
	}
	return string(out)
}

// An IPv6 client reaches an IPv4 server by the address that it dials, behind
// either prefix; this machine's own loopback it does not reach.
func TestRelayNAT64(t *testing.T) {
	ns := ipNetns(t)
	port := freePort(t)
	ns.ip(t, "addr add 198.51.100.9/32 dev lo", "-6 route add local 64:ff9b::/96 dev lo", "-6 route add local 2001:db8:64::/64 dev lo")
	answering(t, ns, "198.51.100.9", port)
	for _, tt := range []struct{ prefix, dialled, want string }{
		{"64:ff9b::/96", "64:ff9b::198.51.100.9", "us 198.51.100.9"},
		{"2001:db8:64::/64", "2001:db8:64::c633:6409", "us 198.51.100.9"},
		{"2001:db8:64::/64", "2001:db8:64:0:c6:3364:900:0", "us 198.51.100.9"}, // as RFC 6052 has it
		{"64:ff9b::/96", "64:ff9b::127.0.0.1", ""},
		{"64:ff9b::/96", "64:ff9b::10.0.0.1", ""},
	} {
		b := bindConfigIn(t, ns, socketDir(t), fmt.Sprintf("[[listener]]\naddress = \"[::]:%d\"\noptions.v6only = true\n", port))
		r := relay(t, ns, "--dir", b.dir, "--nat64", tt.prefix)
		got := asked(t, ns, tt.dialled, port)
		if tt.want == "" {
			r.waitLog("connection reset")
		} else if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s behind %s: %q, want %q", tt.dialled, tt.prefix, got, tt.want)
		}
		r.kill()
		b.kill()
	}
}

// The daemon's own kernel sees the client's address and port, in a namespace
// in which every address is local.
func TestRelayTransparent(t *testing.T) {
	port, ns := freePort(t), ipNetns(t)
	ns.ip(t, "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo")
	answering(t, ns, "127.0.0.1", port)
	answering(t, ns, "::1", port)
	b := bind(t, "--listen", fmt.Sprint(":", port))
	relay(t, here(), "--dir", b.dir, "--netns", ns.name, "--transparent")
	for from, to := range map[string]string{"127.0.7.9": "127.0.0.1", "::1": "::1"} {
		c := dialFrom(t, from, net.JoinHostPort(to, strconv.Itoa(port)))
		c.SetDeadline(time.Now().Add(10 * time.Second))
		text := make([]byte, 100)
		n, err := c.Read(text)
		client, _ := ends(c)
		if want := fmt.Sprintf("us %s %d", from, client.Port()); string(text[:n]) != want {
			t.Errorf("%q, %v; want %q", text[:n], err, want)
		}
		c.Close()
	}
}

// One process serves 300 namespaces, by the listener's name, and follows one
// that is made anew; it holds no descriptor for any of them.
func TestRelayManyNamespaces(t *testing.T) {
	const count = 300
	dir := filepath.Join("/run/netns", fmt.Sprintf("sbxt-%d-many", os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	port := freePort(t)
	var config strings.Builder
	for i := range count {
		fmt.Fprintf(&config, "[[listener]]\nname = \"n%d\"\naddress = \"127.6.%d.%d:%d\"\n", i, i/200, i%200+1, port)
		makeNamespace(t, filepath.Join(dir, fmt.Sprint("n", i)), fmt.Sprint("n", i), port)
	}
	b := bindConfig(t, config.String())
	r := relay(t, here(), "--dir", b.dir, "--netns", dir+"/{listener}")
	before := descriptors(t, r.pid())
	var wait sync.WaitGroup
	for i := range count {
		wait.Go(func() {
			for range 3 {
				v := client{to: fmt.Sprintf("127.6.%d.%d:%d", i/200, i%200+1, port)}.visitAny()
				if v != fmt.Sprint("n", i) {
					t.Errorf("namespace %d: %q", i, v)
				}
			}
		})
	}
	wait.Wait()
	checkDescriptors(t, r, before)
	again := filepath.Join(dir, "n7")
	unmountNamespace(again)
	makeNamespace(t, again, "anew", port)
	if v := (client{to: fmt.Sprintf("127.6.0.8:%d", port)}).visitAny(); v != "anew" {
		t.Errorf("a namespace that was made anew: %q", v)
	}
}

// makeNamespace makes a network namespace at path with a server on its
// loopback, in this process, that says name.
func makeNamespace(t *testing.T, path, name string, port int) {
	t.Helper()
	var l net.Listener
	err := elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		if err := raiseLoopback(); err != nil {
			return err
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		var err error
		l, err = net.Listen("tcp4", fmt.Sprint("127.0.0.1:", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountNamespace(path); l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(name))
			c.Close()
		}
	}()
}

func unmountNamespace(path string) {
	unix.Unmount(path, unix.MNT_DETACH)
	os.Remove(path)
}

// raiseLoopback sets lo up in the thread's network namespace.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// visitAny connects and returns what it is told.
func (c client) visitAny() string {
	conn, err := c.dial(clientLimit)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(clientLimit))
	text := make([]byte, 100)
	n, err := conn.Read(text)
	if err != nil {
		return err.Error()
	}
	return string(text[:n])
}

// A fixed namespace that is made anew ends the relay, whose service manager
// starts it again: it has given up the right to follow.
func TestRelayNamespaceReplaced(t *testing.T) {
	ns := ipNetns(t)
	r := relay(t, here(), "--listen", fmt.Sprint("127.0.0.1:", freePort(t)), "--netns", ns.name, "--to", "127.0.0.1:1")
	mustRun(t, "ip", "netns", "delete", ns.name)
	mustRun(t, "ip", "netns", "add", ns.name)
	if status := r.wait(10 * time.Second); status != 1 {
		t.Errorf("exit status %d", status)
	}
	if !strings.Contains(r.log.String(), "made anew") {
		t.Error("it does not say why")
	}
}

// Several destinations are tried in order; a name has its addresses raced.
func TestRelayFailover(t *testing.T) {
	port, conns := accepting(t)
	dead := freePort(t)
	at := freePort(t)
	r := relay(t, here(), "--listen", fmt.Sprint("127.0.0.1:", at),
		"--to", fmt.Sprint("127.0.0.1:", dead), "--to", "unix:/does/not/exist", "--to", fmt.Sprint("localhost:", port))
	for range 3 {
		c := dialFrom(t, "127.0.0.1", fmt.Sprint("127.0.0.1:", at))
		(<-conns).Close()
		c.Close()
	}
	r.waitLog("destination failed")
	if ends := strings.Count(r.log.String(), "destination failed to=127.0.0.1"); ends != 1 {
		t.Errorf("the first destination was tried first %d times, though it had failed a moment ago", ends)
	}
}
