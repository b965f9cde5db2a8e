package listen

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// unixMode is the mode of a Unix listener's path, whatever the umask: like
	// a port it is for every client, and who may reach it is the directory's
	// business. (It belongs to the user who binds, root as a rule: anything
	// tighter would shut out all clients but root.)
	unixMode = 0o666

	// lockWait is how long another program may keep the directory locked while
	// it probes and binds there, which takes microseconds.
	lockWait = 2 * time.Second
)

// openUnix binds d.Path, in place of a socket file that nobody listens on. The
// directory is locked meanwhile: two programs that start at once must not
// unlink each other's socket.
func (d Description) openUnix() (int, error) {
	lock, err := lockDir(path.Dir(d.Path))
	if err != nil {
		return -1, d.fail("lock the directory of", err)
	}
	defer unix.Close(lock)
	if err := d.removeStale(); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, d.fail("make a socket for", err)
	}
	if err := d.bindUnix(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (d Description) bindUnix(fd int) error {
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: d.Path}); err != nil {
		return d.fail("bind", err)
	}
	if err := unix.Listen(fd, d.backlog()); err != nil {
		return d.fail("listen on", err)
	}
	if err := chmodSocket(d.Path, unixMode); err != nil {
		return d.fail("set the mode of", err)
	}
	return nil
}

// lockDir returns a descriptor that holds the lock on dir until it is closed.
func lockDir(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return fd, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(end) {
			unix.Close(fd)
			return -1, err
		}
	}
}

// removeStale unlinks d.Path if it is a socket that refuses connections; all
// else that may be there stays and is an error.
func (d Description) removeStale() error {
	var st unix.Stat_t
	switch err := unix.Lstat(d.Path, &st); {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return d.fail("look at", err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return d.fail("bind", errors.New("there is a file that is no socket"))
	}
	switch err := probe(d.Path); err {
	case unix.ECONNREFUSED:
		if err := unix.Unlink(d.Path); err != nil {
			return d.fail("unlink stale", err)
		}
		return nil
	case nil, unix.EAGAIN, unix.EPROTOTYPE: // taken, backlog full, another type
		return d.fail("bind", unix.EADDRINUSE)
	default:
		return d.fail("probe", err)
	}
}

// probe connects to the socket at p and hangs up.
func probe(p string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: p})
}

// chmodSocket sets the mode of the socket at p and of nothing that has taken
// its place: not of a symbolic link's target, not of a file. chmod(2) goes
// through /proc since fchmod(2) takes no O_PATH descriptor.
func chmodSocket(p string, mode uint32) error {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s was replaced by something that is no socket", p)
	case st.Mode&0o7777 == mode:
		return nil
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}
