package privsep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A guard is a control group with programs attached (guard_programs.go). A
// socket keeps the group of its creator for life, wherever it is passed, and
// accepted sockets inherit their listener's: so whoever binds inside it makes
// sockets that can't be turned around by anybody. The programs live as long
// as a socket of the group does, longer than the binder and the directory.

// Guard is where a binder's guard is, for the stages that follow.
type Guard struct {
	Path string // directory in the cgroup v2 hierarchy, "" if there is none
	ID   uint64 // of that group, as bpf_get_current_cgroup_id says it

	counters int // the map of refusals, in the process that has made it
}

// Counters returns the descriptor of the guard's refusals, which stays g's, for the
// stage that follows: MapRefusals reads it.
func (g *Guard) Counters() int { return g.counters }

// Refusals counts what the guard has refused since it was made.
type Refusals struct {
	Connect uint64 `json:"connect"` // connect, MSG_FASTOPEN
	Bind    uint64 `json:"bind"`
	Listen  uint64 `json:"listen"` // packets to a socket that listens on a port it was not bound to
	Send    uint64 `json:"send"`   // datagrams to strangers
}

// RefusalCounter reads a guard's refusals while its programs count.
type RefusalCounter struct{ words []byte }

// MapRefusals maps what Counters has returned, in the same process or a later stage;
// fd stays the caller's.
func MapRefusals(fd int) (*RefusalCounter, error) {
	b, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the guard's refusals: %w", err)
	}
	return &RefusalCounter{b}, nil
}

// Read returns the counts; those of a nil counter are 0.
func (c *RefusalCounter) Read() Refusals {
	if c == nil {
		return Refusals{}
	}
	at := func(i int) uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&c.words[8*i]))) }
	return Refusals{Connect: at(refusedConnect), Bind: at(refusedBind), Listen: at(refusedListen), Send: at(refusedSend)}
}

// forgetProbes sets the counts to 0 that the guard's own probes have made.
func (g *Guard) forgetProbes() error {
	c, err := MapRefusals(g.counters)
	if err != nil {
		return err
	}
	clear(c.words[:8*refusals])
	return unix.Munmap(c.words)
}

// EnterGuard makes a guard below this process's control group, attaches its
// programs and moves the process into it: every socket made from here on is
// guarded. uid is whom the binder becomes: it may move its dispatcher into the
// group made for it, and no process into or out of the guard. It needs root's
// rights (CAP_BPF, CAP_NET_ADMIN, and those of the parent group's owner), and
// looks whether the result holds; on an error everything is as before.
func EnterGuard(uid, gid int) (*Guard, error) {
	parent, err := ownGroup()
	if err != nil {
		return nil, err
	}
	sweep(parent)
	g, err := makeGroup(parent, uid, gid)
	if err != nil {
		return nil, err
	}
	if err := g.attach(); err != nil {
		return nil, errors.Join(err, RemoveGuard(g.Path))
	}
	if err := join(g.Path, 0); err != nil {
		return nil, errors.Join(err, RemoveGuard(g.Path))
	}
	if err := errors.Join(probeOwn(), g.forgetProbes()); err != nil {
		return nil, errors.Join(err, g.Leave())
	}
	return g, nil
}

// JoinGuard moves this process into the guard of the binder pid, as
// `socketbox reload` does before it binds. The path is the kernel's word
// (/proc/PID/cgroup), not the binder's.
func JoinGuard(pid int) error {
	dir, err := groupOf(pid)
	if err != nil {
		return err
	}
	if !guardName.MatchString(filepath.Base(dir)) {
		return fmt.Errorf("process %d is in control group %s, which is no guard", pid, dir)
	}
	return join(dir, 0)
}

// Leave takes this process out of the guard again and removes it.
func (g *Guard) Leave() error {
	return errors.Join(join(filepath.Dir(g.Path), 0), RemoveGuard(g.Path))
}

// Place moves the dispatcher pid into the group made for it, where it is not
// exempt from anything, and looks whether it is there.
func (g *Guard) Place(pid int) error {
	dir := filepath.Join(g.Path, dispatcherGroup)
	if err := join(dir, pid); err != nil {
		return err
	}
	now, err := groupOf(pid)
	if err == nil && now != dir {
		err = fmt.Errorf("process %d is in control group %s, not in %s", pid, now, dir)
	}
	return err
}

// join moves a process (0: this one) with all its threads (cgroups(7)).
func join(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		return fmt.Errorf("enter control group %s: %w", dir, errors.Unwrap(err))
	}
	return nil
}

// Guarded says whether some guard, this binder's or an earlier one's, holds
// the socket fd, which must be bound. It asks the kernel: bind(2) to one
// address is refused by every guard whoever asks, to another by none; a bound
// socket refuses both otherwise, so that nothing changes. (The group's id, of
// which sock_diag tells, says nothing once the directory is gone; and another
// program that refuses binds, systemd's SocketBindDeny= for one, refuses
// both.)
func Guarded(fd int) bool {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return false
	}
	switch family {
	case unix.AF_INET:
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: refusedIPv4}) == unix.EPERM &&
			unix.Bind(fd, &unix.SockaddrInet4{Addr: passedIPv4}) != unix.EPERM
	case unix.AF_INET6:
		return unix.Bind(fd, &unix.SockaddrInet6{Addr: refusedIPv6}) == unix.EPERM &&
			unix.Bind(fd, &unix.SockaddrInet6{Addr: passedIPv6}) != unix.EPERM
	}
	return false
}

// probeOwn looks whether the guard holds what this process makes now: that it
// may bind, may not connect, and that the guard tells of itself.
func probeOwn() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	nowhere := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 1}
	if err := unix.Connect(fd, nowhere); err != unix.EPERM {
		return fmt.Errorf("the guard does not hold: connect gives %w, not %w", errOr(err), unix.EPERM)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("the guard refuses what it must let pass: bind gives %w", err)
	}
	if !Guarded(fd) {
		return errors.New("the guard does not hold: bind passes")
	}
	return nil
}

func errOr(err error) error {
	if err == nil {
		return errors.New("success")
	}
	return err
}

// groupOf returns the directory of a process's control group in the v2
// hierarchy.
func groupOf(pid int) (string, error) {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	text, err := os.ReadFile("/proc/" + who + "/cgroup")
	if err != nil {
		return "", fmt.Errorf("read a process's control group: %w", err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return findGroup(path)
		}
	}
	return "", fmt.Errorf("no cgroup v2: process %s is in no group of it", who)
}

func ownGroup() (string, error) { return groupOf(0) }
