package privsep

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Addresses that Guarded asks about, always with port 0: of 240.0.0.0/4 and of
// the discard prefix 100::/64, which no machine has.
var (
	refusedIPv4 = [4]byte{240, 0, 0, 1}
	passedIPv4  = [4]byte{240, 0, 0, 2}
	refusedIPv6 = [16]byte{0: 1, 15: 1}
	passedIPv6  = [16]byte{0: 1, 15: 2}
)

// maxPeers bounds the peers of all lent UDP sockets that are remembered; the
// one that was heard of longest ago is forgotten first. 65,536 outlast 100 ms
// of half a million datagrams a second from as many addresses, and take 6 MB.
const maxPeers = 65536

// Offsets in struct bpf_sock_addr, struct bpf_sock and struct __sk_buff
// (linux/bpf.h). Addresses and ports are in network order, but for src_port.
const (
	addrIPv4 = 4
	addrIPv6 = 8
	addrPort = 24
	addrType = 32

	sockPort  = 44
	sockState = 72

	skbSock = 168
)

const tcpListen = 10 // TCP_LISTEN, net/tcp_states.h

// attachment is a program and where it goes.
type attachment struct {
	name   string
	kind   ebpf.ProgramType
	where  ebpf.AttachType
	source asm.Instructions
}

// guardMaps are what the programs share. The programs hold them; nobody else keeps
// a descriptor, and can change what is in them, but of the refusals, which decide
// nothing: the binder counts by them.
type guardMaps struct {
	marks    *ebpf.Map // socket → the port that the binder bound it to
	peers    *ebpf.Map // socket, address, port that a datagram came from
	refusals *ebpf.Map // how often each program has refused
}

func (m *guardMaps) close() {
	for _, one := range []*ebpf.Map{m.marks, m.peers, m.refusals} {
		if one != nil {
			one.Close()
		}
	}
}

// What the guard refuses, by its place in the map of refusals.
const (
	refusedConnect = iota
	refusedBind
	refusedListen
	refusedSend
	refusals
)

// attach loads the guard's programs and attaches them to its group, by
// BPF_PROG_ATTACH: a link would end with the process that holds it, and the
// guard must outlive it, as lent sockets do.
func (g *Guard) attach() error {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11 count maps against it
		return fmt.Errorf("load the guard's programs: %w", err)
	}
	maps, err := newGuardMaps()
	if err != nil {
		return err
	}
	defer maps.close()
	if g.counters, err = unix.FcntlInt(uintptr(maps.refusals.FD()), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("duplicate a descriptor: %w", err)
	}
	dir, err := unix.Open(g.Path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open control group %s: %w", g.Path, err)
	}
	defer unix.Close(dir)
	for _, a := range guardPrograms(g.ID, maps) {
		if err := a.attach(dir); err != nil {
			return err
		}
	}
	return nil
}

func newGuardMaps() (*guardMaps, error) {
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	m := &guardMaps{}
	var err error
	m.marks, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "socketbox_marks", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC,
		Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: u32,
	})
	if err == nil {
		m.peers, err = ebpf.NewMap(&ebpf.MapSpec{Name: "socketbox_peers", Type: ebpf.LRUHash, KeySize: peerSize, ValueSize: 4, MaxEntries: maxPeers})
	}
	if err == nil {
		m.refusals, err = ebpf.NewMap(&ebpf.MapSpec{
			Name: "socketbox_count", Type: ebpf.Array, KeySize: 4, ValueSize: 8 * refusals, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
		})
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("make the guard's maps: %w", err)
	}
	return m, nil
}

func (a attachment) attach(dir int) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "socketbox_" + a.name, Type: a.kind, AttachType: a.where, Instructions: a.source, License: "MIT"})
	if err != nil {
		return fmt.Errorf("load the guard's program %s: %w", a.name, loadError(err))
	}
	defer program.Close()
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: dir, Program: program, Attach: a.where, Flags: unix.BPF_F_ALLOW_MULTI})
	if err != nil {
		return fmt.Errorf("attach the guard's program %s: %w", a.name, err)
	}
	return nil
}

// loadError leaves the verifier's log out, which fills pages.
func loadError(err error) error {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		return verifier.Cause
	}
	return err
}

// guardPrograms are all programs of the guard whose group has the given id.
func guardPrograms(id uint64, m *guardMaps) []attachment {
	marks, peers, count := m.marks.FD(), m.peers.FD(), m.refusals.FD()
	const address, socket, packet = ebpf.CGroupSockAddr, ebpf.CGroupSock, ebpf.CGroupSKB
	return []attachment{
		{"connect4", address, ebpf.AttachCGroupInet4Connect, refuseStrangers(ipv4, peers, true, count)},
		{"connect6", address, ebpf.AttachCGroupInet6Connect, refuseStrangers(ipv6, peers, true, count)},
		{"bind4", address, ebpf.AttachCGroupInet4Bind, refuseBind(id, ipv4, refusedIPv4[:], passedIPv4[:], count)},
		{"bind6", address, ebpf.AttachCGroupInet6Bind, refuseBind(id, ipv6, refusedIPv6[:], passedIPv6[:], count)},
		{"marks4", socket, ebpf.AttachCGroupInet4PostBind, mark(id, marks)},
		{"marks6", socket, ebpf.AttachCGroupInet6PostBind, mark(id, marks)},
		{"ingress", packet, ebpf.AttachCGroupInetIngress, dropUnmarked(marks, count)},
		{"sendmsg4", address, ebpf.AttachCGroupUDP4Sendmsg, refuseStrangers(ipv4, peers, false, count)},
		{"sendmsg6", address, ebpf.AttachCGroupUDP6Sendmsg, refuseStrangers(ipv6, peers, false, count)},
		{"recvmsg4", address, ebpf.AttachCGroupUDP4Recvmsg, notePeer(ipv4, peers)},
		{"recvmsg6", address, ebpf.AttachCGroupUDP6Recvmsg, notePeer(ipv6, peers)},
	}
}

// family is how a program reads an address.
type family struct {
	offset int16 // of the address in the context
	words  int16 // of 32 bits
}

var (
	ipv4 = family{addrIPv4, 1}
	ipv6 = family{addrIPv6, 4}
)

// answer ends a program: 1 lets pass, 0 refuses with EPERM or drops.
func answer(label string, value int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, value).WithSymbol(label), asm.Return()}
}

// refuse is answer 0, counted.
func refuse(label string, count int, which int16) asm.Instructions {
	const key = -4
	return append(asm.Instructions{
		asm.StoreImm(asm.RFP, key, 0, asm.Word).WithSymbol(label),
		asm.LoadMapPtr(asm.R1, count),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "counted "+label),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 8*which),
	}, answer("counted "+label, 0)...)
}

// A peer on the stack: the socket's cookie (8 bytes), the address as IPv6 (16),
// the port (4), nothing (4); behind it a value of 4 bytes.
const (
	peerSize  = 32
	peerAt    = -peerSize
	peerValue = peerAt - 8
)

// peerKey puts the peer that the context (R6) names on the stack.
func peerKey(f family) asm.Instructions {
	code := asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.RFP, peerAt, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, addrPort, asm.Word),
		asm.StoreMem(asm.RFP, peerAt+24, asm.R1, asm.Word),
		asm.StoreImm(asm.RFP, peerAt+28, 0, asm.Word),
	}
	if f == ipv4 { // as ::ffff:a.b.c.d: a socket of both families hears it so
		code = append(code,
			asm.StoreImm(asm.RFP, peerAt+8, 0, asm.Word),
			asm.StoreImm(asm.RFP, peerAt+12, 0, asm.Word),
			asm.StoreImm(asm.RFP, peerAt+16, int64(int32(binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))), asm.Word))
	}
	for word := range f.words {
		at := peerAt + 8 + 4*(4-f.words+word)
		code = append(code,
			asm.LoadMem(asm.R1, asm.R6, f.offset+4*word, asm.Word),
			asm.StoreMem(asm.RFP, at, asm.R1, asm.Word))
	}
	return code
}

// peerEntry sets R1 and R2 up for a call about the peer on the stack.
func peerEntry(peers int) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, peers),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, peerAt),
	}
}

// refuseStrangers lets a datagram socket reach peers that it was heard from,
// and nothing else anywhere. Where streams come along, they are refused
// whoever asks: nobody connects with a guarded socket.
func refuseStrangers(f family, peers int, streams bool, count int) asm.Instructions {
	which := int16(refusedSend)
	if streams {
		which = refusedConnect
	}
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if streams {
		code = append(code,
			asm.LoadMem(asm.R1, asm.R6, addrType, asm.Word),
			asm.JNE.Imm(asm.R1, unix.SOCK_DGRAM, "refuse"))
	}
	code = append(code, peerKey(f)...)
	code = append(code, peerEntry(peers)...)
	code = append(code, asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "refuse"))
	return append(append(code, answer("", 1)...), refuse("refuse", count, which)...)
}

// notePeer remembers whom a datagram came from that is being received.
// (At recvmsg rather than where the packet arrives: it costs nothing where no
// UDP is lent, and a flood that nobody reads displaces no peer.)
func notePeer(f family, peers int) asm.Instructions {
	code := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, peerKey(f)...)
	code = append(code, peerEntry(peers)...)
	code = append(code, asm.FnMapLookupElem.Call(), asm.JNE.Imm(asm.R0, 0, "pass"))
	code = append(code, peerEntry(peers)...)
	code = append(code,
		asm.StoreImm(asm.RFP, peerValue, 1, asm.Word),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, peerValue),
		asm.Mov.Imm(asm.R4, 0), // BPF_ANY
		asm.FnMapUpdateElem.Call())
	return append(code, answer("pass", 1)...)
}

// ifOutside jumps to label unless the caller is in the guard's group itself.
func ifOutside(id uint64, label string) asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentCgroupId.Call(),
		asm.LoadImm(asm.R1, int64(id), asm.DWord),
		asm.JNE.Reg(asm.R0, asm.R1, label),
	}
}

// ifAddress jumps to label if the context (R6) names this address, port 0.
func ifAddress(f family, address []byte, label string) asm.Instructions {
	next := "not " + label
	code := asm.Instructions{
		asm.LoadMem(asm.R1, asm.R6, addrPort, asm.Word),
		asm.JNE.Imm(asm.R1, 0, next),
	}
	for word := range f.words {
		want := int32(binary.NativeEndian.Uint32(address[4*word:]))
		code = append(code,
			asm.LoadMem(asm.R1, asm.R6, f.offset+4*word, asm.Word),
			asm.JNE.Imm32(asm.R1, want, next))
	}
	return append(code, asm.Ja.Label(label), asm.Mov.Imm(asm.R1, 0).WithSymbol(next))
}

// refuseBind lets those bind who are in the guard's group itself: the
// privileged stage, the binder, `socketbox reload`. The two addresses are for
// Guarded.
func refuseBind(id uint64, f family, refused, passed []byte, count int) asm.Instructions {
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	code = append(code, ifAddress(f, refused, "uncounted")...)
	code = append(code, ifAddress(f, passed, "pass")...)
	code = append(code, ifOutside(id, "refuse")...)
	code = append(append(code, answer("pass", 1)...), answer("uncounted", 0)...)
	return append(code, refuse("refuse", count, refusedBind)...)
}

// mark notes in a socket that was bound from inside the guard which port it
// has. Sockets that it accepts do not inherit the mark.
func mark(id uint64, marks int) asm.Instructions {
	const value = -4
	code := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, ifOutside(id, "refuse")...)
	code = append(code,
		asm.LoadMem(asm.R7, asm.R6, sockPort, asm.Word),
		asm.StoreMem(asm.RFP, value, asm.R7, asm.Word),
		asm.LoadMapPtr(asm.R1, marks),
		asm.Mov.Reg(asm.R2, asm.R6),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, value),
		asm.Mov.Imm(asm.R4, 1), // BPF_SK_STORAGE_GET_F_CREATE
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "refuse"),
		asm.StoreMem(asm.R0, 0, asm.R7, asm.Word))
	return append(append(code, answer("", 1)...), answer("refuse", 0)...)
}

// dropUnmarked drops what comes to a listening socket that is not one that the
// binder bound, on the port that it bound it to. listen(2) on a socket without
// a port takes one by itself, of which neither the bind programs nor Landlock
// hear. Packets of connections cost five instructions.
func dropUnmarked(marks, count int) asm.Instructions {
	code := asm.Instructions{
		asm.LoadMem(asm.R1, asm.R1, skbSock, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "pass"),
		asm.LoadMem(asm.R2, asm.R1, sockState, asm.Word),
		asm.JNE.Imm(asm.R2, tcpListen, "pass"),
		asm.FnSkFullsock.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMapPtr(asm.R1, marks),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.R7, sockPort, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "drop"),
	}
	return append(append(code, answer("pass", 1)...), refuse("drop", count, refusedListen)...)
}
