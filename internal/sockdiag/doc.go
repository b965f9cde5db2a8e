// Package sockdiag asks the kernel about TCP sockets of one network namespace
// (sock_diag(7)): which there are, whether a certain one still lives, that one
// ends, and to be told of each that has ended. What the kernel sends is read
// like anything else that arrives on a socket: sizes and counts are bounded,
// what does not fit is an error and never a crash.
//
// It runs with its caller's privilege. Reading and subscribing take none;
// Destroy takes CAP_NET_ADMIN in the socket's namespace, both of the caller and
// of whoever opened the descriptor.
package sockdiag
