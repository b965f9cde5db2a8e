package privsep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Offsets in struct bpf_sk_lookup (linux/bpf.h). Addresses are in network order,
// the local port in host order.
const (
	lookupFamily   = 8
	lookupProtocol = 12
	lookupIPv4     = 40
	lookupIPv6     = 44
	lookupPort     = 60
)

// Steer brings every new TCP connection to an address of prefix and a port from
// first to last, in the network namespace netns, to the listening socket fd,
// whatever that is bound to (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9). It lasts until
// the descriptor that it returns, the caller's, and all its copies are closed. It
// needs CAP_BPF and CAP_NET_ADMIN (on kernels before 5.8, CAP_SYS_ADMIN).
func Steer(fd, netns int, prefix netip.Prefix, first, last uint16) (steering int, err error) {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11 count maps against it
		return -1, fmt.Errorf("load the sk_lookup program: %w", err)
	}
	socket, err := ebpf.NewMap(&ebpf.MapSpec{Name: "socketbox_steer", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return -1, fmt.Errorf("make the map of an sk_lookup program: %w", err)
	}
	defer socket.Close()
	if err := socket.Put(uint32(0), uint64(fd)); err != nil {
		return -1, fmt.Errorf("put a listener into the map of an sk_lookup program: %w", err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "socketbox_steer", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "MIT",
		Instructions: steeringProgram(prefix, first, last, socket.FD()),
	})
	if err != nil {
		return -1, fmt.Errorf("load the sk_lookup program: %w", loadError(err))
	}
	defer program.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: netns, Program: program, Attach: ebpf.AttachSkLookup})
	if err != nil {
		if errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("%w: a network namespace has at most 64", err)
		}
		return -1, fmt.Errorf("attach the sk_lookup program: %w", err)
	}
	defer l.Close()
	steering, err = unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return steering, nil
}

// steeringProgram is the program. What is not for it, it leaves to the kernel.
func steeringProgram(prefix netip.Prefix, first, last uint16, socket int) asm.Instructions {
	family, offset := int32(unix.AF_INET), int16(lookupIPv4)
	if prefix.Addr().Is6() {
		family, offset = unix.AF_INET6, lookupIPv6
	}
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, lookupFamily, asm.Word),
		asm.JNE.Imm(asm.R2, family, "pass"),
		asm.LoadMem(asm.R2, asm.R6, lookupProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R2, asm.R6, lookupPort, asm.Word),
		asm.JLT.Imm(asm.R2, int32(first), "pass"),
		asm.JGT.Imm(asm.R2, int32(last), "pass"),
	}
	address := prefix.Addr().AsSlice()
	for word := 0; word*32 < prefix.Bits(); word++ {
		mask := ^uint32(0)
		if left := prefix.Bits() - word*32; left < 32 {
			mask <<= 32 - left
		}
		var network [4]byte
		binary.BigEndian.PutUint32(network[:], mask)
		code = append(code,
			asm.LoadMem(asm.R2, asm.R6, offset+int16(4*word), asm.Word),
			asm.And.Imm32(asm.R2, int32(binary.NativeEndian.Uint32(network[:]))),
			asm.JNE.Imm32(asm.R2, int32(binary.NativeEndian.Uint32(address[4*word:])), "pass"))
	}
	const key = -4
	code = append(code,
		asm.StoreImm(asm.RFP, key, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, socket),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call())
	return append(code, answer("pass", 1)...) // SK_PASS: to what was assigned, or as without this program
}
