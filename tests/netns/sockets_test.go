package netns

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// silence is how long clients say nothing here.
const silence = 2 * time.Second

// A passed socket is what accept(2) gives: a program that looks at its
// connection finds what it finds at one that it accepts itself, and may wait
// in read(2) for a client that takes its time.
func TestPassedSocketIsAsAccepted(t *testing.T) {
	look := compiled(t, "look")
	for _, test := range []struct {
		name, listen, client, native string
		wait                         time.Duration // on hold, before there is a receiver
	}{
		{"both families, IPv4 client", ":", "127.0.0.1", "0.0.0.0", 0},
		{"both families, IPv6 client", ":", "[::1]", "::", 0},
		{"[::], IPv4 client", "[::]:", "127.0.0.1", "0.0.0.0", 0},
		{"0.0.0.0", "0.0.0.0:", "127.0.0.1", "0.0.0.0", 0},
		{"IPv4 address", "127.0.0.1:", "127.0.0.1", "127.0.0.1", 0},
		{"IPv6 address", "[::1]:", "[::1]", "::1", 0},
		{"on hold, IPv4 client", ":", "127.0.0.1", "0.0.0.0", 500 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port := strconv.Itoa(freePort(t))
			b := bind(t, "--listen", test.listen+port)
			receive := func() { inetd(t, unshared(), b.dir, "--port", port, "--", look) }
			if test.wait == 0 {
				receive()
			}
			p := start(t, exec.Command(look, test.native))
			p.waitLog("port ")
			_, nativePort, _ := strings.Cut(strings.TrimSpace(p.log.String()), " ")
			accepted, passed := make(chan []string), make(chan []string)
			go func() { accepted <- lookedAt(t, test.client+":"+nativePort) }()
			go func() { passed <- lookedAt(t, test.client+":"+port) }()
			if test.wait > 0 {
				time.Sleep(test.wait)
				receive()
			}
			compareReports(t, <-passed, <-accepted)
		})
	}
}

// lookedAt connects to look at address, is silent for a while, says hello,
// and returns look's lines.
func lookedAt(t *testing.T, address string) []string {
	c, err := net.DialTimeout("tcp", address, clientLimit)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(clientLimit))
	time.Sleep(silence)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	text, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// compareReports fails the test where the passed socket differs from the
// accepted one. It looks by itself at what both could have wrong together.
func compareReports(t *testing.T, passed, accepted []string) {
	t.Helper()
	if len(passed) != len(accepted) || len(passed) < 20 {
		t.Fatalf("a report of %d lines and one of %d:\n%s", len(passed), len(accepted), strings.Join(passed, "\n"))
	}
	found := map[string]string{}
	for i, line := range passed {
		name, value, _ := strings.Cut(line, " ")
		found[name] = value
		if line != accepted[i] && name != "waited" {
			t.Errorf("passed: %s; accepted: %s", line, accepted[i])
		}
	}
	const off, none = "00 00 00 00", "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
	for name, want := range map[string]string{
		"O_NONBLOCK": "0", "SO_RCVTIMEO": none, "SO_SNDTIMEO": none, "SO_LINGER": off + " " + off,
		"TCP_NODELAY": off, "SO_KEEPALIVE": off, "read": "hello",
	} {
		if found[name] != want {
			t.Errorf("%s is %q, not %q", name, found[name], want)
		}
	}
	if waited, _ := strconv.Atoi(found["waited"]); waited < int(silence/time.Millisecond)/2 {
		t.Errorf("read(2) waited %d ms for a client that said nothing for %v", waited, silence)
	}
}

// environmentOf is what the children of these tests print: their environment,
// as of Debian's env, one variable a line.
var environmentOf = []string{"sh", "-c", "env"}

// environ returns the variables that the child told its client c. The client
// is gone then.
func environ(t *testing.T, c net.Conn) map[string]string {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(clientLimit))
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		vars[name] = value
	}
	return vars
}

// perConnection are the variables that only a connection can give.
var perConnection = []string{
	"PROTO", "TCPREMOTEIP", "TCPREMOTEPORT", "TCPREMOTEHOST", "TCPREMOTEINFO", "TCPLOCALIP", "TCPLOCALPORT", "TCPLOCALHOST", "TCPCONNNUM",
	"UNIXREMOTEPATH", "UNIXREMOTEEUID", "UNIXREMOTEEGID", "UNIXREMOTEPID", "UNIXLOCALPATH", "UNIXCONNNUM",
	"REMOTE_HOST", "REMOTE_ADDR", "REMOTE_PORT", "SOCKETBOX_LISTENER", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET",
}

// compareEnviron fails the test unless vars has exactly these per connection.
func compareEnviron(t *testing.T, vars, want map[string]string) {
	t.Helper()
	for _, name := range perConnection {
		got, there := vars[name]
		if wanted, expected := want[name]; got != wanted || there != expected {
			t.Errorf("%s=%q (set: %v), want %q (set: %v)", name, got, there, wanted, expected)
		}
	}
}

// tcpEnviron is what the child of a TCP client has in all dialects.
func tcpEnviron(client, server netip.AddrPort, listener string, number int) map[string]string {
	remote, port := client.Addr().String(), fmt.Sprint(client.Port())
	return map[string]string{
		"PROTO": "TCP", "TCPREMOTEIP": remote, "TCPREMOTEPORT": port, "TCPCONNNUM": strconv.Itoa(number),
		"TCPLOCALIP": server.Addr().String(), "TCPLOCALPORT": fmt.Sprint(server.Port()),
		"REMOTE_HOST": remote, "REMOTE_ADDR": remote, "REMOTE_PORT": port, "SOCKETBOX_LISTENER": listener,
	}
}

// dialFrom connects to address from the given local address.
func dialFrom(t *testing.T, local, address string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: clientLimit, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// ends are the two addresses of a client's connection.
func ends(c net.Conn) (client, server netip.AddrPort) {
	return netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
}

// A child has its client's own address in every dialect, and nothing of that
// kind from anybody else.
func TestEnvironment(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf("[[listener]]\nname = \"web\"\naddress = \":%d\"\n", port))
	cmd := unshared().command(append([]string{filepath.Join(programs, "socketbox-inetd"), "--dir", b.dir, "--"}, environmentOf...)...)
	cmd.Env = append(cmd.Environ(), "KEPT=yes", "TCPREMOTEHOST=forged", "TCPREMOTEIP=192.0.2.1", "REMOTE_ADDR=192.0.2.1",
		"UNIXREMOTEEUID=0", "NOTIFY_SOCKET=/nowhere")
	start(t, cmd).waitLog("receiving")
	for _, d := range dialled {
		t.Run(d.name, func(t *testing.T) {
			c := dialFrom(t, d.client, net.JoinHostPort(d.server, strconv.Itoa(port)))
			client, server := ends(c)
			vars := environ(t, c)
			compareEnviron(t, vars, tcpEnviron(client, server, "web", 1))
			if vars["KEPT"] != "yes" || vars["PATH"] == "" {
				t.Errorf("what is no connection's is not handed on: KEPT=%q PATH=%q", vars["KEPT"], vars["PATH"])
			}
		})
	}
}

// TCPCONNNUM counts the connections that one client address has just now.
func TestConnectionNumber(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	inetd(t, unshared(), b.dir, "--", "sh", "-c", "echo $TCPCONNNUM; echo end; read -r line") // stays as long as its client does
	var numbers []string
	for _, local := range []string{"127.0.3.1", "127.0.3.1", "127.0.3.2"} {
		c := dialFrom(t, local, at(port))
		defer c.Close()
		numbers = append(numbers, linesUntil(t, c, "end")...)
	}
	if !slices.Equal(numbers, []string{"1", "2", "1"}) {
		t.Errorf("two connections of one client and one of another have the numbers %v", numbers)
	}
}

// A client of a Unix listener: its credentials, and no address.
func TestUnixEnvironment(t *testing.T) {
	path := filepath.Join(publicDir(t), "app")
	b := bindConfig(t, fmt.Sprintf("[[listener]]\nname = \"app\"\naddress = \"unix:%s\"\n", path))
	inetd(t, unshared(), b.dir, append([]string{"--"}, environmentOf...)...)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	compareEnviron(t, environ(t, c), map[string]string{
		"PROTO": "UNIX", "UNIXLOCALPATH": path, "UNIXREMOTEEUID": strconv.Itoa(syscall.Geteuid()), "UNIXREMOTEEGID": strconv.Itoa(syscall.Getegid()),
		"UNIXREMOTEPID": strconv.Itoa(syscall.Getpid()), "UNIXCONNNUM": "1", "SOCKETBOX_LISTENER": "app",
	})
}

// An IPv4 client that closes its side before its connection is accepted: the
// kernel leaves it an AF_INET6 socket, and the child none the less sees an
// IPv4 address in its environment and answers.
func TestClosedBeforeAccept(t *testing.T) {
	look := compiled(t, "look")
	for _, test := range []struct {
		name    string
		command []string
		says    string
		check   func(*testing.T, *net.TCPConn)
	}{
		{"environment", environmentOf, "", func(t *testing.T, c *net.TCPConn) {
			client, server := ends(c)
			compareEnviron(t, environ(t, c), tcpEnviron(client, server, "web", 1))
		}},
		{"socket", []string{look}, "early", func(t *testing.T, c *net.TCPConn) {
			text, err := io.ReadAll(c)
			if want := "peer AF_INET6 ::ffff:127.82.7.1\nlocal AF_INET6 ::ffff:127.0.0.1\n"; !strings.HasPrefix(string(text), want) || err != nil {
				t.Errorf("%q, %v; want %q", text, err, want)
			}
			if !strings.Contains(string(text), "\nread early\n") {
				t.Errorf("what the client said before it closed its side is lost: %q", text)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, fmt.Sprintf("[[listener]]\nname = \"web\"\naddress = \":%d\"\n", port))
			inetd(t, unshared(), b.dir, append([]string{"--"}, test.command...)...)
			resume := stopProcess(t, b.status().Dispatcher)
			c := dialFrom(t, "127.82.7.1", at(port))
			defer c.Close()
			c.SetDeadline(time.Now().Add(clientLimit))
			c.Write([]byte(test.says))
			c.CloseWrite()
			time.Sleep(50 * time.Millisecond) // the kernel delivers it meanwhile
			resume()
			test.check(t, c)
		})
	}
}
