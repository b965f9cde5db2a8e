package launch

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// shown is the daemon's socket, as far as it can be looked at.
type shown struct {
	tid   int
	fd    int // the daemon's number
	own   int // a copy of it, or a socket of its kind; ours
	form  handoff.Form
	inode uint64
	real  bool // own is a copy: its options and flags are the daemon's
}

func (s *shown) close() { unix.Close(s.own) }

// lookAt gets hold of the daemon's socket; nil if it is a lent one already. A
// passError is a socket that the kernel shall bind.
func (n *notifier) lookAt(q *notification, a asked) (*shown, error) {
	s := &shown{tid: int(q.PID), fd: a.fd}
	var err error
	if s.inode, err = inodeOf(s.procPath("fd")); err != nil {
		return nil, passError(err.Error())
	}
	if n.wasLent(s.inode) {
		// Without WAIT_KILLABLE_RECV a signal can have the daemon bind again
		// what has been put there already.
		return nil, nil
	}
	if s.own, err = copyFD(s.tid, s.fd); err == nil {
		s.real = true
	} else if s.own, err = n.likeIt(s, err); err != nil {
		return nil, err
	}
	if err := n.fits(q, s, a); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// fits lets only a TCP or UDP socket through that is not bound.
func (n *notifier) fits(q *notification, s *shown, a asked) (err error) {
	if s.form, err = handoff.FormOf(s.own); err != nil {
		return passError(err.Error())
	}
	stream := s.form.Type == unix.SOCK_STREAM && s.form.Protocol == unix.IPPROTO_TCP
	datagram := s.form.Type == unix.SOCK_DGRAM && s.form.Protocol == unix.IPPROTO_UDP
	switch {
	case !n.valid(q.ID):
		return passError("it has gone")
	case !stream && !datagram:
		return passError("neither TCP nor UDP")
	case s.form.Domain != a.family:
		return passError("an address of another family than the socket's")
	}
	if bound, err := unix.Getsockname(s.own); err == nil && portOf(bound) != 0 {
		return passError("bound already")
	}
	return nil
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// copyFD gets a copy of a descriptor of a thread (pidfd_getfd(2)).
func copyFD(tid, fd int) (int, error) {
	process, err := unix.PidfdOpen(tid, unix.PIDFD_THREAD)
	if err == unix.EINVAL { // before Linux 6.9 there are pidfds of processes alone
		process, err = unix.PidfdOpen(processOf(tid), 0)
	}
	if err != nil {
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	copied, err := unix.PidfdGetfd(process, fd, 0)
	return copied, os.NewSyscallError("pidfd_getfd", err)
}

// processOf returns the process that a thread belongs to.
func processOf(tid int) int {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return tid
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "Tgid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
				return pid
			}
		}
	}
	return tid
}

// protocolNames are what system.sockprotoname says of sockets that can be
// borrowed.
var protocolNames = map[string]handoff.Form{
	"TCP": {Domain: unix.AF_INET, Type: unix.SOCK_STREAM}, "TCPv6": {Domain: unix.AF_INET6, Type: unix.SOCK_STREAM},
	"MPTCP": {Domain: unix.AF_INET, Type: unix.SOCK_STREAM}, "MPTCPv6": {Domain: unix.AF_INET6, Type: unix.SOCK_STREAM},
	"UDP": {Domain: unix.AF_INET, Type: unix.SOCK_DGRAM}, "UDPv6": {Domain: unix.AF_INET6, Type: unix.SOCK_DGRAM},
}

// likeIt makes a socket of the kind of the daemon's, which could not be copied
// for the reason cause: container engines forbid pidfd_getfd.
func (n *notifier) likeIt(s *shown, cause error) (int, error) {
	name, err := protocolName(s.procPath("fd"))
	if err != nil {
		n.log.Error("can't look at the socket that a daemon binds", "pid", s.tid, "error", cause,
			"hint", "a process that has changed its user can be looked at with CAP_SYS_PTRACE; in Docker: --cap-add SYS_PTRACE")
		return -1, errnoError(unix.EACCES)
	}
	form, ok := protocolNames[name]
	if !ok {
		return -1, passError("a socket of " + name)
	}
	n.noPeeks.Do(func() {
		n.log.Warn("the options of the daemon's sockets are not copied: pidfd_getfd is forbidden here", "reason", cause,
			"hint", "they are those of socketbox's configuration; in Docker --cap-add SYS_PTRACE lets them be copied")
	})
	own, err := unix.Socket(form.Domain, form.Type|unix.SOCK_CLOEXEC, 0)
	return own, os.NewSyscallError("socket", err)
}

// protocolName asks the kernel for the protocol of the socket at a path in
// /proc: an extended attribute that sockets have.
func protocolName(path string) (string, error) {
	var buf [64]byte
	n, err := unix.Getxattr(path, "system.sockprotoname", buf[:])
	if err != nil {
		return "", os.NewSyscallError("getxattr", err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00"), nil
}

func (s *shown) procPath(folder string) string {
	return fmt.Sprintf("/proc/%d/%s/%d", s.tid, folder, s.fd)
}

// inodeOf returns the number of the socket that a link in /proc/PID/fd names.
func inodeOf(link string) (uint64, error) {
	to, err := os.Readlink(link)
	if err != nil {
		return 0, err
	}
	text, isSocket := strings.CutPrefix(to, "socket:[")
	if !isSocket {
		return 0, fmt.Errorf("%s is no socket", to)
	}
	return strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
}

// carryFlags gives the lent socket the daemon's O_NONBLOCK. Whoever shares the
// socket shares that flag: the last one's holds.
func (s *shown) carryFlags(fd int) error {
	flags := 0
	if s.real {
		var err error
		if flags, err = unix.FcntlInt(uintptr(s.own), unix.F_GETFL, 0); err != nil {
			return os.NewSyscallError("fcntl F_GETFL", err)
		}
	} else if info, err := fdinfo(s.procPath("fdinfo")); err == nil {
		flags = info.flags
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&unix.O_NONBLOCK)
	return os.NewSyscallError("fcntl F_SETFL", err)
}

// numbers returns the descriptors of the daemon's process that are the socket,
// and whether each closes at exec.
func (s *shown) numbers() (map[int]bool, error) {
	folder := fmt.Sprintf("/proc/%d/fd", s.tid)
	names, err := readNames(folder)
	if err != nil {
		return nil, err
	}
	found := map[int]bool{}
	for _, name := range names {
		inode, err := inodeOf(filepath.Join(folder, name))
		number, err2 := strconv.Atoi(name)
		if err != nil || err2 != nil || inode != s.inode {
			continue
		}
		info, err := fdinfo(fmt.Sprintf("/proc/%d/fdinfo/%d", s.tid, number))
		found[number] = err == nil && info.flags&unix.O_CLOEXEC != 0
	}
	if _, ok := found[s.fd]; !ok {
		return nil, fmt.Errorf("descriptor %d has changed meanwhile", s.fd)
	}
	return found, nil
}

// description is what /proc/PID/fdinfo/N says.
type description struct {
	flags int
	watch []watched // of an epoll set
}

// fdinfo reads /proc/PID/fdinfo/N (proc_pid_fdinfo(5)).
func fdinfo(path string) (d description, err error) {
	file, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseInt(strings.TrimSpace(text), 8, 64)
			if err != nil {
				return d, err
			}
			d.flags = int(flags)
		}
		if w, ok := parseWatched(line); ok {
			d.watch = append(d.watch, w)
		}
	}
	return d, nil
}
