// Package inetd is what socketbox-inetd does: it receives connections and
// starts one process for each, with the socket as descriptors 0 and 1.
//
// It runs with the privilege of whoever started it, root if --user is to mean
// anything, and never reads a byte of a connection. What arrives on its
// receiving socket is taken to be hostile; the children are not ours to judge.
//
// Everything happens in one loop (loop.go) on one thread: reap children,
// start what may start, receive what may be received, wait. Whatever is over
// a limit waits: first here, up to a bound, then in the receiving socket,
// then in the dispatcher's hold, then in the kernel's backlog. Nothing is
// refused.
//
//	options.go      what can be asked for, and the words of the command line
//	server.go       Run: from options to a server that runs, and its end
//	loop.go         the loop
//	admission.go    who may start now: --max, --max-per-source, --rate
//	connection.go   what the kernel says of a received socket
//	environ.go      the children's environment
//	children.go     the running ones: start, reap, timeouts
//	signals.go      signals, wake-ups
//	housekeeping.go once a second: is the socket still there, STATUS
package inetd
