package netns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"socketbox/internal/binder"
)

// namespace is a network namespace with nothing but lo (up) in it.
type namespace struct {
	name string   // of an `ip netns add` one, else ""
	exec []string // prefix that runs a command inside
}

var namespaceNumber atomic.Int32

// ipNetns makes a namespace by `ip netns add`, gone when the test ends.
func ipNetns(t *testing.T) namespace {
	t.Helper()
	name := fmt.Sprintf("sbxt-%d-%d", os.Getpid(), namespaceNumber.Add(1))
	mustRun(t, "ip", "netns", "add", name)
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", name).Run() })
	mustRun(t, "ip", "-n", name, "link", "set", "lo", "up")
	return namespace{name: name, exec: []string{"ip", "netns", "exec", name}}
}

// unshared is a namespace that `unshare -n` makes for one command.
func unshared() namespace {
	return namespace{exec: []string{"unshare", "-n", "--", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}}
}

// here is the namespace that the tests run in.
func here() namespace { return namespace{} }

// command returns a command that runs in the namespace.
func (n namespace) command(args ...string) *exec.Cmd {
	all := append(append([]string(nil), n.exec...), args...)
	return exec.Command(all[0], all[1:]...)
}

// mustRun runs a command to its end and returns its output.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// process is a program that a test started.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
	err  error
}

// logBuffer is a program's stderr and stdout, readable while it is written.
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
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s:\n%s", cmd, p.log)
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("signal %v: %v", s, err)
	}
}

// wait returns the exit status; -1 after a signal. It fails the test if the
// process does not end in time.
func (p *process) wait(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%s: still runs after %v\n%s", p.cmd, limit, p.log)
		return -1
	}
}

// kill ends the process group at once.
func (p *process) kill() {
	syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.done
}

// waitLog waits until the output contains text.
func (p *process) waitLog(text string) {
	p.t.Helper()
	eventually(p.t, 10*time.Second, func() error {
		if strings.Contains(p.log.String(), text) {
			return nil
		}
		select {
		case <-p.done:
			return errStop{fmt.Errorf("%s ended before it said %q:\n%s", p.cmd, text, p.log)}
		default:
			return fmt.Errorf("%s does not say %q:\n%s", p.cmd, text, p.log)
		}
	})
}

// errStop is an error that waiting does not cure.
type errStop struct{ error }

// eventually repeats check until it returns nil.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if _, stop := err.(errStop); stop || time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// box is a running `socketbox bind`.
type box struct {
	*process
	dir string // main socket directory
}

// socketDir returns an empty place for a main socket directory that other
// users may reach; t.TempDir is closed to them.
func socketDir(t *testing.T) string {
	t.Helper()
	parent, err := os.MkdirTemp("", "sbxt-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	return filepath.Join(parent, "box")
}

// bind starts `socketbox bind` in the tests' namespace with a main socket
// directory of its own, and waits until it serves.
func bind(t *testing.T, args ...string) *box {
	t.Helper()
	return bindIn(t, here(), socketDir(t), args...)
}

// bindIn starts `socketbox bind` in ns with the main socket directory dir.
func bindIn(t *testing.T, ns namespace, dir string, args ...string) *box {
	t.Helper()
	args = append([]string{filepath.Join(programs, "socketbox"), "bind", "--dir", dir}, args...)
	b := &box{process: start(t, ns.command(args...)), dir: dir}
	b.waitLog("serving")
	return b
}

// status returns what `socketbox status --json` says.
func (b *box) status() *binder.Status {
	b.t.Helper()
	out := mustRun(b.t, filepath.Join(programs, "socketbox"), "status", "--json", "--dir", b.dir)
	s := &binder.Status{}
	if err := json.Unmarshal([]byte(out), s); err != nil {
		b.t.Fatalf("status: %v\n%s", err, out)
	}
	return s
}

// binderPID is the binder's process id, also where the command that started
// it was a wrapper that stays.
func (b *box) binderPID() int { return b.status().PID }

// inetd starts socketbox-inetd in ns and waits until it receives. args are
// flags, then "--" and the command.
func inetd(t *testing.T, ns namespace, dir string, args ...string) *process {
	t.Helper()
	args = append([]string{filepath.Join(programs, "socketbox-inetd"), "--dir", dir}, args...)
	p := start(t, ns.command(args...))
	p.waitLog("receiving")
	return p
}

// freePort returns a TCP port that nobody listened on a moment ago, on either
// family, and that it has not returned before. It is below those that the
// kernel gives to clients (ip_local_port_range).
func freePort(t *testing.T) int {
	t.Helper()
	const first, count = 15000, 15000
	for range count {
		port := first + int(portNumber.Add(1)+int32(os.Getpid())*97)%count
		if l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

var portNumber atomic.Int32
