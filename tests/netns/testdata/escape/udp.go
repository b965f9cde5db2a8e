package main

import (
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addressOf(b *[16]byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// datagrams answers a client, as it may, and then tries to reach a service
// that never wrote.
func (e *escape) datagrams() {
	buf := make([]byte, 64)
	err := e.readable(3 * time.Second)
	if err == nil {
		var n int
		var client unix.Sockaddr
		if n, client, err = unix.Recvfrom(e.fd, buf, 0); err == nil {
			err = unix.Sendto(e.fd, buf[:n], 0, client)
		}
		e.try("connect to a client", e.reply(client, buf[:n]))
	}
	e.try("answer a client", err)
	stranger := e.sockaddr(e.udp)
	e.try("sendto", e.ask(func() error { return unix.Sendto(e.fd, []byte("x"), 0, stranger) }))
	e.try("sendmsg", e.ask(func() error { return unix.Sendmsg(e.fd, []byte("x"), nil, stranger, 0) }))
	if e.family == unix.AF_INET6 {
		mapped := e.sockaddr(netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), e.udp.Port()))
		e.try("sendto a mapped address", e.ask(func() error { return unix.Sendto(e.fd, []byte("x"), 0, mapped) }))
	}
	e.try("connect", e.ask(func() error {
		if err := unix.Connect(e.fd, stranger); err != nil {
			return err
		}
		_, err := unix.Write(e.fd, []byte("x"))
		return err
	}))
	e.try("disconnect, sendto", e.ask(func() error {
		if err := e.disconnect(); err != nil {
			return err
		}
		return unix.Sendto(e.fd, []byte("x"), 0, stranger)
	}))
	e.inspect()
}

// reply connects to a client that has written, as some servers do.
func (e *escape) reply(client unix.Sockaddr, text []byte) error {
	if err := unix.Connect(e.fd, client); err != nil {
		return err
	}
	if _, err := unix.Write(e.fd, text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return e.disconnect()
}

// ask sends to the service and reads what only it says.
func (e *escape) ask(send func() error) error {
	if err := send(); err != nil {
		return err
	}
	return e.secret()
}
