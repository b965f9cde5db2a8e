package preload

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"socketbox/internal/binder"
)

// process is a program that a test started.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   *logBuffer
	stdin io.WriteCloser
	done  chan struct{}
}

// logBuffer is what a program writes, readable meanwhile.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs cmd until the test ends. Its output is shown if the test fails.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, log: &logBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	p.stdin, _ = cmd.StdinPipe()
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	go func() {
		cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		if t.Failed() {
			t.Logf("%s:\n%s", cmd, p.log)
		}
	})
	return p
}

// wait fails the test unless the process ends with status in time.
func (p *process) wait(status int) {
	p.t.Helper()
	select {
	case <-p.done:
		if got := p.cmd.ProcessState.ExitCode(); got != status {
			p.t.Fatalf("%s: ended with %d, not %d:\n%s", p.cmd, got, status, p.log)
		}
	case <-time.After(30 * time.Second):
		p.t.Fatalf("%s: still runs:\n%s", p.cmd, p.log)
	}
}

// waitLog waits until the output contains text.
func (p *process) waitLog(text string) {
	p.t.Helper()
	for range 4000 {
		if strings.Contains(p.log.String(), text) {
			return
		}
		select {
		case <-p.done:
			if !strings.Contains(p.log.String(), text) {
				p.t.Fatalf("%s ended before it said %q:\n%s", p.cmd, text, p.log)
			}
		case <-time.After(5 * time.Millisecond):
		}
	}
	p.t.Fatalf("%s does not say %q:\n%s", p.cmd, text, p.log)
}

// box is a running `socketbox bind` on one port of both families.
type box struct {
	*process
	dir  string
	port int
}

// bind is a box whose connections are handed off one by one.
func bind(t *testing.T) *box {
	t.Helper()
	return bindWith(t, "[[listener]]\naddress = \":PORT\"\nhandoff = \"connection\"\n")
}

// bindWith is a box with that configuration, in which PORT is filled in.
func bindWith(t *testing.T, config string) *box {
	t.Helper()
	parent, err := os.MkdirTemp("", "sbxp-")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(parent, 0o755)
	t.Cleanup(func() { os.RemoveAll(parent) })
	b := &box{dir: filepath.Join(parent, "box"), port: freePort(t)}
	file := filepath.Join(parent, "socketbox.toml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(config, "PORT", fmt.Sprint(b.port))), 0o644); err != nil {
		t.Fatal(err)
	}
	b.process = start(t, exec.Command(filepath.Join(programs, "socketbox"), "bind", "--dir", b.dir, "--config", file))
	b.waitLog("serving")
	return b
}

// path returns where the receiving socket with that ending of its name is.
func (b *box) path(ending string) string { return filepath.Join(b.dir, fmt.Sprint(b.port)+ending) }

// freePort returns a TCP port that nobody listened on a moment ago, below
// those that the kernel gives to clients.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 10000 + int(time.Now().UnixNano()/1000)%20000
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// setting is how a daemon is run: under what, and with which build of the
// library.
type setting struct {
	name    string
	prefix  []string
	preload string
	env     []string
	slow    bool
}

func plain() setting {
	return setting{name: "plain", preload: filepath.Join(daemons, "libsocketbox-preload.so")}
}

// daemon starts a command in a namespace with only lo and the library.
func (b *box) daemon(s setting, env []string, args ...string) *process {
	b.t.Helper()
	inside := append([]string{"env", "LD_PRELOAD=" + s.preload, "SOCKETBOX_DIR=" + b.dir}, s.env...)
	inside = append(inside, env...)
	inside = append(append(inside, s.prefix...), args...)
	return start(b.t, exec.Command("unshare", append([]string{"-n", "--", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}, inside...)...))
}

// small starts one of the test daemons and waits until it listens.
func (b *box) small(s setting, env []string, name string, args ...string) *process {
	b.t.Helper()
	p := b.daemon(s, env, append([]string{filepath.Join(daemons, name)}, args...)...)
	p.waitLog("ready")
	return p
}

// dial connects over IPv4 or IPv6.
func (b *box) dial(family string) *net.TCPConn {
	b.t.Helper()
	c, err := b.tryDial(family)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *box) tryDial(family string) (*net.TCPConn, error) {
	host := "127.0.0.1"
	if family == "6" {
		host = "::1"
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, fmt.Sprint(b.port)), 5*time.Second)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn), nil
}

// ask connects and returns what the daemon says, and an error unless both
// addresses in it are true. mapped: it sees IPv4 as v4-mapped.
func (b *box) ask(family string, mapped bool) error {
	c, err := b.tryDial(family)
	if err != nil {
		return err
	}
	defer c.Close()
	line, err := io.ReadAll(c)
	if err != nil {
		return fmt.Errorf("after %q: %w", line, err)
	}
	want := seen(c.LocalAddr(), mapped) + " " + seen(c.RemoteAddr(), mapped) + "\n"
	if string(line) != want {
		return fmt.Errorf("the daemon says %q, true is %q", line, want)
	}
	return nil
}

func (b *box) mustAsk(family string, mapped bool) {
	b.t.Helper()
	if err := b.ask(family, mapped); err != nil {
		b.t.Fatal(err)
	}
}

// seen is an address as the daemons print it.
func seen(a net.Addr, mapped bool) string {
	ap := a.(*net.TCPAddr).AddrPort()
	ip := ap.Addr().Unmap()
	if ip.Is4() && mapped {
		return fmt.Sprintf("[::ffff:%s]:%d", ip, ap.Port())
	}
	return netip.AddrPortFrom(ip, ap.Port()).String()
}

// crowd asks n times from several clients at once.
func (b *box) crowd(n, clients int, family string, mapped bool) {
	b.t.Helper()
	var wait sync.WaitGroup
	failed := make(chan error, n)
	todo := make(chan bool, n)
	for range n {
		todo <- true
	}
	close(todo)
	for range clients {
		wait.Go(func() {
			for range todo {
				if err := b.ask(family, mapped); err != nil {
					failed <- err
				}
			}
		})
	}
	wait.Wait()
	if len(failed) > 0 {
		b.t.Fatalf("%d of %d failed, the first: %v", len(failed), n, <-failed)
	}
}

// delivered waits until that many connections have been handed off.
func (b *box) delivered(n uint64) {
	b.t.Helper()
	eventually(b.t, func() error {
		out, err := exec.Command(filepath.Join(programs, "socketbox"), "status", "--json", "--dir", b.dir).Output()
		if err != nil {
			return err
		}
		s := &binder.Status{}
		if err := json.Unmarshal(out, s); err != nil {
			return err
		}
		if s.Total.Delivered != n {
			return fmt.Errorf("%d delivered, not %d", s.Total.Delivered, n)
		}
		return nil
	})
}

// eventually repeats check until it returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for range 1000 {
		if err = check(); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal(err)
}

// gone waits until a path is not there.
func gone(t *testing.T, path string) {
	t.Helper()
	eventually(t, func() error {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is still there", path)
		}
		return nil
	})
}
