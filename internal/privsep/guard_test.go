package privsep

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A guard is entered by a whole process, so each test runs this test binary
// again as one that enters. tests/netns has what a hostile daemon tries.
const guardVariable = "SOCKETBOX_TEST_GUARD"

func needGuard(t *testing.T) {
	t.Helper()
	_, err := ownGroup()
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("NETNS") == "require" {
		t.Fatalf("needs root and cgroup v2: %v", err)
	}
	t.Skipf("needs root and cgroup v2: %v", err)
}

// guardMember is what runs again: it enters a guard, prints its group and what
// it finds, and stays inside until its standard input ends.
func guardMember(what string) int {
	g, err := EnterGuard(65534, 65534)
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println(g.Path, insideGuard(g, what))
	os.Stdin.Read(make([]byte, 1))
	return 0
}

func insideGuard(g *Guard, what string) error {
	switch what {
	case "dispatcher": // a child that is placed may not bind what was made inside
		fd, _ := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), guardVariable+"=bind")
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "socket")}
		in, _ := cmd.StdinPipe()
		out := &strings.Builder{}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			return err
		}
		if err := g.Place(cmd.Process.Pid); err != nil {
			return err
		}
		in.Close()
		cmd.Wait()
		if got := out.String(); got != unix.EPERM.Error() {
			return fmt.Errorf("bind in the dispatcher's group: %q", got)
		}
	case "leave":
		if err := g.Leave(); err != nil {
			return err
		}
		fd, _ := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		unix.Bind(fd, &unix.SockaddrInet4{})
		if _, err := os.Stat(g.Path); err == nil || Guarded(fd) {
			return fmt.Errorf("still there: %v, or still guarded", err)
		}
	}
	return nil
}

// bindWhenTold binds descriptor 3 once standard input ends.
func bindWhenTold() int {
	os.Stdin.Read(make([]byte, 1))
	fmt.Print(unix.Bind(3, &unix.SockaddrInet6{}))
	return 0
}

// member starts a process that enters a guard; its group is gone at the end.
func member(t *testing.T, what string) (path string, end func()) {
	t.Helper()
	needGuard(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guardVariable+"="+what)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		in.Close()
		cmd.Wait()
	}
	line := make([]byte, 4096)
	n, _ := out.Read(line)
	path, result, _ := strings.Cut(strings.TrimSpace(string(line[:n])), " ")
	t.Cleanup(func() {
		end()
		RemoveGuard(path)
	})
	if result != "<nil>" {
		t.Fatalf("%s %s", path, result)
	}
	return path, end
}

func TestGuardDispatcher(t *testing.T) { member(t, "dispatcher") }

func TestGuardLeave(t *testing.T) { member(t, "leave") }

// TestGuardGroups: a guard is alive while its process is, then dead, then
// removed; another's is left alone.
func TestGuardGroups(t *testing.T) {
	other, _ := member(t, "stay")
	path, end := member(t, "stay")
	if alive, there := groupState(t, path); !alive || !there {
		t.Fatalf("%s: alive %v, there %v", path, alive, there)
	}
	if err := RemoveGuard(path); err == nil {
		t.Error("a guard with a process in it was removed")
	}
	end()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if alive, there := groupState(t, path); !alive && there {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%s: alive %v, there %v", path, alive, there)
		}
	}
	if _, err := RemoveDeadGuards(); err != nil {
		t.Error(err)
	}
	if _, there := groupState(t, path); there {
		t.Error("a dead guard is still there")
	}
	if alive, _ := groupState(t, other); !alive {
		t.Error("another guard is gone or dead")
	}
}

func groupState(t *testing.T, path string) (alive, there bool) {
	t.Helper()
	groups, err := GuardGroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g.Path == path {
			return g.Alive, true
		}
	}
	return false, false
}

// TestJoinGuard: into a guard one gets by its binder's pid, into other groups
// not.
func TestJoinGuard(t *testing.T) {
	path, _ := member(t, "stay")
	pid := strings.TrimPrefix(filepath.Base(path), "socketbox-")
	for who, want := range map[string]string{pid: path + " <nil>", "1": "which is no guard"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), guardVariable+"=join "+who)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), want) {
			t.Errorf("join the group of process %s: %s, %v, want %q", who, out, err, want)
		}
	}
}

func joinGuardOf(who string) int {
	pid, _ := strconv.Atoi(who)
	err := JoinGuard(pid)
	dir, _ := ownGroup()
	fmt.Print(dir, " ", err)
	return 0
}

// TestGuarded: sockets that nobody guards are known for that, whatever their
// state.
func TestGuarded(t *testing.T) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX} {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				continue
			}
			switch family {
			case unix.AF_INET:
				unix.Bind(fd, &unix.SockaddrInet4{})
			case unix.AF_INET6:
				unix.Bind(fd, &unix.SockaddrInet6{})
			}
			before, _ := unix.Getsockname(fd)
			if Guarded(fd) {
				t.Errorf("family %d, type %d: guarded", family, kind)
			}
			if after, _ := unix.Getsockname(fd); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("family %d, type %d: asking changed it from %v to %v", family, kind, before, after)
			}
			unix.Close(fd)
		}
	}
	if Guarded(-1) {
		t.Error("no socket: guarded")
	}
}

func TestGuardName(t *testing.T) {
	for name, want := range map[string]bool{"socketbox-1": true, "socketbox-12-3": true, "socketbox-": false, "socketbox-x": false,
		"socketbox.service": false, "xsocketbox-1": false, "socketbox-1-": false} {
		if guardName.MatchString(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
