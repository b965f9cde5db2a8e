package relay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// confine gives up, for all threads and for good, what is not needed any more
// once everything is opened. It comes last: what it forbids was needed before.
func (r *relay) confine() error {
	keep := r.capabilities()
	if err := dropCapabilities(keep); err != nil {
		return err
	}
	if err := landlock.V3.BestEffort().RestrictPaths(r.files()...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if rules, bounded := r.connects(); bounded {
		if err := onlyNet(ll.AccessNetConnectTCP, rules...); err != nil {
			return err
		}
	}
	if !r.o.Transparent {
		return onlyNet(ll.AccessNetBindTCP) // none: what listens is bound
	}
	return nil
}

// onlyNet allows one kind of access to the ports of rules and no other one
// (Linux 6.7; older kernels allow all).
func onlyNet(access landlock.AccessNetSet, rules ...landlock.Rule) error {
	config, err := landlock.NewConfig(access)
	if err == nil {
		err = config.BestEffort().RestrictNet(rules...)
	}
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return nil
}

// connects returns the TCP ports that connections go to, and those of name
// servers; bounded is false where they come with the connections.
func (r *relay) connects() (rules []landlock.Rule, bounded bool) {
	for i := range r.destinations {
		d := &r.destinations[i]
		switch {
		case d.kind == toPath, d.kind == toAbstract:
			continue
		case d.kind != toTCP, strings.Contains(d.port, "{"):
			return nil, false
		}
		port, err := parsePort(d.port)
		if err != nil {
			return nil, false
		}
		rules = append(rules, landlock.ConnectTCP(port))
	}
	return append(rules, landlock.ConnectTCP(53)), true
}

// files returns what is still looked at: names and their servers, network
// namespaces that come with the connections, and the receiving sockets, which
// are removed in the end.
func (r *relay) files() []landlock.Rule {
	rules := []landlock.Rule{landlock.RODirs("/etc", "/proc", "/run/systemd/resolve", "/run/resolvconf", "/usr/share/zoneinfo").IgnoreIfMissing()}
	if path := r.fixedNetNS; path != home {
		rules = append(rules, landlock.RODirs(filepath.Dir(path)).IgnoreIfMissing())
	}
	if text := r.netns.String(); text != "" {
		before, _, _ := strings.Cut(text, "{")
		rules = append(rules, landlock.RODirs(filepath.Dir(before+"x")).IgnoreIfMissing())
	}
	for _, s := range r.sources {
		if s.receiver != nil && s.receiver.Path() != "" {
			rules = append(rules, landlock.RWDirs(filepath.Dir(s.receiver.Path())))
		}
	}
	return rules
}

// capabilities returns the set that connections still take.
func (r *relay) capabilities() (set uint64) {
	if r.o.Transparent {
		set |= 1 << unix.CAP_NET_ADMIN
	}
	if r.netns.Keys() != 0 {
		set |= 1 << unix.CAP_SYS_ADMIN
	}
	for _, s := range r.sources {
		if s.receiver != nil && !ownDirectory(s.receiver.Path()) {
			set |= 1 << unix.CAP_DAC_OVERRIDE // to remove the socket in another user's directory; Landlock keeps it there
		}
	}
	return set
}

func ownDirectory(path string) bool {
	var st unix.Stat_t
	return path == "" || unix.Stat(filepath.Dir(path), &st) != nil || int(st.Uid) == unix.Geteuid()
}

// limitExec takes from all threads what an exec could give back, but for keep.
// It runs before there are workers, who inherit it: each of these calls stops
// every thread, and there are forty, which on a busy machine took seconds.
func limitExec(keep uint64) error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep&(1<<c) == 0 {
			// EPERM without CAP_SETPCAP: then nothing below has a way to use it either, as no exec gives anything.
			syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		}
	}
	for _, call := range [][3]uintptr{
		{unix.PR_SET_NO_NEW_PRIVS, 1, 0}, {unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0},
	} {
		if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, call[0], call[1], call[2], 0, 0, 0); errno != 0 {
			return os.NewSyscallError("prctl", errno)
		}
	}
	return nil
}

// dropCapabilities leaves at most those of keep, in all threads.
func dropCapabilities(keep uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range data {
		part := uint32(keep >> (32 * i))
		data[i].Effective &= part
		data[i].Permitted &= part
		data[i].Inheritable = 0
	}
	header.Pid = 0
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}
