package listen

import (
	"golang.org/x/sys/unix"
)

// Wishes are the options of a borrower's own socket that are applied to the
// socket which it borrows. Whatever is not here is not applied: a device, a
// mark, a filter would be more than a borrower may decide, a timeout would be
// inherited by every connection.
type Wishes struct {
	backlog     int // 0: as configured
	noDelay     int
	keepAlive   int
	keepIdle    int // the next three only with keepAlive
	keepEvery   int
	keepCount   int
	deferAccept int // seconds; 0: as configured
	fastOpen    int
	receive     int // bytes as SO_RCVBUF takes them; 0: not set by the borrower
	send        int
}

// Bits of SO_BUF_LOCK (Linux 5.15): which buffers were set by hand.
const (
	sendLocked = 1 << 0
	recvLocked = 1 << 1
)

// WishesOf reads the wishes of a borrower from its own socket, which may be
// anything: what can't be read is not wished for. backlog is what it would
// give to listen, 0 for no wish.
func WishesOf(own int, backlog uint32) Wishes {
	get := func(level, opt int) int {
		v, err := unix.GetsockoptInt(own, level, opt)
		if err != nil {
			return 0
		}
		return v
	}
	w := Wishes{
		backlog:     int(min(backlog, 1<<30)),
		noDelay:     get(unix.SOL_TCP, unix.TCP_NODELAY),
		keepAlive:   get(unix.SOL_SOCKET, unix.SO_KEEPALIVE),
		keepIdle:    get(unix.SOL_TCP, unix.TCP_KEEPIDLE),
		keepEvery:   get(unix.SOL_TCP, unix.TCP_KEEPINTVL),
		keepCount:   get(unix.SOL_TCP, unix.TCP_KEEPCNT),
		deferAccept: get(unix.SOL_TCP, unix.TCP_DEFER_ACCEPT),
		fastOpen:    get(unix.SOL_TCP, unix.TCP_FASTOPEN),
	}
	locked := get(unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if locked&recvLocked != 0 {
		w.receive = get(unix.SOL_SOCKET, unix.SO_RCVBUF) / 2 // reads as twice what was set, socket(7)
	}
	if locked&sendLocked != 0 {
		w.send = get(unix.SOL_SOCKET, unix.SO_SNDBUF) / 2
	}
	return w
}

// Prepare makes fd, a socket of d, ready for a borrower with wishes w: it
// applies them as far as the kernel agrees, lets a later start bind beside the
// loan (OpenBeside), and has fd listen, which an earlier borrower may have
// ended for all by connect(2) to AF_UNSPEC or by shutdown(2): it still is
// bound then. The caller keeps fd.
func (d Description) Prepare(fd int, w Wishes) error {
	set := func(level, opt, value int) { unix.SetsockoptInt(fd, level, opt, value) }
	if w.receive > 0 {
		set(unix.SOL_SOCKET, unix.SO_RCVBUF, w.receive)
	}
	if w.send > 0 {
		set(unix.SOL_SOCKET, unix.SO_SNDBUF, w.send)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return d.failOption("SO_REUSEPORT", "", err)
	}
	if d.Network == UDP {
		return nil
	}
	set(unix.SOL_TCP, unix.TCP_NODELAY, w.noDelay)
	set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, w.keepAlive)
	if w.keepAlive != 0 {
		set(unix.SOL_TCP, unix.TCP_KEEPIDLE, w.keepIdle)
		set(unix.SOL_TCP, unix.TCP_KEEPINTVL, w.keepEvery)
		set(unix.SOL_TCP, unix.TCP_KEEPCNT, w.keepCount)
	}
	if w.deferAccept > 0 {
		set(unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, w.deferAccept)
	}
	if w.fastOpen > 0 {
		set(unix.SOL_TCP, unix.TCP_FASTOPEN, w.fastOpen)
	}
	if w.backlog == 0 {
		w.backlog = d.backlog()
	}
	if err := unix.Listen(fd, w.backlog); err != nil {
		return d.fail("listen on", err)
	}
	return nil
}

// OpenBeside is Open where an earlier loan still has the address: both sockets
// have SO_REUSEPORT and were made by the same uid, and a program of one
// instruction has the kernel prefer the older one as long as it is there. From
// then on this one gets the clients, without a moment in between.
func OpenBeside(d Description) (int, error) {
	d.ReusePort = true
	fd, err := Open(d)
	if err != nil {
		return -1, err
	}
	first := [1]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	program := unix.SockFprog{Len: 1, Filter: &first[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &program); err != nil {
		unix.Close(fd)
		return -1, d.failOption("SO_ATTACH_REUSEPORT_CBPF", "", err)
	}
	return fd, nil
}
