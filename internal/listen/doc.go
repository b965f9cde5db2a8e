// Package listen turns a listener's description into a bound and listening
// socket, in this network namespace or in another one. It is the only place
// where a socket option of a listener is set.
//
// It runs in the privileged stage of `socketbox bind`, before any client byte
// was read, and as root in `socketbox reload`: with every capability that the
// service manager gave. Where it lacks one, its errors say what to do.
package listen
