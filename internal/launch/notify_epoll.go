package launch

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A daemon may add its socket to an epoll set before it binds it (epoll(7)).
// That registration is of the socket, not of its number, and goes with the
// socket when another is put in its place: it is made again for the other one.

// watched is a descriptor in an epoll set.
type watched struct {
	fd     int
	events uint32
	data   uint64
	inode  uint64
}

// registration is a socket's place in a daemon's epoll set. set is a copy of
// the set's descriptor, or -1 and why there is none; ours.
type registration struct {
	set int
	why error
	watched
}

// parseWatched reads a line of an epoll set's fdinfo: "tfd: 5 events: 2019
// data: 5 pos:0 ino:1234 sdev:8", the numbers but the first in hexadecimal.
func parseWatched(line string) (w watched, ok bool) {
	if !strings.HasPrefix(line, "tfd:") {
		return w, false
	}
	var pos, device uint64
	spaced := strings.ReplaceAll(line, ":", ": ")
	n, err := fmt.Sscanf(strings.Join(strings.Fields(spaced), " "), "tfd: %d events: %x data: %x pos: %d ino: %x sdev: %x",
		&w.fd, &w.events, &w.data, &pos, &w.inode, &device)
	return w, err == nil && n == 6
}

// registrations finds the epoll sets of the daemon's process that have its
// socket.
func (s *shown) registrations() (found []registration) {
	folder := fmt.Sprintf("/proc/%d/fd", s.tid)
	names, _ := readNames(folder)
	for _, name := range names {
		if to, _ := os.Readlink(filepath.Join(folder, name)); to != "anon_inode:[eventpoll]" {
			continue
		}
		info, err := fdinfo(fmt.Sprintf("/proc/%d/fdinfo/%s", s.tid, name))
		if err != nil {
			continue
		}
		number, _ := strconv.Atoi(name)
		for _, w := range info.watch {
			if w.inode != s.inode {
				continue
			}
			r := registration{watched: w}
			r.set, r.why = copyFD(s.tid, number)
			found = append(found, r)
		}
	}
	return found
}

// register adds fd to the sets, and closes them. A set knows a descriptor by
// its number, too, with which the daemon will change or remove it: fd is added
// under the daemon's number, in a table of descriptors of a thread's own.
func register(sets []registration, fd int) error {
	var failed error
	for _, r := range sets {
		if r.why != nil {
			failed = errors.Join(failed, r.why)
			continue
		}
		failed = errors.Join(failed, r.add(fd))
		unix.Close(r.set)
	}
	return failed
}

// add works on a thread that ends with it, since its table of descriptors is
// no longer the process's. The first thread can't end.
func (r registration) add(fd int) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- r.add(fd)
			runtime.UnlockOSThread()
			return
		}
		result <- r.addHere(fd)
	}()
	return <-result
}

func (r registration) addHere(fd int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return os.NewSyscallError("unshare CLONE_FILES", err)
	}
	// The set must be out of the way of the number.
	set, err := unix.FcntlInt(uintptr(r.set), unix.F_DUPFD_CLOEXEC, r.fd+1)
	if err != nil {
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	if fd != r.fd {
		if err := unix.Dup3(fd, r.fd, unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	var event unix.EpollEvent
	event.Events = r.events
	event.Fd, event.Pad = int32(uint32(r.data)), int32(uint32(r.data>>32))
	err = unix.EpollCtl(set, unix.EPOLL_CTL_ADD, r.fd, &event)
	// The daemon's own socket leaves its sets with its last copy, and the
	// thread may end later than the daemon goes on.
	unix.CloseRange(0, math.MaxInt32, 0)
	if err == unix.EEXIST {
		return nil
	}
	return os.NewSyscallError("epoll_ctl", err)
}
