// Package binder is `socketbox bind` without the moving of connections: the
// privileged stage that binds (privileged.go), and the binder that it becomes
// by exec, which opens what the dispatcher needs, supervises it, reloads, and
// answers on the control socket.
//
// Privilege: Start runs as root, where it is root, reads the configuration
// and never a byte from a client. Run has no capability, a uid of its own and
// a seccomp deny-list. Run is one goroutine that owns all state; the others
// only bring it events.
package binder
