package launch

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// asked is a bind as the daemon asked for it.
type asked struct {
	fd            int
	family        int
	port, outside uint16
}

// maxSockaddr is sizeof(struct sockaddr_storage), the longest that bind takes.
const maxSockaddr = 128

// The shortest addresses of the two families that the kernel takes.
const (
	sizeofIn  = 16
	sizeofIn6 = 24 // without the scope (ipv6(7))
)

// read reads the address out of the daemon's memory. A passError is a bind
// that is none of ours.
func (n *notifier) read(q *notification) (a asked, err error) {
	a.fd = int(int32(q.Args[0]))
	length := uint32(q.Args[2])
	if length < sizeofIn || length > maxSockaddr {
		return a, passError("no internet address")
	}
	buf := make([]byte, length)
	if err := readMemory(int(q.PID), uintptr(q.Args[1]), buf); err != nil {
		if err == unix.EFAULT {
			return a, passError("the address is not in memory")
		}
		n.log.Error("can't read what a daemon binds", "pid", q.PID, "error", err,
			"hint", "a process that has changed its user can be looked at with CAP_SYS_PTRACE; in Docker: --cap-add SYS_PTRACE")
		return a, errnoError(unix.EACCES)
	}
	if !n.valid(q.ID) {
		return a, passError("it has gone")
	}
	a.family = int(binary.NativeEndian.Uint16(buf))
	switch {
	case a.family == unix.AF_INET:
	case a.family == unix.AF_INET6 && length >= sizeofIn6:
	default:
		return a, passError("no internet address")
	}
	a.port = binary.BigEndian.Uint16(buf[2:])
	if a.outside = n.ports.Outside(a.port); a.outside == 0 {
		return a, passError("not a port that is answered")
	}
	return a, nil
}

// readMemory reads a thread's memory, as process_vm_readv(2), or, where a
// container's filter forbids that, from /proc.
func readMemory(tid int, address uintptr, buf []byte) error {
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := []unix.RemoteIovec{{Base: address, Len: len(buf)}}
	got, err := unix.ProcessVMReadv(tid, local, remote, 0)
	if err == unix.ENOSYS || err == unix.EPERM {
		got, err = readProcMemory(tid, address, buf)
	}
	if err == nil && got != len(buf) {
		err = unix.EFAULT
	}
	return err
}

func readProcMemory(tid int, address uintptr, buf []byte) (int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", tid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	got, err := unix.Pread(fd, buf, int64(address))
	if err == unix.EIO {
		err = unix.EFAULT
	}
	return got, err
}
