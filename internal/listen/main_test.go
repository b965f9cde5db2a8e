package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests as root: as the root of a user namespace, with a
// network of its own, where the caller is not root and user namespaces serve. What still lacks a privilege
// then is skipped, or fails with NETNS=require.
func TestMain(m *testing.M) {
	const entered = "LISTEN_TEST_ENTERED"
	if os.Getenv(entered) != "" {
		if err := raiseLoopback(); err != nil {
			fmt.Fprintln(os.Stderr, "raise lo:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Getuid() == 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), entered+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		os.Exit(m.Run())
	}
	err := cmd.Wait()
	var status *exec.ExitError
	switch {
	case errors.As(err, &status):
		os.Exit(status.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inFreshNamespace runs do on a thread of its own, in new network and mount
// namespaces where lo is up and /run is empty.
func inFreshNamespace(t *testing.T, do func()) {
	t.Helper()
	done := make(chan struct{})
	var denied error
	go func() {
		defer close(done)
		_ = onLostThread(func() error { // also where do calls t.Fatal
			if denied = enterFreshNamespace(); denied == nil {
				runAndReport(t, do)
			}
			return nil
		})
	}()
	<-done
	switch {
	case denied == nil:
	case os.Getenv("NETNS") == "require":
		t.Fatalf("make namespaces: %v", denied)
	default:
		t.Skipf("make namespaces: %v (NETNS=require makes this fail)", denied)
	}
}

// runAndReport turns a panic of do into a failure of t, with t.Fatal replaced
// by failNow: FailNow must not be called outside of the test's goroutine.
func runAndReport(t *testing.T, do func()) {
	defer func() {
		if p := recover(); p != nil {
			if _, ours := p.(failNow); !ours {
				panic(p)
			}
			t.Fail()
		}
	}()
	do()
}

// failNow is what must panics with.
type failNow struct{}

// must ends a function that runs in a fresh namespace where err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		panic(failNow{})
	}
}

func enterFreshNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return raiseLoopback()
}

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

// addAddress gives lo an IPv6 address, as ipv6(7) has it.
func addAddress(text string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request := struct {
		address [16]byte
		prefix  uint32
		index   int32
	}{[16]byte(net.ParseIP(text).To16()), 128, 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}

// withoutCapabilities runs do on a thread that has none.
func withoutCapabilities(t *testing.T, do func()) {
	t.Helper()
	_ = onLostThread(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Errorf("capset: %v", err)
			return nil
		}
		runAndReport(t, do)
		return nil
	})
}
