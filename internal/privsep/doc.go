// Package privsep separates the privileges of socketbox: it sheds them by
// exec, verifies by looking that they are gone, confines the binder and the
// dispatcher, and defines what the two may say to each other.
//
// Privilege: EnterGuard and Reexec run in the privileged stage, as root; everything else
// runs without any. This is the only importer of gocapability,
// libseccomp-golang, go-landlock and cilium/ebpf. docs/architecture.md has the drawing.
package privsep

// Role is what a process of `socketbox bind` is. It is its process title, and
// the way in which a freshly executed process knows what to be.
type Role string

// The roles; the privileged stage has none, it is the command itself.
const (
	Binder     Role = "socketbox: binder"
	Dispatcher Role = "socketbox: dispatcher"
)

// RoleOf returns the role that a process with the arguments args was started
// for. It grants nothing: whoever starts a binder by hand gets a process
// without listeners.
func RoleOf(args []string) (Role, bool) {
	if len(args) != 1 {
		return "", false
	}
	switch r := Role(args[0]); r {
	case Binder, Dispatcher:
		return r, true
	}
	return "", false
}
