package handoff

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultMode is the mode of a receiving socket: its owner and the socketbox
// group may connect.
const DefaultMode fs.FileMode = 0o660

// Options are what a receiver may choose about its socket.
type Options struct {
	Mode  fs.FileMode // 0: DefaultMode
	Group int         // -1: the directory decides
	From  int         // only this uid may send; -1: whoever may connect
}

// HintError is an error with a next step for the administrator.
type HintError struct {
	Err  error
	Text string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Hint returns the next step, without a final full stop.
func (e *HintError) Hint() string { return e.Text }

// Listen binds a receiving socket at path. The directory is locked meanwhile
// (flock(2)), so that two receivers that start at once can't both take the
// path; a socket file that nobody answers is replaced, a live one is an error.
func Listen(path string, o Options) (*Receiver, error) {
	unlock, err := lockDirectory(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, err
	}
	fd, err := bindSocket(path, o)
	if err != nil {
		return nil, err
	}
	return newReceiver(fd, path, o)
}

// lockDirectory takes an exclusive lock on dir, which lasts until the
// returned function is called or the process ends.
func lockDirectory(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		// The main directory may be entered and not listed (3771): there is
		// nothing to lock for a stranger, and bind(2) refuses a taken path.
		return func() {}, nil
	}
	if err != nil {
		return nil, directoryError(dir, err)
	}
	for {
		if err = unix.Flock(fd, unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock socket directory %s: %w", dir, err)
	}
	return func() { unix.Close(fd) }, nil
}

func directoryError(dir string, err error) error {
	wrapped := fmt.Errorf("open socket directory %s: %w", dir, err)
	if errors.Is(err, unix.ENOENT) {
		return &HintError{wrapped, "start `socketbox bind` first, which makes the main directory, or name another with --dir"}
	}
	return wrapped
}

// clearStale unlinks path if it is a socket that nobody holds any more.
func clearStale(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("look at socket %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("receive on %s: the file is there and no socket", path)
	}
	fd, err := Connect(path)
	switch {
	case err == nil:
		unix.Close(fd)
		return &HintError{fmt.Errorf("receive on %s: %w", path, unix.EADDRINUSE),
			"another receiver is live there; `ss -xlp` names it"}
	case errors.Is(err, unix.ECONNREFUSED):
		if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("replace the dead socket %s: %w", path, err)
		}
		return nil
	default:
		return fmt.Errorf("probe socket %s: %w", path, err)
	}
}

// Connect returns a datagram socket connected to the receiver at path,
// non-blocking and close-on-exec; the caller owns it. ENOENT says that nobody
// receives there, ECONNREFUSED that the file is left from one who did.
func Connect(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = withShortPath(path, func(p string) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: p}) })
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect %s: %w", path, err)
	}
	return fd, nil
}

// bindSocket binds a datagram socket at path with the mode and group asked
// for, whatever the umask.
func bindSocket(path string, o Options) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if o.From >= 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt SO_PASSCRED", err)
		}
	}
	// The file is born with these bits less the umask: never wider, not even
	// for the moment until setRights.
	if err := unix.Fchmod(fd, uint32(o.mode())); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fchmod", err)
	}
	err = withShortPath(path, func(p string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: p}) })
	if err != nil {
		unix.Close(fd)
		return -1, bindError(path, err)
	}
	if err := setRights(path, o); err != nil {
		unix.Unlink(path)
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindError(path string, err error) error {
	wrapped := fmt.Errorf("bind %s: %w", path, err)
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, unix.EACCES):
		return &HintError{wrapped, "uid " + fmt.Sprint(unix.Geteuid()) + " may not create files in " + dir +
			"; as root: install -d -m 2750 -o USER -g GROUP-OF-SOCKETBOX " + filepath.Join(dir, "NAME") + ", and receive there"}
	case errors.Is(err, unix.EROFS):
		return &HintError{wrapped, "mount " + dir + " read-write into the container"}
	}
	return wrapped
}

// setRights gives the new socket file its group and mode, whatever the umask.
// It works on the file itself, not on the path: in a directory of another
// user that user could put a link in its place.
func setRights(path string, o Options) error {
	file, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket %s: %w", path, err)
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return fmt.Errorf("look at socket %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("receive on %s: somebody has replaced the socket", path)
	}
	if o.Group >= 0 {
		if err := unix.Fchownat(file, "", -1, o.Group, unix.AT_EMPTY_PATH); err != nil {
			return groupError(path, o.Group, err)
		}
	}
	if err := chmodFile(file, o.mode()); err != nil {
		return fmt.Errorf("chmod %04o %s: %w", o.mode(), path, err)
	}
	return nil
}

// chmodFile changes the mode of an O_PATH descriptor. fchmodat2(2) with an
// empty path is of Linux 6.6; before, /proc leads to the file.
func chmodFile(file int, mode fs.FileMode) error {
	_, _, errno := unix.Syscall6(unix.SYS_FCHMODAT2, uintptr(file), uintptr(unsafe.Pointer(&[]byte{0}[0])), uintptr(mode), unix.AT_EMPTY_PATH, 0, 0)
	if errno == 0 {
		return nil
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", file), uint32(mode))
}

func groupError(path string, group int, err error) error {
	wrapped := fmt.Errorf("chgrp %d %s: %w", group, path, err)
	if errors.Is(err, unix.EPERM) {
		return &HintError{wrapped, "uid " + fmt.Sprint(unix.Geteuid()) + " must be a member of that group, or root"}
	}
	return wrapped
}

// mode returns the mode asked for.
func (o Options) mode() fs.FileMode {
	if o.Mode == 0 {
		return DefaultMode
	}
	return o.Mode.Perm()
}

// maxSunPath is the longest path that sockaddr_un holds (unix(7)), less the
// final NUL.
const maxSunPath = 107

// withShortPath calls f with path, or, where path is too long for a
// sockaddr_un, with a name of the same file through an open directory.
func withShortPath(path string, f func(string) error) error {
	if len(path) <= maxSunPath {
		return f(path)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	if len(short) > maxSunPath {
		return unix.ENAMETOOLONG
	}
	return f(short)
}
