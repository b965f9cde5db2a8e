// Package fdpass moves one message with file descriptors over a Unix socket.
//
// It is the only place of the suite that builds or reads SCM_RIGHTS control
// messages (unix(7), cmsg(3)): close-on-exec, truncation and surplus
// descriptors are handled here and nowhere else. It needs no privilege and
// keeps no state.
package fdpass
