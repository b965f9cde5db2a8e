// Package launch runs a daemon in a network namespace of its own and answers
// its listening sockets with those that socketbox owns: it is what
// socketbox-launch does.
//
// There are two processes, with one file each. The supervisor
// (supervisor.go) stays in its caller's namespaces, with its caller's rights:
// it borrows listeners, answers seccomp notifications, keeps what a restart
// must not lose, forwards signals and reaps. The stage (stage.go) is the same
// program, executed again inside the new namespaces: it makes them ready,
// gives up what the daemon shall not have, and becomes the daemon by exec.
// They talk over a socket pair that the exec closes.
//
// Everything that the daemon can influence is taken to be hostile: what a
// notification says, the memory that it points at, and what comes to the
// sockets that are made for the daemon.
package launch
