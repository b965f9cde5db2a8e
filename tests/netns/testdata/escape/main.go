// Command escape is a daemon in hostile hands. It holds a socket that was
// passed to it, in a network namespace that has nothing, and tries to reach
// with it what the namespace of the socket reaches. It writes to a file what
// became of each attempt, a line each: its name, a tab, "open" or the error.
//
// Static, so that it runs in any container.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep/isolate"
)

// escape is one socket and what to try with it.
type escape struct {
	fd     int
	family int
	tcp    netip.AddrPort // services of the socket's namespace, on loopback
	udp    netip.AddrPort
	port   uint16 // free there
	prefix string // of the attempts' names
	report *os.File
}

func main() {
	kind := flag.String("kind", "connection", "what the socket is: connection, listener or udp")
	fd := flag.Int("fd", 0, "its descriptor")
	tcp := flag.String("tcp", "", "a TCP service that only the socket's namespace reaches")
	udp := flag.String("udp", "", "a UDP service like that")
	port := flag.Uint("port", 0, "a free port there")
	report := flag.String("report", "", "file to write to")
	wait := flag.String("wait", "", "begin when this file is there")
	mode := flag.String("isolate", "off", "isolate first, as socketbox-launch does")
	flag.Parse()
	if *mode != "off" {
		isolated(*mode)
	}
	e := &escape{fd: *fd, tcp: netip.MustParseAddrPort(*tcp), port: uint16(*port), report: must(os.OpenFile(*report, os.O_WRONLY|os.O_APPEND, 0))}
	if *udp != "" {
		e.udp = netip.MustParseAddrPort(*udp)
	}
	e.family = must(unix.GetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_DOMAIN))
	for *wait != "" {
		if _, err := os.Stat(*wait); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	map[string]func(*escape){"connection": (*escape).connection, "listener": (*escape).listener, "udp": (*escape).datagrams}[*kind](e)
	fmt.Fprintln(e.report, "end")
}

// isolated executes this program again, isolated.
func isolated(mode string) {
	runtime.LockOSThread()
	if err := isolate.Apply(isolate.Options{Mode: isolate.Mode(mode)}); err != nil {
		die(err)
	}
	die(syscall.Exec("/proc/self/exe", append(os.Args, "-isolate", "off"), os.Environ()))
}

func must[T any](v T, err error) T {
	if err != nil {
		die(err)
	}
	return v
}

func die(err error) {
	fmt.Fprintln(os.Stderr, "escape:", err)
	os.Exit(1)
}

// try notes what became of an attempt.
func (e *escape) try(name string, err error) {
	outcome := "open"
	if err != nil {
		outcome = err.Error()
	}
	fmt.Fprintf(e.report, "%s%s\t%s\n", e.prefix, name, outcome)
}

// connection tries what one accepted connection allows.
func (e *escape) connection() {
	e.outward()
	e.try("listen", e.listen()) // before it has a port
	e.try("bind", e.bind())
	e.inspect()
	e.mapped()
}

// listener takes a client, as it may, and then tries what the connection and
// the listener itself allow.
func (e *escape) listener() {
	conn, err := e.accept(3 * time.Second)
	e.try("accept", err)
	if err == nil {
		own := *e
		own.fd, own.prefix = conn, "accepted: "
		own.connection()
		unix.Close(conn)
	}
	e.outward()
	e.inspect()
	e.try("denial of service", e.disconnect())
	e.mapped()
}

// outward tries to connect, in all ways that there are.
func (e *escape) outward() {
	e.try("connect", e.afterDisconnect(func() error { return unix.Connect(e.fd, e.sockaddr(e.tcp)) }))
	e.try("sendto fastopen", e.afterDisconnect(func() error {
		return unix.Sendto(e.fd, []byte("x"), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, e.sockaddr(e.tcp))
	}))
	e.try("sendmsg fastopen", e.afterDisconnect(func() error {
		return unix.Sendmsg(e.fd, []byte("x"), nil, e.sockaddr(e.tcp), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL)
	}))
	e.try("connect fastopen", e.afterDisconnect(func() error {
		unix.SetsockoptInt(e.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
		defer unix.SetsockoptInt(e.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 0)
		if err := unix.Connect(e.fd, e.sockaddr(e.tcp)); err != nil {
			return err
		}
		_, err := unix.Write(e.fd, []byte("x"))
		return err
	}))
	e.try("as an MPTCP socket", e.afterDisconnect(func() error {
		if err := unix.SetsockoptString(e.fd, unix.IPPROTO_TCP, unix.TCP_ULP, "mptcp"); err != nil {
			return err
		}
		return unix.Connect(e.fd, e.sockaddr(e.tcp))
	}))
	e.try("by an MPTCP socket of its own", func() error {
		own := *e
		fd, err := unix.Socket(e.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		own.fd = fd
		if err := unix.Connect(fd, e.sockaddr(e.tcp)); err != nil {
			return err
		}
		return own.secret()
	}())
}

// mapped comes last: a socket that was once connected like that is not what it
// was.
func (e *escape) mapped() {
	if e.family == unix.AF_INET6 {
		ipv4 := netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), e.tcp.Port())
		e.try("connect to a mapped address", e.afterDisconnect(func() error { return unix.Connect(e.fd, e.sockaddr(ipv4)) }))
	}
}

// afterDisconnect turns the socket around, connects it in some way, and reads
// what only the service says.
func (e *escape) afterDisconnect(connect func() error) error {
	if err := e.disconnect(); err != nil {
		return fmt.Errorf("disconnect: %w", err)
	}
	unix.SetNonblock(e.fd, false)
	unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2}) // of connect, too
	if err := connect(); err != nil {
		return err
	}
	return e.secret()
}

// secret reads what the service says to whoever reaches it.
func (e *escape) secret() error {
	buf := make([]byte, 64)
	if err := e.readable(2 * time.Second); err != nil {
		return err
	}
	n, _, err := unix.Recvfrom(e.fd, buf, 0)
	if err == nil && string(buf[:n]) != "host only\n" {
		err = fmt.Errorf("reached %q", buf[:n])
	}
	return err
}

func (e *escape) readable(limit time.Duration) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if err == nil && n == 0 {
		err = unix.ETIMEDOUT
	}
	return err
}

func (e *escape) disconnect() error {
	var unspecified [16]byte // AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(e.fd), addressOf(&unspecified), 16)
	if errno != 0 {
		return errno
	}
	return nil
}

// bind takes a port of the host and serves there.
func (e *escape) bind() error {
	if err := e.disconnect(); err != nil {
		return err
	}
	if err := unix.Bind(e.fd, e.sockaddr(netip.AddrPortFrom(unspecified[e.family], e.port))); err != nil {
		return err
	}
	return e.serve()
}

var unspecified = map[int]netip.Addr{unix.AF_INET: netip.IPv4Unspecified(), unix.AF_INET6: netip.IPv6Unspecified()}

// listen lets the kernel choose a port, and serves there.
func (e *escape) listen() error {
	if err := e.disconnect(); err != nil {
		return err
	}
	return e.serve()
}

// serve listens, and asks the test to come.
func (e *escape) serve() error {
	if err := unix.Listen(e.fd, 1); err != nil {
		return err
	}
	name, err := unix.Getsockname(e.fd)
	if err != nil {
		return err
	}
	port := 0
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		port = a.Port
	case *unix.SockaddrInet6:
		port = a.Port
	}
	fmt.Fprintf(e.report, "come\t%d\n", port)
	conn, err := e.accept(700 * time.Millisecond)
	if err == nil {
		unix.Close(conn)
	}
	return err
}

func (e *escape) accept(limit time.Duration) (int, error) {
	if err := e.readable(limit); err != nil {
		return -1, err
	}
	conn, _, err := unix.Accept4(e.fd, unix.SOCK_CLOEXEC)
	return conn, err
}

// inspect tries what a socket tells, and lets change, of its namespace.
func (e *escape) inspect() {
	e.try("network namespace", e.enter())
	req := must(unix.NewIfreq("lo"))
	err := unix.IoctlIfreq(e.fd, unix.SIOCGIFFLAGS, req)
	e.try("read an interface", err)
	if err == nil {
		e.try("change an interface", unix.IoctlIfreq(e.fd, unix.SIOCSIFFLAGS, req)) // to what it is
	}
}

// enter goes where the socket comes from, on a thread that ends with it.
func (e *escape) enter() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			const siocgskns = 0x894c
			ns, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), siocgskns, 0)
			if errno != 0 {
				return errno
			}
			defer unix.Close(int(ns))
			if err := unix.Setns(int(ns), unix.CLONE_NEWNET); err != nil {
				return err
			}
			own := *e
			var err error
			if own.fd, err = unix.Socket(e.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			defer unix.Close(own.fd)
			if err := unix.Connect(own.fd, e.sockaddr(e.tcp)); err != nil {
				return err
			}
			return own.secret()
		}()
	}()
	return <-result
}

func (e *escape) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if e.family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
