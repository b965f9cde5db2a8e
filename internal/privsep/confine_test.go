package privsep

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Confinement can't be undone, so each test of it runs this test binary again
// as a victim that confines itself and then commits one crime.
const victimVariable = "SOCKETBOX_TEST_VICTIM"

func TestMain(m *testing.M) {
	if crime := os.Getenv(victimVariable); crime != "" {
		os.Exit(victim(crime))
	}
	switch what := os.Getenv(guardVariable); {
	case what == "":
	case what == "bind":
		os.Exit(bindWhenTold())
	case strings.HasPrefix(what, "join "):
		os.Exit(joinGuardOf(what[len("join "):]))
	default:
		os.Exit(guardMember(what))
	}
	os.Exit(m.Run())
}

// Exit statuses of a victim, besides death.
const (
	exitAllowed = 10 // the call worked
	exitRefused = 20 // the call failed with the errno that is printed
)

func victim(crime string) int {
	role, name, _ := strings.Cut(crime, " ")
	confine := map[string]func() error{"binder": ConfineBinder, "dispatcher": ConfineDispatcher}[role]
	if err := confine(); err != nil {
		fmt.Println("confine:", err)
		return 1
	}
	err := crimes[name]()
	if err == nil {
		return exitAllowed
	}
	fmt.Print(err)
	return exitRefused
}

func raw(trap uintptr, args ...uintptr) func() error {
	return func() error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, errno := unix.RawSyscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

func text(s string) uintptr {
	p, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(p))
}

var crimes = map[string]func() error{
	"nothing":        func() error { return nil },
	"collect":        collect,
	"socket tcp":     raw(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0),
	"socket unix":    raw(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0),
	"connect":        raw(unix.SYS_CONNECT, 3, 0, 0),
	"bind":           raw(unix.SYS_BIND, 3, 0, 0),
	"listen":         raw(unix.SYS_LISTEN, 3, 1),
	"open":           func() error { _, err := os.ReadFile("/etc/passwd"); return errors.Unwrap(err) },
	"execve":         raw(unix.SYS_EXECVE, text("/bin/true"), 0, 0),
	"fork":           raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
	"kill parent":    func() error { return raw(unix.SYS_KILL, uintptr(os.Getppid()), 0)() },
	"tgkill parent":  func() error { p := uintptr(os.Getppid()); return raw(unix.SYS_TGKILL, p, p, 0)() },
	"tgkill self":    func() error { p := uintptr(os.Getpid()); return raw(unix.SYS_TGKILL, p, p, 0)() },
	"fastopen":       raw(unix.SYS_SENDMSG, 3, 0, unix.MSG_FASTOPEN|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL),
	"send waiting":   raw(unix.SYS_SENDMSG, 3, 0, unix.MSG_NOSIGNAL),
	"send":           raw(unix.SYS_SENDMSG, 999, 0, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL),
	"fastopen many":  raw(unix.SYS_SENDMMSG, 3, 0, 1, unix.MSG_FASTOPEN|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL),
	"send many":      raw(unix.SYS_SENDMMSG, 999, 0, 1, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL),
	"receive other":  raw(unix.SYS_RECVMSG, 5, 0, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC),
	"executable":     raw(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS),
	"limit of other": raw(unix.SYS_PRLIMIT64, 1, unix.RLIMIT_NOFILE, 0, 0),
	"setsockopt":     raw(unix.SYS_SETSOCKOPT, 3, unix.SOL_SOCKET, unix.SO_MARK, 0, 0),
	"cookie":         raw(unix.SYS_GETSOCKOPT, 999, unix.SOL_SOCKET, unix.SO_COOKIE, 0, 0),
	"backlog":        raw(unix.SYS_GETSOCKOPT, 999, unix.IPPROTO_TCP, unix.TCP_INFO, 0, 0),
	"pidfd of peer":  raw(unix.SYS_GETSOCKOPT, 3, unix.SOL_SOCKET, unix.SO_PEERPIDFD, 0, 0),
	"ptrace":         raw(unix.SYS_PTRACE, unix.PTRACE_TRACEME),
	"io_uring":       raw(unix.SYS_IO_URING_SETUP, 1, 0),
	"setuid":         raw(unix.SYS_SETUID, 0),
	"setns":          raw(unix.SYS_SETNS, 0, 0),
	"unshare":        raw(unix.SYS_UNSHARE, unix.CLONE_NEWNET),
	"new user ns":    raw(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)),
	"clone3":         raw(unix.SYS_CLONE3, 0, 0),
	"bpf":            raw(unix.SYS_BPF, 0, 0, 0),
	"x32":            raw(0x40000000|unix.SYS_GETPID, 0),
	"threads":        threads,
}

// collect makes garbage and threads come and go, as they do at any hour.
func collect() error {
	for range 20 {
		b := make([]byte, 1<<20)
		b[0] = 1
		runtime.GC()
		done := make(chan bool)
		go func() {
			runtime.LockOSThread() // and never unlocks: the thread ends
			time.Sleep(time.Millisecond)
			close(done)
		}()
		<-done
	}
	return nil
}

// threads looks whether the filter holds on every thread, not only on the one
// that installed it.
func threads() error {
	go func() {
		runtime.LockOSThread()
		select {}
	}()
	time.Sleep(10 * time.Millisecond)
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 2 {
		return fmt.Errorf("%d threads, %w", len(tasks), err)
	}
	for _, task := range tasks {
		status, err := readStatus(task)
		if err != nil || status["Seccomp"] != "2" || status["NoNewPrivs"] != "1" {
			return fmt.Errorf("%s: Seccomp %s, NoNewPrivs %s, %w", task, status["Seccomp"], status["NoNewPrivs"], err)
		}
	}
	return nil
}

func TestCrimes(t *testing.T) {
	const dies = "bad system call"
	for _, test := range []struct{ crime, want string }{
		{"dispatcher nothing", "allowed"},
		{"dispatcher collect", "allowed"},
		{"dispatcher tgkill self", "allowed"},
		{"dispatcher socket tcp", dies},
		{"dispatcher socket unix", dies},
		{"dispatcher connect", dies},
		{"dispatcher bind", dies},
		{"dispatcher listen", dies},
		{"dispatcher open", unix.ENOENT.Error()},
		{"dispatcher execve", dies},
		{"dispatcher fork", dies},
		{"dispatcher kill parent", dies},
		{"dispatcher tgkill parent", dies},
		{"dispatcher fastopen", dies},
		{"dispatcher send waiting", dies},
		{"dispatcher send", unix.EBADF.Error()},
		{"dispatcher fastopen many", dies},
		{"dispatcher send many", unix.EBADF.Error()},
		{"dispatcher receive other", dies},
		{"dispatcher executable", dies},
		{"dispatcher limit of other", dies},
		{"dispatcher setsockopt", dies},
		{"dispatcher cookie", unix.EBADF.Error()},
		{"dispatcher backlog", unix.EBADF.Error()},
		{"dispatcher pidfd of peer", dies},
		{"dispatcher ptrace", dies},
		{"dispatcher io_uring", dies},
		{"dispatcher clone3", unix.ENOSYS.Error()},
		{"dispatcher x32", dies},
		{"binder nothing", "allowed"},
		{"binder threads", "allowed"},
		{"binder setuid", unix.EPERM.Error()},
		{"binder setns", unix.EPERM.Error()},
		{"binder unshare", unix.EPERM.Error()},
		{"binder new user ns", unix.EPERM.Error()},
		{"binder clone3", unix.ENOSYS.Error()},
		{"binder ptrace", unix.EPERM.Error()},
		{"binder bpf", unix.EPERM.Error()},
		{"binder io_uring", unix.EPERM.Error()},
		{"binder x32", dies},
	} {
		t.Run(test.crime, func(t *testing.T) {
			if got := commit(t, test.crime); got != test.want {
				t.Errorf("%s: %s, want %s", test.crime, got, test.want)
			}
		})
	}
}

// commit runs a victim and says what became of it: "allowed", the errno's
// text, or the signal's.
func commit(t *testing.T, crime string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimVariable+"="+crime)
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		t.Fatalf("%s: exit 0\n%s", crime, out)
	case !errors.As(err, &exit):
		t.Fatalf("%s: %v", crime, err)
	}
	ws := exit.Sys().(syscall.WaitStatus)
	switch {
	case ws.Signaled():
		return ws.Signal().String()
	case ws.ExitStatus() == exitAllowed:
		return "allowed"
	case ws.ExitStatus() == exitRefused:
		return string(out)
	}
	t.Fatalf("%s: exit %d\n%s%s", crime, ws.ExitStatus(), out, exit.Stderr)
	return ""
}

// TestLandlock shows that the ruleset alone, without the filter, denies files.
func TestLandlock(t *testing.T) {
	if os.Getenv("SOCKETBOX_TEST_LANDLOCK") != "" {
		if err := RestrictAll(); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		_, err := os.ReadFile("/etc/passwd")
		fmt.Print(errors.Is(err, unix.EACCES))
		os.Exit(0)
	}
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1)
	if errno != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatalf("this kernel has no Landlock: %v", errno)
		}
		t.Skipf("this kernel has no Landlock: %v", errno)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLandlock$")
	cmd.Env = append(os.Environ(), "SOCKETBOX_TEST_LANDLOCK=1")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "true" {
		t.Errorf("Landlock ABI %d: open of /etc/passwd denied: %s %v", version, out, err)
	}
}

// TestVerify shows that Verify sees a process with privileges for what it is.
func TestVerify(t *testing.T) {
	if err := Verify(0, Expectation{}); err == nil {
		t.Error("this process has no_new_privs unset or capabilities, and passes")
	}
	if err := Verify(1<<22+1, Expectation{}); err == nil || !strings.Contains(err.Error(), "can't be seen") {
		t.Errorf("no such process: %v", err)
	}
	good := map[string]string{
		"CapInh": "0", "CapPrm": "0", "CapEff": "0", "CapBnd": "0", "CapAmb": "0", "NoNewPrivs": "1", "Seccomp": "2",
		"Uid": "5\t5\t5\t5", "Gid": "6\t6\t6\t6", "Groups": "",
	}
	all := Expectation{NonRoot: true, Bounding: true, Seccomp: true}
	if err := all.check(good); err != nil {
		t.Errorf("all shed: %v", err)
	}
	for field, bad := range map[string]string{
		"CapInh": "0000000000000400", "CapPrm": "1", "CapEff": "1", "CapBnd": "0000000000000001", "CapAmb": "", "NoNewPrivs": "0",
		"Seccomp": "1", "Uid": "5\t5\t0\t5", "Gid": "0\t0\t0\t0", "Groups": "4 24",
	} {
		status := map[string]string{}
		for k, v := range good {
			status[k] = v
		}
		status[field] = bad
		if err := all.check(status); err == nil || !strings.Contains(err.Error(), strings.ToLower(field[:1])) && !strings.Contains(err.Error(), field) {
			t.Errorf("%s = %q passes: %v", field, bad, err)
		}
	}
}

// TestReexec sheds root by exec in a subprocess, which then looks at itself.
func TestReexec(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "sbxt-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	program := filepath.Join(dir, "shed")
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/shed").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(program).CombinedOutput()
	if err != nil || string(out) != "state of 5 bytes, 1 descriptors, pid kept\n" {
		t.Errorf("%v\n%s", err, out)
	}
	os.Chmod(program, 0o700)
	out, err = exec.Command(program).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "chmod 0755") {
		t.Errorf("a program that others may not execute: %v\n%s", err, out)
	}
}
