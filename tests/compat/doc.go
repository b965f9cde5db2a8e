// Package compat runs Debian's daemons behind `socketbox bind` and writes down
// what it saw, in docs/compatibility.md.
//
// Each daemon runs twice, with the same configuration and a port of its own:
// natively, with its own TCP listener where the clients are; and preloaded, in
// a network namespace with nothing but lo, where socketbox-preload answers its
// listens. Both meet the same clients, and what the native one shows them is
// the measure of the other.
//
// The tests have the build tag compat and need root: `make compat`. They run
// in a network, mount, pid and IPC namespace of their own; what they start
// ends with them.
package compat
