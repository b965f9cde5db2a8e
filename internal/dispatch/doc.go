// Package dispatch is the dispatcher: it accepts connections, looks up the
// rule that takes them, and hands them off. It moves descriptors and opens
// nothing; what it knows it was given by the binder.
//
// Privilege: none at all. It runs as the binder's uid without a capability,
// under an allow-list of system calls and a Landlock ruleset without a rule.
//
// One goroutine on one thread does all the work, with one epoll(7) set for
// the listeners, the sinks that are full and the control pair. Nothing here
// is safe for use by several goroutines, and nothing needs to be.
package dispatch
