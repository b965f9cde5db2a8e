// Package socketdir makes socket directories with the rights that a daemon and
// the binder need: the daemon's user owns it, the binder's group may pass.
//
// It runs with its caller's privilege, as root as a rule. What lies below a
// directory that a tenant owns is in that tenant's hands: every step is taken
// from the descriptor of the one before, and no link is followed.
package socketdir
