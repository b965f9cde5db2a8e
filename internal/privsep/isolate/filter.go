package isolate

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// siocgskns is SIOCGSKNS of linux/sockios.h: a descriptor of the network
// namespace that a socket belongs to.
const siocgskns = 0x894c

// Offsets in struct seccomp_data (seccomp(2)); both machines are little
// endian, so an argument's low half comes first.
const (
	atNumber = 0
	atArch   = 4
	atArgs   = 16
)

// x32 marks system calls of the x32 ABI on x86-64.
const x32 = 0x40000000

// refusal is a system call that is answered with errno: always if arg is
// negative, else if (argument arg & mask) == value in its low 32 bits. What
// the kernel takes from these arguments is 32 bits wide.
type refusal struct {
	number      uint32
	arg         int
	mask, value uint32
	errno       unix.Errno
}

var refusals = []refusal{
	{unix.SYS_SENDTO, 3, unix.MSG_FASTOPEN, unix.MSG_FASTOPEN, unix.EOPNOTSUPP},
	{unix.SYS_SENDMSG, 2, unix.MSG_FASTOPEN, unix.MSG_FASTOPEN, unix.EOPNOTSUPP},
	{unix.SYS_SENDMMSG, 3, unix.MSG_FASTOPEN, unix.MSG_FASTOPEN, unix.EOPNOTSUPP},
	{unix.SYS_IO_URING_SETUP, -1, 0, 0, unix.ENOSYS},
	{unix.SYS_IOCTL, 1, 0xffffffff, siocgskns, unix.EPERM},
}

// arches are the machines that this is built for, by GOARCH.
var arches = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64,
}

func filtersWork() bool {
	_, known := arches[runtime.GOARCH]
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return known && errno == 0
}

// installFilter puts the filter in force for the calling thread.
func installFilter() error {
	program := filter(arches[runtime.GOARCH])
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog))); errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	runtime.KeepAlive(program)
	return nil
}

// filter assembles the refusals, each a block that ends in its own answer or
// falls through to the next.
func filter(arch uint32) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter { return statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }
	program := []unix.SockFilter{
		load(atArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		answer(unix.ENOSYS),
		load(atNumber),
		jump(unix.BPF_JGE, x32, 0, 1),
		answer(unix.ENOSYS),
	}
	for _, r := range refusals {
		if r.arg < 0 {
			program = append(program, jump(unix.BPF_JEQ, r.number, 0, 1), answer(r.errno))
			continue
		}
		program = append(program,
			jump(unix.BPF_JEQ, r.number, 0, 5),
			load(atArgs+8*uint32(r.arg)),
			statement(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, r.mask),
			jump(unix.BPF_JEQ, r.value, 0, 1),
			answer(r.errno),
			load(atNumber),
		)
	}
	return append(program, statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW))
}

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(condition uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | condition | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func answer(errno unix.Errno) unix.SockFilter {
	return statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(errno))
}
