package isolate

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Mode is a value of --isolate.
type Mode string

// The modes. Auto leaves out what the kernel can't and says so; Strict fails.
const (
	Auto   Mode = "auto"
	Strict Mode = "strict"
	Off    Mode = "off"
)

// Modes lists the values of --isolate, for flags and completion.
var Modes = []string{string(Auto), string(Strict), string(Off)}

// Options say what to take.
type Options struct {
	Mode         Mode
	AllowConnect []uint16 // TCP ports that the daemon may connect to, in any namespace
	AllowBind    []uint16 // TCP ports that it may bind (Strict only; Auto lets it bind all). 0 is a port of the kernel's choice
	KeepCaps     []uint   // of the three capabilities, those that it keeps (unix.CAP_NET_ADMIN, …)
}

// dangerousCaps reach beyond the daemon's namespace if it is root on the
// machine: TCP_REPAIR and routes of the listener's namespace, setns(2), the
// memory and descriptors of other processes.
var dangerousCaps = []uint{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE}

// Check says before anything is started what this kernel can't do of o, one
// line each, and returns an error if o.Mode is Strict and there is any, or if
// o is no sound set of options.
func Check(o Options) (missing []string, err error) {
	switch o.Mode {
	case Off:
		return nil, nil
	case Auto:
		if len(o.AllowBind) > 0 {
			return nil, fmt.Errorf("isolate: ports that may be bound go with %q: %q lets the daemon bind", Strict, Auto)
		}
	case Strict:
	default:
		return nil, fmt.Errorf("isolate %q: expected %q, %q or %q", o.Mode, Auto, Strict, Off)
	}
	if version := landlockVersion(); version < tcpVersion {
		missing = append(missing, fmt.Sprintf("no Landlock for TCP (ABI %d, needs %d, Linux 6.7): a passed socket can be turned around by connect", version, tcpVersion))
	}
	if !filtersWork() {
		missing = append(missing, "no seccomp filters: a passed socket can be turned around by MSG_FASTOPEN")
	}
	if o.Mode == Strict && len(missing) > 0 {
		return missing, fmt.Errorf("isolate: this kernel can't do it all: %s", missing[0])
	}
	return missing, nil
}

// Apply takes what o says from the calling thread. It is called with the
// thread locked (runtime.LockOSThread), last before exec: other threads stay
// as they are, and exec ends them. It sets no_new_privs, without which neither
// Landlock nor seccomp restricts a process that is not root; what it can't do
// in mode Auto it leaves out (Check has said so). It can't be undone.
func Apply(o Options) error {
	if _, err := Check(o); err != nil || o.Mode == Off {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("isolate: prctl PR_SET_NO_NEW_PRIVS: %w", err)
	}
	if landlockVersion() >= tcpVersion {
		if err := restrictTCP(o); err != nil {
			return fmt.Errorf("isolate: %w", err)
		}
	}
	drop := slices.DeleteFunc(slices.Clone(dangerousCaps), func(c uint) bool { return slices.Contains(o.KeepCaps, c) })
	if err := dropCaps(drop); err != nil {
		return fmt.Errorf("isolate: %w", err)
	}
	if filtersWork() {
		if err := installFilter(); err != nil {
			return fmt.Errorf("isolate: %w", err)
		}
	}
	return nil
}
