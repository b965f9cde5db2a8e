// Package handoff is the hand-off wire: one datagram on a pathname Unix
// socket is one connection, carried as one descriptor. docs/protocol.md is
// its specification.
//
// The sending side (Header, Sender) runs in the confined dispatcher and has
// no privilege; Receiver runs with whatever rights the receiver has, and
// takes everything that arrives on its socket to be hostile.
package handoff
