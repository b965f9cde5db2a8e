package launch

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// keeper keeps the receiving sockets of a daemon that is started again, so that
// connections which were handed to it wait for the next start (SOCKETBOX_KEEP;
// preload/keep.c is the other end). One goroutine owns it: the daemon, which is
// hostile, gets at nothing but its own.
type keeper struct {
	dir     string
	log     *slog.Logger
	own     int // our end of the pair
	daemon  int // the daemon's, which each start gets
	sockets map[string]keptSocket
	done    chan struct{}
}

type keptSocket struct {
	fd       int
	dev, ino uint64 // of the file that it is reached by
}

// keepFD is the daemon's descriptor, out of the way of those that it counts on;
// for a daemon that may have few it is in the middle.
const keepFD = 199

const (
	keepMagic = "SBXK\x01"
	keepTake  = 1
	keepStore = 2
	keepHead  = len(keepMagic) + 1
	maxKept   = 256 // what the library has room for
)

// keptNames are those that the library gives receiving sockets.
var keptNames = regexp.MustCompile(`^[1-9][0-9]{0,4}(\.ipv[46])?\.sock$`)

func newKeeper(dir string, log *slog.Logger) (*keeper, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	k := &keeper{dir: dir, log: log, own: pair[0], daemon: pair[1], sockets: map[string]keptSocket{}, done: make(chan struct{})}
	go k.serve()
	return k, nil
}

func (k *keeper) serve() {
	defer close(k.done)
	buf := make([]byte, 64)
	for {
		m, err := fdpass.Recv(k.own, buf, 1, 0)
		if errors.Is(err, fdpass.ErrTruncated) {
			continue
		}
		if err != nil || m.N == 0 && len(m.FDs) == 0 {
			return // end has shut it down
		}
		k.handle(buf[:m.N], m.FDs)
	}
}

// handle does what one packet asks for. It owns fds.
func (k *keeper) handle(packet []byte, fds []int) {
	if len(fds) != 1 || len(packet) <= keepHead || string(packet[:len(keepMagic)]) != keepMagic {
		closeFDs(fds)
		return
	}
	want, name, fd := packet[len(keepMagic)], string(packet[keepHead:]), fds[0]
	switch {
	case want == keepStore && keptNames.MatchString(name) && isReceiving(fd) && len(k.sockets) < maxKept:
		k.store(name, fd)
		return
	case want == keepTake:
		k.give(name, fd)
	}
	unix.Close(fd)
}

func (k *keeper) store(name string, fd int) {
	var st unix.Stat_t
	unix.Lstat(filepath.Join(k.dir, name), &st) // zeros match no file
	if old, ok := k.sockets[name]; ok {
		unix.Close(old.fd)
	}
	k.sockets[name] = keptSocket{fd, st.Dev, st.Ino}
	k.log.Debug("keeping", "socket", name)
}

func (k *keeper) give(name string, reply int) {
	if s, ok := k.sockets[name]; ok {
		fdpass.Send(reply, []byte{1}, s.fd) // nobody waits: the next one asks again
	} else {
		fdpass.Send(reply, []byte{0})
	}
}

// isReceiving says whether fd is what the library makes to receive on.
func isReceiving(fd int) bool {
	domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err1 == nil && err2 == nil && domain == unix.AF_UNIX && kind == unix.SOCK_DGRAM
}

// end closes what is kept: nobody will take it any more. Whoever waits there is
// reset, and the paths are removed, unless they are somebody else's by now.
func (k *keeper) end() {
	if k == nil {
		return
	}
	unix.Shutdown(k.own, unix.SHUT_RDWR)
	<-k.done
	closeFDs([]int{k.own, k.daemon})
	for name, s := range k.sockets {
		var st unix.Stat_t
		path := filepath.Join(k.dir, name)
		if unix.Lstat(path, &st) == nil && st.Dev == s.dev && st.Ino == s.ino {
			unix.Unlink(path)
		}
		if n := resetWaiting(s.fd); n > 0 {
			k.log.Warn("connections waited for a daemon that is not started again: reset", "socket", name, "connections", n)
		}
		unix.Close(s.fd)
	}
}

// resetWaiting takes what is queued on a receiving socket, which takes no more
// from then on, and resets it.
func resetWaiting(fd int) (n int) {
	unix.Shutdown(fd, unix.SHUT_RD)
	buf := make([]byte, 512)
	for {
		m, err := fdpass.Recv(fd, buf, fdpass.MaxFDs, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, fdpass.ErrTruncated) || err == nil && m.N == 0 && len(m.FDs) == 0 {
			return n
		}
		for _, conn := range m.FDs {
			unix.SetsockoptLinger(conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			n++
		}
		m.Close()
	}
}

// pass adds the daemon's end to an order.
func (k *keeper) pass(o *order, fds []int) []int {
	number := keepFD
	for _, l := range o.Limits {
		if l.Resource == unix.RLIMIT_NOFILE {
			number = int(min(l.Rlimit.Cur/2, keepFD))
		}
	}
	o.FDs, o.Sockets = append(o.FDs, number), o.Sockets+1
	o.ListenEnv = append(o.ListenEnv, fmt.Sprintf("SOCKETBOX_KEEP=%d", number))
	return append(fds, k.daemon)
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
