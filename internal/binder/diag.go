package binder

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"socketbox/internal/listen"
	"socketbox/internal/sockdiag"
)

// diag is what the binder knows a network namespace by: two sock_diag sockets
// that were opened in it, by whoever could enter it.
type diag struct {
	namespace uint64 // its cookie

	mu    sync.Mutex // one question at a time
	query int

	events     *os.File
	raw        syscall.RawConn
	subscribed bool
	every      bool            // ports: no filter
	ports      map[uint16]bool // whose sockets' ends are told
}

// diagFDs is how many descriptors a diag is passed as: query, events.
const diagFDs = 2

// openDiags opens a pair of sockets in the network namespace of each of fds, and
// in the caller's own, one for each namespace. One that can't be entered is left
// out: sessions of listeners there can't be counted or listed.
func openDiags(fds []int) []int {
	var pairs []int
	seen := map[uint64]bool{}
	open := func() error {
		var pair []int
		for range diagFDs {
			fd, err := sockdiag.Open()
			if err != nil {
				closeAll(pair)
				return err
			}
			pair = append(pair, fd)
		}
		if unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventRoom) != nil {
			unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_RCVBUF, eventRoom)
		}
		if cookie := listen.NamespaceCookie(pair[0]); cookie == 0 || seen[cookie] {
			closeAll(pair)
			return nil
		}
		seen[listen.NamespaceCookie(pair[0])] = true
		pairs = append(pairs, pair...)
		return nil
	}
	open()
	for _, fd := range fds {
		if !seen[listen.NamespaceCookie(fd)] {
			listen.InNamespaceOf(fd, open)
		}
	}
	return pairs
}

// takeDiags makes the binder's own what openDiags has opened. Namespaces that it
// knows already are closed.
func (b *binder) takeDiags(fds []int) error {
	for ; len(fds) >= diagFDs; fds = fds[diagFDs:] {
		cookie := listen.NamespaceCookie(fds[0])
		if cookie == 0 || cookie != listen.NamespaceCookie(fds[1]) || b.diags[cookie] != nil || len(b.diags) >= maxDiags {
			closeAll(fds[:diagFDs])
			continue
		}
		d := &diag{namespace: cookie, query: fds[0], ports: map[uint16]bool{}, events: os.NewFile(uintptr(fds[1]), "sock_diag events")}
		var err error
		if d.raw, err = d.events.SyscallConn(); err != nil {
			return fmt.Errorf("sock_diag socket: %w", err)
		}
		if b.diags == nil {
			b.diags = map[uint64]*diag{}
		}
		b.diags[cookie] = d
	}
	closeAll(fds)
	return nil
}

// maxDiags bounds the namespaces that reloads can make the binder remember.
const maxDiags = 1024

// diagOf returns the diag of a listener's namespace, nil if there is none.
func (b *binder) diagOf(l *listener) *diag {
	if l.fd < 0 {
		return nil
	}
	return b.diags[listen.NamespaceCookie(l.fd)]
}

// hear has the kernel tell of the end of sockets with this local port, 0: any.
func (d *diag) hear(port uint16) error {
	if port == 0 {
		d.every = true
	}
	d.ports[port] = true
	var ports []uint16
	if !d.every {
		for p := range d.ports {
			ports = append(ports, p)
		}
	}
	if err := d.onEvents(func(fd int) error { return sockdiag.FilterPorts(fd, ports) }); err != nil {
		return err
	}
	if d.subscribed {
		return nil
	}
	d.subscribed = true
	return d.onEvents(sockdiag.Subscribe)
}

// deafen ends that.
func (d *diag) deafen() error {
	if !d.subscribed {
		return nil
	}
	d.subscribed, d.every = false, false
	clear(d.ports)
	return d.onEvents(sockdiag.Unsubscribe)
}

func (d *diag) onEvents(do func(fd int) error) error {
	var err error
	if ctlErr := d.raw.Control(func(fd uintptr) { err = do(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

// dump lists connections, and listeners if they are asked for.
func (d *diag) dump(q sockdiag.Query, each func(*sockdiag.Socket) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sockdiag.Dump(d.query, q, each)
}

func (d *diag) alive(s *sockdiag.Socket) (*sockdiag.Socket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sockdiag.Alive(d.query, s)
}
