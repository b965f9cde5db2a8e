//go:build compat

package compat

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// get makes one HTTP request and returns the body.
func get(c net.Conn, path string) (string, error) {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: compat.test\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	head, body, ok := strings.Cut(string(b), "\r\n\r\n")
	if !ok || !strings.HasPrefix(head, "HTTP/1.") || len(head) < 12 || head[9:12] != "200" {
		return "", fmt.Errorf("answer %.60q", b)
	}
	return body, nil
}

func askHTTP(c net.Conn) error {
	_, err := get(c, "/")
	return err
}

// visit connects, runs f, and returns the connection's addresses as truth.
func visit(d *net.Dialer, to string, f func(c net.Conn) error) (*sight, error) {
	c, err := d.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	setDeadline(c)
	s := &sight{
		trueClient: c.LocalAddr().(*net.TCPAddr).AddrPort(),
		trueServer: c.RemoteAddr().(*net.TCPAddr).AddrPort(),
	}
	return s, f(c)
}

// fields reads "client port server port [note]"; "-" is not told.
func (s *sight) fields(text string) error {
	f := strings.Fields(text)
	if len(f) < 4 {
		return fmt.Errorf("the daemon says %.80q, not two addresses", text)
	}
	var err error
	if s.client, err = addrPort(f[0], f[1]); err != nil {
		return err
	}
	if s.server, err = addrPort(f[2], f[3]); err != nil {
		return err
	}
	s.note = strings.Join(f[4:], " ")
	return nil
}

func addrPort(addr, port string) (netip.AddrPort, error) {
	var a netip.Addr
	var p uint64
	var err error
	if addr != "-" {
		if a, err = netip.ParseAddr(strings.Trim(addr, "[]")); err != nil {
			return netip.AddrPort{}, fmt.Errorf("the daemon says the address %q", addr)
		}
	}
	if port != "-" {
		if p, err = strconv.ParseUint(port, 10, 16); err != nil {
			return netip.AddrPort{}, fmt.Errorf("the daemon says the port %q", port)
		}
	}
	return netip.AddrPortFrom(a, uint16(p)), nil
}

// reportHTTP is for daemons whose page is "client port server port [note]".
func reportHTTP(i *instance, d *net.Dialer, to string) (*sight, error) {
	var body string
	s, err := visit(d, net.JoinHostPort(to, strconv.Itoa(i.port)), func(c net.Conn) (err error) {
		body, err = get(c, "/")
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, s.fields(body)
}
