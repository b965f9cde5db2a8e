package inetd

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program is the built socketbox-inetd: it waits for all children of its
// process, so it can't share one with a test. SOCKETBOX_INETD names one that
// is built already.
var program = os.Getenv("SOCKETBOX_INETD")

func TestMain(m *testing.M) {
	if program != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "socketbox-inetd-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "socketbox-inetd")
	build := exec.Command("go", "build", "-o", program, "socketbox/cmd/socketbox-inetd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// instance is a running socketbox-inetd.
type instance struct {
	t    *testing.T
	cmd  *exec.Cmd
	path string
	log  *lockedBuffer
	done chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// prepare makes an instance that is not started yet, on a socket of its own.
func prepare(t *testing.T, args ...string) *instance {
	d := &instance{t: t, path: filepath.Join(t.TempDir(), "s.sock"), log: new(lockedBuffer), done: make(chan struct{})}
	d.cmd = exec.Command(program, append([]string{"--socket", d.path, "--log-level", "debug"}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.WaitDelay = time.Second
	return d
}

// run starts it and does not wait for anything.
func (d *instance) run() *instance {
	d.t.Helper()
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
	}()
	d.t.Cleanup(func() {
		d.cmd.Process.Kill()
		<-d.done
		if d.t.Failed() {
			d.t.Logf("log:\n%s", d.log)
		}
	})
	return d
}

// start starts an instance and waits until it receives.
func start(t *testing.T, args ...string) *instance {
	t.Helper()
	d := prepare(t, args...).run()
	d.expect("info: receiving connections")
	return d
}

// expect waits until the log matches the pattern, and returns the match.
func (d *instance) expect(pattern string) []string {
	d.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if m := re.FindStringSubmatch(d.log.String()); m != nil {
			return m
		}
	}
	d.t.Fatalf("the log has no %q", pattern)
	return nil
}

func (d *instance) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
}

// exit waits for the end and returns the exit status.
func (d *instance) exit() int {
	d.t.Helper()
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		d.t.Fatal("does not end")
		return -1
	}
}

// count asks for the state and returns one number of it.
func (d *instance) count(name string) int {
	d.t.Helper()
	before := strings.Count(d.log.String(), "info: state ")
	d.signal(unix.SIGUSR1)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		lines := regexp.MustCompile(`info: state .*\b`+name+`=(\d+)`).FindAllStringSubmatch(d.log.String(), -1)
		if len(lines) > before {
			n, _ := strconv.Atoi(lines[len(lines)-1][1])
			return n
		}
	}
	d.t.Fatalf("no state with %s", name)
	return 0
}

// until waits for a number of the state.
func (d *instance) until(name string, want int) {
	d.t.Helper()
	got := -1
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = d.count(name); got == want {
			return
		}
	}
	d.t.Fatalf("%s is %d, want %d", name, got, want)
}

// descriptors returns how many descriptors the instance has open, without
// those that Go's runtime opens for its poller at some time.
func (d *instance) descriptors() int {
	d.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		d.t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(dir, e.Name()))
		if target != "" && !strings.HasPrefix(target, "anon_inode:") {
			n++
		}
	}
	return n
}

// sender is a blocking socket that is connected to the instance's.
func (d *instance) sender() int {
	d.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: d.path}); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// header is a payload of version 1 for the listener "web".
var header = []byte("sbox\x01\x00\x03web")

// send hands fd off and closes it, as the dispatcher does.
func send(sock, fd int) error {
	defer unix.Close(fd)
	for {
		err := unix.Sendmsg(sock, header, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// pair makes a connection from the address from to a listener at address, and
// returns the client's end and a descriptor of the accepted one.
func pair(t *testing.T, network, address, from string) (client net.Conn, accepted int) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	client, err = dialer.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { // accept4 alone: what net.Listener sets is not native
		for {
			accepted, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC)
			if err != unix.EAGAIN {
				return
			}
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return client, accepted
}

// connect hands a new IPv4 connection off and returns the client's end.
func (d *instance) connect() net.Conn {
	d.t.Helper()
	client, accepted := pair(d.t, "tcp4", "127.0.0.1:0", "")
	if err := send(d.sender(), accepted); err != nil {
		d.t.Fatal(err)
	}
	return client
}

// answer reads to the end of the connection.
func answer(t *testing.T, client net.Conn) string {
	t.Helper()
	client.SetReadDeadline(time.Now().Add(15 * time.Second))
	text, err := io.ReadAll(client)
	if err != nil {
		t.Fatalf("read the answer: %v (so far %q)", err, text)
	}
	return string(text)
}
