//go:build compat

package compat

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// daemon is one row of the table: a real daemon in one configuration.
type daemon struct {
	name     string // of the row
	packages string // Debian packages whose versions are told
	remark   string
	user     string // who binds; "" is root
	listens  string // families that the daemon listens on itself: "4" or "46"
	loopback bool   // it takes only clients from 127.0.0.1 and ::1
	requests int    // of the load, 2000 if it is 0
	prelude  string // shell, run in the daemon's namespaces before it
	env      []string

	// prepare writes the configuration into i.dir and returns the command.
	prepare func(i *instance) ([]string, error)
	// ask sends one request over a fresh connection and reads the answer.
	ask func(c net.Conn) error
	// report makes one request and returns what the daemon says of it.
	report func(i *instance, d *net.Dialer, to string) (*sight, error)
	// reload makes the daemon read its configuration again; 0: it can't.
	reload syscall.Signal
	// upgrade is done instead of sending the signal, if it is not nil.
	upgrade func(i *instance) error
	// reloaded is what it writes then: to the file logFile in its folder, or to
	// stderr if that is "".
	reloaded, logFile string
	// starting is what it answers while it is not ready; clients come again.
	starting string
	// special checks what is this daemon's own.
	special func(i *instance) error

	// reds are cells known to be red, with the reason.
	reds map[string]string
}

// instance is a running daemon.
type instance struct {
	*daemon
	t       testing.TB
	dir     string // its own, readable for everybody
	port    int
	preload bool
	lent    []string // addresses that socketbox listens on and lends; nil: it hands off
	sockets string   // its socket directory, if preload
	log     record
	argv    []string // its command
	cmd     *exec.Cmd
	done    chan struct{}
}

// record is a program's stdout and stderr, readable while it is written.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *record) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *record) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// tail returns the last n lines.
func (o *record) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(o.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// file writes a file in the instance's folder and returns its path.
func (i *instance) file(name, content string) string {
	path := filepath.Join(i.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
		err = os.WriteFile(path, []byte(content), 0o644)
	}
	return path
}

// folder makes a folder in the instance's, owned by the named user.
func (i *instance) folder(name, owner string) (string, error) {
	path := filepath.Join(i.dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	uid, gid, err := ids(owner)
	if err != nil {
		return "", err
	}
	return path, os.Chown(path, uid, gid)
}

func ids(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, err
	}
	uid, _ = strconv.Atoi(u.Uid)
	gid, _ = strconv.Atoi(u.Gid)
	return uid, gid, nil
}

// temporary returns a folder that every user may reach, until the test ends.
func temporary(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "compat-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// freePort returns a port that nobody listened on a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// bind starts `socketbox bind` for an instance and makes its socket directory.
func (i *instance) bind() error {
	main := filepath.Join(i.dir, "box")
	args := []string{"bind", "--user", "nobody", "--dir", main}
	i.sockets = main
	if i.lent != nil {
		args = append(args, "--config", i.lendingConfig(main))
	} else {
		args = append(args, "--listen", fmt.Sprintf(":%d", i.port))
	}
	if i.user != "" && i.lent == nil {
		i.sockets = filepath.Join(main, i.user)
		args = append(args, "--target", i.sockets+"/")
	}
	b := &instance{daemon: &daemon{name: "socketbox bind"}, t: i.t}
	program, err := filepath.Abs(filepath.Join(*bin, "socketbox"))
	if err != nil {
		return err
	}
	if err := b.run(exec.Command(program, args...)); err != nil {
		return err
	}
	i.t.Cleanup(func() {
		if i.t.Failed() {
			i.t.Logf("socketbox bind: %s", b.log.tail(20))
		}
	})
	if err := b.says("serving", 10*time.Second); err != nil {
		return err
	}
	if i.user == "" || i.lent != nil {
		return nil
	}
	info, err := os.Stat(main)
	if err != nil {
		return err
	}
	uid, _, err := ids(i.user)
	if err != nil {
		return err
	}
	if err := os.Mkdir(i.sockets, 0o750); err != nil {
		return err
	}
	if err := os.Chown(i.sockets, uid, int(info.Sys().(*syscall.Stat_t).Gid)); err != nil {
		return err
	}
	return os.Chmod(i.sockets, 0o2750|os.ModeSetgid)
}

// start starts the daemon natively or preloaded. What it started ends with
// the test.
func start(t testing.TB, d *daemon, preload bool) (*instance, error) {
	return startOn(t, d, preload, nil)
}

// startOn does the same; lent are addresses, without a port, that socketbox lends.
func startOn(t testing.TB, d *daemon, preload bool, lent []string) (*instance, error) {
	i := &instance{daemon: d, t: t, dir: temporary(t), port: freePort(t), preload: preload, lent: lent}
	if preload {
		if err := i.bind(); err != nil {
			return i, err
		}
	}
	command, err := d.prepare(i)
	if err != nil {
		return i, fmt.Errorf("prepare: %w", err)
	}
	i.argv = command
	return i, i.begin()
}

// begin runs the daemon as it was prepared.
func (i *instance) begin() error {
	cmd, err := i.command(i.argv)
	if err != nil {
		return err
	}
	return i.run(cmd)
}

// command wraps a daemon's command: its namespaces, its user, its library.
// The pid namespace ends whatever the daemon has started when it ends.
func (i *instance) command(daemon []string) (*exec.Cmd, error) {
	flags, script := "-pmi", i.prelude
	if i.preload {
		flags = "-npmi"
		script = "ip link set lo up\n" + script
	}
	args := []string{flags, "--fork", "--kill-child", "--mount-proc", "--", "sh", "-ec", script + "\nexec \"$@\"", "sh"}
	if i.user != "" {
		args = append(args, "setpriv", "--reuid", i.user, "--regid", i.user, "--clear-groups", "--")
	}
	args = append(args, "env")
	args = append(args, i.env...)
	if i.preload {
		library, err := filepath.Abs(filepath.Join(*bin, "libsocketbox-preload.so"))
		if err != nil {
			return nil, err
		}
		args = append(args, "SOCKETBOX_DIR="+i.sockets, fmt.Sprintf("SOCKETBOX_PORTS=%d", i.port), "SOCKETBOX_HANDOFF="+i.handoff(), "LD_PRELOAD="+library)
		if os.Getenv("COMPAT_DEBUG") != "" {
			args = append(args, "SOCKETBOX_DEBUG=1")
		}
	}
	return exec.Command("unshare", append(args, daemon...)...), nil
}

func (i *instance) run(cmd *exec.Cmd) error {
	i.cmd, i.done = cmd, make(chan struct{})
	cmd.Stdout, cmd.Stderr = &i.log, &i.log
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		cmd.Wait()
		close(i.done)
	}()
	i.t.Cleanup(i.kill)
	return nil
}

// kill ends the daemon and all that it started.
func (i *instance) kill() {
	if i.cmd != nil && i.cmd.Process != nil {
		syscall.Kill(-i.cmd.Process.Pid, syscall.SIGKILL)
		<-i.done
	}
}

var errEnded = errors.New("it has ended")

func (i *instance) ended() bool {
	select {
	case <-i.done:
		return true
	default:
		return false
	}
}

// says waits until the output contains text.
func (i *instance) says(text string, limit time.Duration) error {
	return within(limit, func() error {
		if strings.Contains(i.log.String(), text) {
			return nil
		}
		if i.ended() {
			return fmt.Errorf("%s: %w: %s", i.name, errEnded, i.log.tail(5))
		}
		return fmt.Errorf("%s does not say %q: %s", i.name, text, i.log.tail(5))
	})
}

// within repeats check until it returns nil.
func within(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || errors.Is(err, errEnded) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// serves waits until the daemon answers a client.
func (i *instance) serves() error {
	return within(60*time.Second, func() error {
		if i.ended() {
			return fmt.Errorf("%w: %s", errEnded, i.log.tail(5))
		}
		return i.once(&net.Dialer{Timeout: 5 * time.Second}, fmt.Sprintf("127.0.0.1:%d", i.port), 10*time.Second)
	})
}

// once makes one request over a new connection, again if the daemon answers
// that it is starting.
func (i *instance) once(d *net.Dialer, to string, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := i.try(d, to, limit)
		if err == nil || i.starting == "" || !strings.Contains(err.Error(), i.starting) || time.Now().After(deadline) {
			return err
		}
	}
}

func (i *instance) try(d *net.Dialer, to string, limit time.Duration) error {
	c, err := d.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	return i.ask(c)
}

// reloads counts how often the daemon says that it has reloaded.
func (i *instance) reloads() int {
	text := i.log.String()
	if i.logFile != "" {
		b, err := os.ReadFile(filepath.Join(i.dir, i.logFile))
		if err != nil {
			return 0
		}
		text = string(b)
	}
	return strings.Count(text, i.reloaded)
}

// signal sends a signal to the daemon's first process.
func (i *instance) signal(s syscall.Signal) error {
	pid, err := i.first()
	if err != nil {
		return err
	}
	return syscall.Kill(pid, s)
}

// first returns the daemon's first process, which is pid 1 of its namespace.
func (i *instance) first() (int, error) {
	pid := i.cmd.Process.Pid
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
