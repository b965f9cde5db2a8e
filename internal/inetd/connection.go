package inetd

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/peer"
)

// connection is a received connection and what the kernel says of it.
type connection struct {
	peer.Facts
	fd       int // owned; -1 once only the child has it
	listener string
	received time.Time
}

// describe takes over the hand-off's descriptor, also on an error.
//
// The socket gets back the blocking mode that accept(2) would have given it;
// nothing else of it is touched.
func describe(conn handoff.Conn, now time.Time) (*connection, error) {
	c := &connection{fd: conn.FD, listener: conn.Header.Listener, received: now}
	err := restoreBlocking(c.fd)
	if err == nil {
		c.Facts, err = peer.Of(c.fd)
	}
	if err != nil {
		unix.Close(c.fd)
		return nil, err
	}
	return c, nil
}

func restoreBlocking(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_NONBLOCK != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_NONBLOCK)
	}
	if err != nil {
		return fmt.Errorf("restore blocking mode: %w", err)
	}
	return nil
}

// refuse ends a connection that can't be served: a reset.
func (c *connection) refuse() {
	if c.fd >= 0 {
		peer.Reset(c.fd)
		c.fd = -1
	}
}

func (c *connection) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}
