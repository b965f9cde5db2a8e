package launch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// Offsets in struct seccomp_data (seccomp(2)).
const (
	dataNumber = 0
	dataArch   = 4
)

// auditArchs are the architectures as a filter sees them, by GOARCH. System
// calls of another one, of 32-bit programs on a 64-bit kernel for example,
// pass: their numbers mean something else.
var auditArchs = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64,
	"riscv64": unix.AUDIT_ARCH_RISCV64, "ppc64le": unix.AUDIT_ARCH_PPC64LE, "s390x": unix.AUDIT_ARCH_S390X,
}

// bindFilter notifies of bind(2) and lets everything else pass.
func bindFilter(arch uint32) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: value}
	}
	answer := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	return []unix.SockFilter{
		load(dataArch),
		unless(arch, 3),
		load(dataNumber),
		unless(unix.SYS_BIND, 1),
		answer(unix.SECCOMP_RET_USER_NOTIF),
		answer(unix.SECCOMP_RET_ALLOW),
	}
}

// filter installs the filter and gives the supervisor the descriptor by which
// it hears of each bind.
func (s *stage) filter() error {
	if !s.Filter {
		return nil
	}
	arch, ok := auditArchs[runtime.GOARCH]
	if !ok {
		return &handoff.HintError{Err: fmt.Errorf("not known for %s", runtime.GOARCH), Text: "use --via preload or --via listen-fds"}
	}
	if !s.NoNewPrivs && !hasCapability(unix.CAP_SYS_ADMIN) {
		s.note("no_new_privs is on: installing a seccomp filter takes that or CAP_SYS_ADMIN; setuid programs below have no effect")
		s.NoNewPrivs = true
		if err := s.noNewPrivs(); err != nil {
			return err
		}
	}
	fd, err := installFilter(bindFilter(arch))
	if err != nil {
		return filterError(err)
	}
	defer unix.Close(fd)
	return send(stageFD, report{About: reportFilter}, fd)
}

// installFilter installs a filter on this thread and returns its notification
// descriptor, close-on-exec. With WAIT_KILLABLE_RECV (Linux 5.19) no signal
// but a deadly one ends a bind that the supervisor has begun to answer.
func installFilter(filter []unix.SockFilter) (int, error) {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	for {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
		if errno == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0 {
			flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
			continue
		}
		if errno != 0 {
			return -1, os.NewSyscallError("seccomp", errno)
		}
		return int(fd), nil
	}
}

func filterError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("another filter with notifications is already there, and the kernel has one for a tree of processes: %w", err)
		hint = "a socketbox-launch inside another one, or a container engine that uses notifications: use --via notify in one of them only, here --via preload or --via listen-fds"
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL):
		hint = "notifications need Linux 5.9, and that no other filter forbids seccomp(2); use --via preload or --via listen-fds"
	}
	return &handoff.HintError{Err: err, Text: hint}
}
