package sockdiag

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Subscribe has the kernel tell fd of every TCP socket of its namespace that
// ends. Nothing is told of what has ended before.
func Subscribe(fd int) error {
	for _, group := range []int{unix.SKNLGRP_INET_TCP_DESTROY, unix.SKNLGRP_INET6_TCP_DESTROY} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return fmt.Errorf("subscribe to the end of sockets: %w", os.NewSyscallError("setsockopt", err))
		}
	}
	return nil
}

// Unsubscribe ends that, and what it costs the namespace.
func Unsubscribe(fd int) error {
	for _, group := range []int{unix.SKNLGRP_INET_TCP_DESTROY, unix.SKNLGRP_INET6_TCP_DESTROY} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, group); err != nil {
			return fmt.Errorf("unsubscribe from the end of sockets: %w", os.NewSyscallError("setsockopt", err))
		}
	}
	return nil
}

// MaxPorts is how many ports FilterPorts takes: two instructions each, of the
// 4096 that a filter may have (BPF_MAXINSNS).
const MaxPorts = 2000

// FilterPorts has the kernel drop events of sockets with another local port
// before anybody is woken. No port, or more than MaxPorts: nothing is dropped.
func FilterPorts(fd int, ports []uint16) error {
	if len(ports) == 0 || len(ports) > MaxPorts {
		var unused int32
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, int(unused))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove the filter of events: %w", os.NewSyscallError("setsockopt", err))
		}
		return nil
	}
	const all = ^uint32(0)
	const portAt = headerSize + 4 // idiag_sport
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: portAt}}
	for _, port := range ports {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(port)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: all})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("filter events: %w", os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// EventBuffer is the size of a buffer for ReadEvents: one event, of some 400
// bytes in current kernels.
const EventBuffer = 4096

// ReadEvents gives each socket that has ended to each, at most limit packets, until
// there is none: then it returns an error that wraps EAGAIN. ErrLost says that
// events were lost; those that follow are not. buf has EventBuffer bytes.
func ReadEvents(fd int, buf []byte, limit int, each func(*Socket)) error {
	for range limit {
		packet, err := receive(fd, buf)
		if err != nil {
			return err
		}
		for len(packet) > 0 {
			var m message
			if m, packet, err = next(packet); err != nil {
				return err
			}
			if m.kind != unix.SOCK_DIAG_BY_FAMILY {
				continue
			}
			s, err := parseSocket(m.body)
			if err != nil {
				return err
			}
			each(&s)
		}
	}
	return nil
}
