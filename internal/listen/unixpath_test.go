package listen

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func unixAt(path string) Description {
	return Description{Name: "x", Network: Unix, Path: path}
}

func bound(t *testing.T, kind int, path string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	return fd
}

func TestOpenUnix(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o777} {
		path := filepath.Join(t.TempDir(), "x.sock")
		old := unix.Umask(mask)
		fd, err := Open(unixAt(path))
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != os.ModeSocket|unixMode {
			t.Errorf("umask %03o: mode %v", mask, st.Mode())
		}
		if err := probe(path); err != nil {
			t.Errorf("connect: %v", err)
		}
		if err := Matches(fd, unixAt(path)); err != nil {
			t.Error(err)
		}
		unix.Close(fd)
	}
}

func TestOpenUnixReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	for range 3 {
		fd, err := Open(unixAt(path))
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd) // and the file stays
	}
}

func TestOpenUnixRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) Description { return unixAt(filepath.Join(dir, name)) }

	live := open(t, at("live"))
	defer unix.Close(live)
	wantError(t, at("live"), unix.EADDRINUSE, "bind unix:"+dir+"/live: address already in use", "ss -lxp src "+dir+"/live")

	full := bound(t, unix.SOCK_STREAM, dir+"/full")
	defer unix.Close(full)
	must(t, unix.Listen(full, 0))
	for range 3 { // the queue of 0 takes one
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		unix.Connect(fd, &unix.SockaddrUnix{Name: dir + "/full"})
	}
	wantError(t, at("full"), unix.EADDRINUSE, "bind unix:"+dir+"/full: address already in use", "ss")

	datagram := bound(t, unix.SOCK_DGRAM, dir+"/datagram")
	defer unix.Close(datagram)
	wantError(t, at("datagram"), unix.EADDRINUSE, "bind unix:"+dir+"/datagram: address already in use", "ss")

	must(t, os.WriteFile(dir+"/file", []byte("x"), 0o600))
	must(t, os.Symlink(dir+"/file", dir+"/link"))
	for _, name := range []string{"file", "link"} {
		_, err := Open(at(name))
		if err == nil || !strings.Contains(err.Error(), "there is a file that is no socket") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	wantError(t, at("none/x"), unix.ENOENT, "lock the directory of unix:"+dir+"/none/x: no such file or directory", "mkdir -p "+dir+"/none")
}

func TestOpenUnixWithoutPrivilege(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o555))
	withoutCapabilities(t, func() {
		wantError(t, unixAt(dir+"/x"), unix.EACCES, "bind unix:"+dir+"/x: permission denied", "run as a user who may write in "+dir)
	})
}

// TestOpenUnixAtOnce: of many at one stale path, one gets it and keeps it.
func TestOpenUnixAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	unix.Close(bound(t, unix.SOCK_STREAM, path))
	var wait sync.WaitGroup
	fds := make([]int, 20)
	for i := range fds {
		wait.Go(func() {
			fd, err := Open(unixAt(path))
			if err != nil && !errors.Is(err, unix.EADDRINUSE) {
				t.Error(err)
			}
			fds[i] = fd
		})
	}
	wait.Wait()
	opened := 0
	for _, fd := range fds {
		if fd >= 0 {
			opened++
			defer unix.Close(fd)
		}
	}
	if opened != 1 {
		t.Errorf("%d listeners at one path", opened)
	}
	if err := probe(path); err != nil {
		t.Errorf("connect: %v", err)
	}
}

// TestLockDir: waits for a lock, but not for ever.
func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err != unix.EWOULDBLOCK {
		t.Errorf("%v, want EWOULDBLOCK", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { unix.Close(first) })
	second, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(second)
}
