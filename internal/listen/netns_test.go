package listen

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// cookieOf returns the identity of a socket's network namespace.
func cookieOf(t *testing.T, fd int) uint64 {
	t.Helper()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	must(t, err)
	return cookie
}

func cookieHere(t *testing.T) uint64 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	return cookieOf(t, fd)
}

// here is the path of this thread's network namespace.
func here() string { return "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net" }

// nameNamespace makes the namespace of this thread the named one, as
// `ip netns attach` does.
func nameNamespace(t *testing.T, dir, name string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, nil, 0o644))
	must(t, unix.Mount(here(), path, "", unix.MS_BIND, ""))
}

// TestOpenInNamespace makes a namespace, names it, leaves it for another, and
// opens listeners in the first one by each form of its name.
func TestOpenInNamespace(t *testing.T) {
	process, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inFreshNamespace(t, func() {
		nameNamespace(t, "/run/netns", "edge")
		edge := cookieHere(t)
		must(t, unix.Unshare(unix.CLONE_NEWNET))
		must(t, raiseLoopback())
		ours := cookieHere(t)
		if ours == edge {
			t.Error("one namespace, expected two")
		}
		port := uint16(80)
		for _, name := range []string{"edge", "/run/netns/edge"} {
			d := parse(t, "127.0.0.1:80")
			d.NetNS, d.Port = name, port
			fd := open(t, d)
			if got := cookieOf(t, fd); got != edge {
				t.Errorf("%s: opened in namespace %d, want %d", name, got, edge)
			}
			if reaches("127.0.0.1", port) {
				t.Errorf("%s: reached from the wrong namespace", name)
			}
			err := inNamespace("edge", func() error {
				if !reaches("127.0.0.1", port) {
					t.Errorf("%s: not reached from its namespace", name)
				}
				return nil
			})
			must(t, err)
			wantError(t, d, unix.EADDRINUSE, "bind 127.0.0.1:"+strconv.Itoa(int(port))+" in network namespace "+name+": address already in use", "ss -ltnp")
			unix.Close(fd)
			port++
		}
		if got := cookieHere(t); got != ours {
			t.Error("the calling thread has moved")
		}
	})
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != process {
		t.Errorf("the process moved from %s to %s, %v", process, now, err)
	}
}

// TestOpenInNamespaceOfProcess takes /proc/PID/ns/net of this process, from a
// thread that has left it.
func TestOpenInNamespaceOfProcess(t *testing.T) {
	home := cookieHere(t)
	inFreshNamespace(t, func() {
		d := parse(t, "127.0.0.1:0")
		d.NetNS = "/proc/" + strconv.Itoa(os.Getpid()) + "/ns/net"
		fd := open(t, d)
		defer unix.Close(fd)
		if got := cookieOf(t, fd); got != home {
			t.Errorf("opened in namespace %d, want %d", got, home)
		}
	})
}

func TestOpenNamespaceErrors(t *testing.T) {
	inFreshNamespace(t, func() {
		d := parse(t, ":80")
		d.NetNS = "no-such"
		wantError(t, d, unix.ENOENT, "open network namespace no-such: no such file or directory", "ip netns add no-such")
		d.NetNS = "/run/no-such"
		wantError(t, d, unix.ENOENT, "open network namespace /run/no-such: no such file or directory", "")
		d.NetNS = "/proc/self/ns/uts"
		wantError(t, d, unix.EINVAL, "enter network namespace /proc/self/ns/uts: invalid argument", "/run/netns/NAME")
		must(t, unix.Mkfifo("/run/fifo", 0o600))
		d.NetNS = "/run/fifo"
		wantError(t, d, unix.EINVAL, "enter network namespace /run/fifo: invalid argument", "/run/netns/NAME")
	})
}

// TestLostThread: never the first thread, which would take the process's
// /proc/self/ns along, and none of the others comes back.
func TestLostThread(t *testing.T) {
	first := 0
	for range 300 {
		_ = onLostThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				first++
			}
			return nil
		})
	}
	if first > 0 {
		t.Errorf("the first thread was used %d times", first)
	}
}
