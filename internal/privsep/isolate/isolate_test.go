package isolate

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What Apply takes can't be given back, so each test runs this binary again:
// as the launcher, which applies and executes it once more, as the daemon,
// which tries everything and prints what became of it.
const roleVariable = "SOCKETBOX_TEST_ISOLATE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	switch {
	case strings.HasPrefix(role, "launch "):
		launch(strings.Fields(role)[1:])
	case role == "daemon":
		daemon()
	default:
		os.Exit(m.Run())
	}
}

// launch MODE CONNECT-PORT BIND-PORT KEPT-CAPABILITY; 0 stands for none.
func launch(args []string) {
	runtime.LockOSThread()
	var o Options
	o.Mode = Mode(args[0])
	number := func(i int) uint64 { n, _ := strconv.ParseUint(args[i], 10, 16); return n }
	if n := number(1); n != 0 {
		o.AllowConnect = []uint16{uint16(n)}
	}
	if n := number(2); n != 0 {
		o.AllowBind = []uint16{uint16(n)}
	}
	if n := number(3); n != 0 {
		o.KeepCaps = []uint{uint(n)}
	}
	if err := Apply(o); err != nil {
		fmt.Println("apply:", err)
		os.Exit(1)
	}
	os.Setenv(roleVariable, "daemon")
	fmt.Println("exec:", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	os.Exit(1)
}

// daemon finds the port that it should connect to and the one that it should
// bind in its environment.
func daemon() {
	connect, _ := strconv.Atoi(os.Getenv("CONNECT"))
	bind, _ := strconv.Atoi(os.Getenv("BIND"))
	for _, try := range []struct {
		what string
		do   func() error
	}{
		{"connect", func() error { return unix.Connect(stream(), loopback(connect)) }},
		{"bind", func() error { return unix.Bind(stream(), loopback(bind)) }},
		{"sendto fastopen", func() error { return unix.Sendto(stream(), []byte("x"), unix.MSG_FASTOPEN, loopback(connect)) }},
		{"sendmsg fastopen", func() error { return unix.Sendmsg(stream(), []byte("x"), nil, loopback(connect), unix.MSG_FASTOPEN) }},
		{"sendmmsg fastopen", func() error { return call(unix.SYS_SENDMMSG, uintptr(stream()), 0, 0, unix.MSG_FASTOPEN) }},
		{"sendto", sendDatagram},
		{"io_uring", func() error { return call(unix.SYS_IO_URING_SETUP, 1, 0) }},
		{"netns of a socket", func() error { return call(unix.SYS_IOCTL, uintptr(stream()), siocgskns) }},
		{"netns of a socket, high bits set", func() error { return call(unix.SYS_IOCTL, uintptr(stream()), siocgskns|1<<40) }},
		{"another ioctl", func() error { _, err := unix.IoctlGetInt(stream(), unix.SIOCATMARK); return err }},
		{"x32", func() error { return call(unix.SYS_GETPID | x32) }},
		{"NET_ADMIN", has(unix.CAP_NET_ADMIN)},
		{"SYS_ADMIN", has(unix.CAP_SYS_ADMIN)},
		{"SYS_PTRACE", has(unix.CAP_SYS_PTRACE)},
		{"CHOWN", has(unix.CAP_CHOWN)},
	} {
		err := try.do()
		answer := "yes"
		if err != nil {
			answer = err.Error()
		}
		fmt.Printf("%s: %s\n", try.what, answer)
	}
	os.Exit(0)
}

func stream() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		fmt.Println("socket:", err)
		os.Exit(1)
	}
	return fd
}

func loopback(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// sendDatagram does what no cure may touch.
func sendDatagram() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, loopback(0)); err != nil {
		return err
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("x"), unix.MSG_NOSIGNAL, self)
}

// has looks for a capability in the effective and in the bounding set.
func has(c uint) func() error {
	return func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&header, &sets[0]); err != nil {
			return err
		}
		bounding, _, _ := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, uintptr(c), 0)
		if sets[c/32].Effective&(1<<(c%32)) == 0 && (os.Getuid() != 0 || bounding == 0) {
			return errors.New("no")
		}
		return nil
	}
}

// isolated runs the daemon behind a launcher and returns its answers.
func isolated(t *testing.T, uid int, mode Mode, connect, bind int, args ...string) map[string]string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=launch "+string(mode)+" "+strings.Join(args, " "),
		fmt.Sprintf("CONNECT=%d", connect), fmt.Sprintf("BIND=%d", bind))
	if uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	answers := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		what, answer, _ := strings.Cut(line, ": ")
		answers[what] = answer
	}
	return answers
}

func TestIsolate(t *testing.T) {
	if missing, _ := Check(Options{Mode: Auto}); missing != nil {
		if os.Getenv("NETNS") == "require" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	free := freePort(t)
	const yes, denied = "yes", "permission denied"
	noFastOpen, noCall, refused := unix.EOPNOTSUPP.Error(), unix.ENOSYS.Error(), unix.EPERM.Error()
	always := map[string]string{"sendto fastopen": noFastOpen, "sendmsg fastopen": noFastOpen, "sendmmsg fastopen": noFastOpen, "sendto": yes,
		"io_uring": noCall, "netns of a socket": refused, "netns of a socket, high bits set": refused, "another ioctl": yes, "x32": noCall,
		"NET_ADMIN": "no", "SYS_ADMIN": "no", "SYS_PTRACE": "no"}
	for _, test := range []struct {
		name string
		mode Mode
		args []string
		want map[string]string
	}{
		{"off", Off, []string{"0", "0", "0"}, map[string]string{"connect": yes, "bind": yes, "io_uring": unix.EFAULT.Error()}},
		{"auto", Auto, []string{"0", "0", "0"}, map[string]string{"connect": denied, "bind": yes}},
		{"auto, may connect", Auto, []string{strconv.Itoa(port), "0", "0"}, map[string]string{"connect": yes}},
		{"auto, may connect elsewhere", Auto, []string{"9", "0", "0"}, map[string]string{"connect": denied}},
		{"strict", Strict, []string{"0", "0", "0"}, map[string]string{"connect": denied, "bind": denied}},
		{"strict, may bind", Strict, []string{"0", strconv.Itoa(free), "0"}, map[string]string{"connect": denied, "bind": yes}},
	} {
		for _, uid := range uids() {
			t.Run(fmt.Sprintf("%s as uid %d", test.name, uid), func(t *testing.T) {
				got := isolated(t, uid, test.mode, port, free, test.args...)
				if test.mode != Off {
					compare(t, got, always)
				}
				compare(t, got, test.want)
				if uid == 0 && got["CHOWN"] != yes {
					t.Errorf("a capability that nobody named is gone: %v", got)
				}
			})
		}
	}
}

// uids are this one and, if it is root's, an ordinary one.
func uids() []int {
	if os.Getuid() == 0 {
		return []int{0, 65534}
	}
	return []int{os.Getuid()}
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for what, answer := range want {
		if got[what] != answer {
			t.Errorf("%s: %q, want %q", what, got[what], answer)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestKeepCaps(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	got := isolated(t, 0, Auto, 9, 0, "0", "0", strconv.Itoa(unix.CAP_NET_ADMIN))
	compare(t, got, map[string]string{"NET_ADMIN": "yes", "SYS_ADMIN": "no", "SYS_PTRACE": "no"})
}

func TestCheck(t *testing.T) {
	for _, o := range []Options{{}, {Mode: "none"}, {Mode: Auto, AllowBind: []uint16{80}}} {
		if _, err := Check(o); err == nil {
			t.Errorf("%+v passes", o)
		}
	}
	if missing, err := Check(Options{Mode: Off}); missing != nil || err != nil {
		t.Errorf("off: %v, %v", missing, err)
	}
}

// TestFilter looks at the program's jumps: each must stay inside.
func TestFilter(t *testing.T) {
	for machine, arch := range arches {
		program := filter(arch)
		for i, in := range program {
			if in.Code&7 == unix.BPF_JMP && i+1+int(max(in.Jt, in.Jf)) >= len(program) {
				t.Errorf("%s: instruction %d jumps out", machine, i)
			}
		}
	}
}
