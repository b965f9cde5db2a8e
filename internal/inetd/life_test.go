package inetd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTermServesWhatIsQueued: more is sent than may run at once, so that the
// queue is full, and then it is told to end: everything that was taken from
// the sender is served.
func TestTermServesWhatIsQueued(t *testing.T) {
	t.Parallel()
	d := start(t, "--max", "2", "--", "sh", "-c", "sleep 0.05; echo ok")
	sock := d.sender()
	if err := unix.SetNonblock(sock, true); err != nil {
		t.Fatal(err)
	}
	var sent []net.Conn
	for {
		client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
		if err := send(sock, accepted); err == unix.EAGAIN {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, client)
	}
	if len(sent) < 5 {
		t.Fatalf("only %d fit", len(sent))
	}
	d.signal(unix.SIGTERM)
	for i, client := range sent {
		if got := answer(t, client); got != "ok\n" {
			t.Errorf("client %d of %d: got %q", i, len(sent), got)
		}
	}
	if code := d.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if _, err := os.Lstat(d.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file is left: %v", err)
	}
	client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
	if err := send(sock, accepted); err == nil || err == unix.EAGAIN {
		t.Errorf("a later sender is told %v", err)
	}
	client.Close()
}

// TestTermUnderLoad: whatever a sender got rid of is served, whenever the end
// comes; a successor takes the rest.
func TestTermUnderLoad(t *testing.T) {
	t.Parallel()
	first := start(t, "--max", "4", "--", "echo", "ok")
	d := first
	for round := range 5 {
		go func(d *instance) {
			time.Sleep(time.Duration(20+round*7) * time.Millisecond)
			d.cmd.Process.Signal(unix.SIGTERM)
		}(d)
		sock := d.sender()
		served := 0
		for {
			client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
			if err := send(sock, accepted); err == unix.EPIPE || err == unix.ECONNREFUSED {
				client.Close()
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if got := answer(t, client); got != "ok\n" {
				t.Fatalf("round %d, after %d: got %q", round, served, got)
			}
			client.Close()
			served++
		}
		if code := d.exit(); code != 0 || served == 0 {
			t.Fatalf("exit status %d after %d", code, served)
		}
		d = prepare(t, "--max", "4", "--", "echo", "ok")
		d.cmd.Args[2], d.path = first.path, first.path // the same path
		d.run().expect("receiving")
	}
}

// TestSuccessorBindsAtOnce: while the children of one that ends go on, the
// next one receives on the same path.
func TestSuccessorBindsAtOnce(t *testing.T) {
	d := start(t, "--", "cat")
	client := d.connect()
	fmt.Fprint(client, "x")
	if !served(client, 5*time.Second) {
		t.Fatal("not served")
	}
	d.signal(unix.SIGTERM)
	d.expect("ending when all children have ended .*children=1")
	next := prepare(t, "--", "echo", "next")
	next.cmd.Args[2], next.path = d.path, d.path
	next.run().expect("receiving")
	if got := answer(t, next.connect()); got != "next\n" {
		t.Errorf("got %q", got)
	}
	client.Close()
	if code := d.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if got := answer(t, next.connect()); got != "next\n" {
		t.Errorf("after the end of the first: got %q", got)
	}
}

func TestSecondSignalEndsNow(t *testing.T) {
	t.Parallel()
	d := start(t, "--max", "1", "--kill-after", "200ms", "--", "sh", "-c", `trap "" TERM; echo ok; while :; do sleep 1; done`)
	running := d.connect()
	if !served(running, 5*time.Second) {
		t.Fatal("not served")
	}
	waiting := d.connect()
	d.signal(unix.SIGTERM)
	d.expect("ending when all children have ended")
	d.signal(unix.SIGINT)
	if code := d.exit(); code != 1 || !strings.Contains(d.log.String(), "error: ended by a second signal, 1 connections were reset") {
		t.Errorf("exit status %d", code)
	}
	waiting.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := io.ReadAll(waiting); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the waiting client sees %v", err)
	}
}

func TestHangUpAndDump(t *testing.T) {
	d := start(t, "--log-connections", "--", "cat")
	client := d.connect()
	d.signal(unix.SIGHUP)
	d.expect("info: nothing to reload")
	d.until("running", 1)
	d.expect(`info: child pid=\d+ client=127.0.0.1:\d+ age=`)
	client.(*net.TCPConn).CloseWrite()
	answer(t, client)
	d.expect(`info: connection client=` + client.LocalAddr().String() + ` local=` + client.RemoteAddr().String() +
		` listener=web pid=\d+ status=0 waited=\S+ duration=\S+`)
	d.signal(unix.SIGINT)
	if code := d.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestWaitsForTheDirectory: it may be started before `socketbox bind`.
func TestWaitsForTheDirectory(t *testing.T) {
	d := prepare(t, "--", "echo", "ok")
	dir := filepath.Join(filepath.Dir(d.path), "later")
	d.path = filepath.Join(dir, "s.sock")
	d.cmd.Args[2] = d.path
	d.run().expect("waiting for the socket directory")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.expect("receiving")
	if got := answer(t, d.connect()); got != "ok\n" {
		t.Errorf("got %q", got)
	}
	never := prepare(t, "--", "echo", "ok")
	never.cmd.Args[2] = filepath.Join(dir, "never", "s.sock")
	never.run().expect("waiting for the socket directory")
	never.signal(unix.SIGTERM)
	if code := never.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestFileRemoved: somebody has removed the socket file, or the directory was
// made anew.
func TestFileRemoved(t *testing.T) {
	t.Parallel()
	d := start(t, "--", "echo", "ok")
	old := d.sender()
	for _, remove := range []func(string) error{os.Remove, func(path string) error { return os.RemoveAll(filepath.Dir(path)) }} {
		if err := remove(d.path); err != nil {
			t.Fatal(err)
		}
		os.MkdirAll(filepath.Dir(d.path), 0o755)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Lstat(d.path); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal("it is not bound again")
			}
		}
		if got := answer(t, d.connect()); got != "ok\n" {
			t.Errorf("got %q", got)
		}
	}
	client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
	if err := send(old, accepted); err != unix.EPIPE && err != unix.ECONNREFUSED {
		t.Errorf("a sender on the old socket is told %v", err)
	}
	client.Close()
}

// TestProcessOne: in a container it is process 1, whose signals have no
// default, and to which the orphans of others come.
func TestProcessOne(t *testing.T) {
	d := prepare(t, "--", "sh", "-c", "echo $PPID; (sh -c 'exec sleep 0.1' &) ")
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if os.Getuid() != 0 {
		d.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		d.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		d.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	d.run().expect("receiving")
	client := d.connect()
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	var parent int
	if fmt.Fscan(client, &parent); parent != 1 {
		t.Errorf("the child's parent is %d", parent)
	}
	d.expect("waited for a process that is not a child of ours")
	if left := children(d.cmd.Process.Pid); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	d.signal(unix.SIGTERM)
	if code := d.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestStartedWithSignalsIgnoredAndBlocked: as by nohup, or by a parent that
// cares little.
func TestStartedWithSignalsIgnored(t *testing.T) {
	d := prepare(t)
	script := fmt.Sprintf(`trap "" HUP INT PIPE TTIN TTOU TSTP USR2 QUIT; exec %s --socket %s -- cat /proc/self/status`, program, d.path)
	d.cmd = exec.Command("sh", "-c", script)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.run().expect("receiving")
	text := answer(t, d.connect())
	for _, name := range []string{"SigIgn", "SigBlk"} {
		if !strings.Contains(text, name+":\t0000000000000000\n") {
			t.Errorf("%s is not empty in %q", name, text)
		}
	}
	d.signal(unix.SIGINT)
	if code := d.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

func TestExitStatusAndMessages(t *testing.T) {
	live := start(t, "--", "true")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.sock")
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "Examples:"},
		{[]string{"--version"}, 0, "socketbox-inetd version"},
		{[]string{"completion", "bash"}, 0, "__start_socketbox-inetd"},
		{nil, 2, "error: no command to run"},
		{[]string{"--no-such-flag", "--", "true"}, 2, "hint: socketbox-inetd --help"},
		{[]string{"--port", "0", "--", "true"}, 2, "error: --port"},
		{[]string{"--port", "65536", "--", "true"}, 2, "error: "},
		{[]string{"--socket", path, "--port", "1", "--", "true"}, 2, "error: --socket is a whole path"},
		{[]string{"--max", "0", "--", "true"}, 2, "error: --max"},
		{[]string{"--rate", "x", "--", "true"}, 2, "error: --rate"},
		{[]string{"--mode", "999", "--", "true"}, 2, "error: --mode"},
		{[]string{"--stderr", "x", "--", "true"}, 2, "error: --stderr"},
		{[]string{"--rlimit", "x=1", "--", "true"}, 2, "want one of as, core"},
		{[]string{"--user", "no such", "--", "true"}, 2, "error: --user"},
		{[]string{"--log", "xml", "--", "true"}, 2, "want one of text, json"},
		{[]string{"--socket", path, "--", "no-such-program"}, 127, "error: execute no-such-program: not found\nhint: "},
		{[]string{"--socket", path, "--", file}, 126, "error: execute " + file + ": permission denied"},
		{[]string{"--socket", path, "--chdir", "/does/not/exist", "--", "true"}, 1, "chdir /does/not/exist: no such file"},
		{[]string{"--socket", live.path, "--", "true"}, 1, "address already in use\nhint: "},
		{[]string{"--socket", file, "--", "true"}, 1, "the file is there and no socket"},
	}
	for _, tt := range tests {
		cmd := exec.Command(program, tt.args...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q: exit status %d, %v\n%s", tt.args, code, err, out)
		}
	}
}

// TestActivation: the receiving socket comes from the service manager; what is
// sent while nobody runs waits in it.
func TestActivation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	var waiting net.Conn
	for range 2 {
		d := prepare(t)
		d.path = path
		d.cmd = exec.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec "+program+` -- sh -c 'echo "ok $LISTEN_FDS"'`)
		d.cmd.ExtraFiles = []*os.File{file}
		d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
		d.run().expect("receiving connections socket=" + path)
		if waiting != nil {
			if got := answer(t, waiting); got != "ok \n" {
				t.Errorf("got %q", got)
			}
		}
		if got := answer(t, d.connect()); got != "ok \n" {
			t.Errorf("got %q", got)
		}
		d.signal(unix.SIGTERM)
		if code := d.exit(); code != 0 {
			t.Errorf("exit status %d", code)
		}
		waiting = d.connect()
	}
}

func TestNotifiesTheServiceManager(t *testing.T) {
	d := prepare(t, "--", "sh", "-c", `echo "$NOTIFY_SOCKET"`)
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect := func(want string) {
		t.Helper()
		l.SetReadDeadline(time.Now().Add(5 * time.Second))
		for buf := make([]byte, 4096); ; {
			n, _, err := l.ReadFrom(buf)
			if err != nil {
				t.Fatalf("no %s: %v", want, err)
			}
			if strings.Contains("\n"+string(buf[:n]), "\n"+want) {
				return
			}
		}
	}
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	d.run()
	expect("READY=1")
	if got := answer(t, d.connect()); got != "\n" {
		t.Errorf("the child has NOTIFY_SOCKET=%q", got)
	}
	expect("STATUS=0 running, 0 waiting, 1 served")
	d.signal(unix.SIGHUP)
	expect("RELOADING=1\nMONOTONIC_USEC=")
	expect("READY=1")
	d.signal(unix.SIGTERM)
	expect("STOPPING=1")
	d.exit()
}

// TestLogReaderGone: that nobody reads the log any more ends nothing.
func TestLogReaderGone(t *testing.T) {
	d := prepare(t, "--log-connections", "--", "echo", "ok")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stdout, d.cmd.Stderr = nil, writer
	d.run()
	writer.Close()
	if _, err := reader.Read(make([]byte, 1)); err != nil { // it receives
		t.Fatal(err)
	}
	reader.Close()
	for range 3 {
		d.signal(unix.SIGHUP)
		if got := answer(t, d.connect()); got != "ok\n" {
			t.Errorf("got %q", got)
		}
	}
	d.signal(unix.SIGTERM)
	if code := d.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}
