package relay

import (
	"fmt"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// home is where a worker is in the namespace that the process was started in.
const home = ""

// place is the network namespace that a worker's thread is in: a socket
// belongs to the one it is made in. The thread moves when the next socket is
// to be made elsewhere and stays there, so that a worker with one destination
// moves once, and hundreds of namespaces cost no descriptor each.
type place struct {
	path   string // home, or what it was entered by
	id     nsID   // of the namespace
	cookie uint64 // SO_NETNS_COOKIE of its sockets
	home   int    // descriptor of the namespace that the thread comes from; -1: none is needed
	used   bool   // since the last look
}

// nsID tells one namespace from another that took its name.
type nsID struct{ dev, ino uint64 }

// enter moves the thread into the namespace at path, unless it is there.
func (p *place) enter(path string) error {
	p.used = true
	if path == home {
		return p.goHome()
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return namespaceError("look at network namespace", path, err)
	}
	id := nsID{uint64(st.Dev), st.Ino}
	if p.path != home && p.id == id {
		p.path = path
		return nil
	}
	// O_NONBLOCK, lest a FIFO of that name blocks.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return namespaceError("open network namespace", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return namespaceError("enter network namespace", path, err)
	}
	p.path, p.id, p.cookie = path, id, 0
	return nil
}

// goHome moves the thread back.
func (p *place) goHome() error {
	if p.path == home {
		return nil
	}
	if err := unix.Setns(p.home, unix.CLONE_NEWNET); err != nil {
		return namespaceError("return from network namespace", p.path, err)
	}
	p.path, p.id, p.cookie = home, nsID{}, 0
	return nil
}

// rest lets go of a namespace in which no socket has been made since the last
// look: a thread in it would keep it from going away.
func (p *place) rest() {
	if !p.used {
		p.goHome() // tried again with the next socket
	}
	p.used = false
}

// cookieOf returns the identity of the network namespace of a socket.
func cookieOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("getsockopt SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

func namespaceError(op, path string, err error) error {
	wrapped := fmt.Errorf("%s %s: %w", op, path, err)
	switch err {
	case unix.EPERM, unix.EACCES:
		return &handoff.HintError{Err: wrapped, Text: "it takes CAP_SYS_ADMIN: start socketbox-relay as root, or inside that namespace"}
	case unix.EINVAL:
		return &handoff.HintError{Err: wrapped, Text: "expected a network namespace such as /run/netns/NAME or /proc/PID/ns/net"}
	}
	return wrapped
}
