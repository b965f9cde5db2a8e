package privsep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// firstFD is where an executed role finds its state; its other descriptors
// follow.
const firstFD = 3

// maxState bounds what a stage hands to the next one: configuration text and
// descriptions, 16 MiB of file at most (config's own bound) and some.
const maxState = 32 << 20

// SealedFile returns a memory file with the given content that nobody can
// change any more, close-on-exec. The caller owns it.
func SealedFile(state []byte) (int, error) {
	fd, err := unix.MemfdCreate("socketbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	for off := 0; off < len(state); {
		n, err := unix.Pwrite(fd, state[off:], int64(off))
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("write state: %w", err)
		}
		off += n
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal state: %w", err)
	}
	return fd, nil
}

// inherit places fds at firstFD and following, open across exec. It runs
// right before an exec and does not care for what it overwrites, except for
// the descriptors that are still to be moved.
func inherit(fds []int) error {
	end := firstFD + len(fds)
	moved := make([]int, len(fds))
	for i, fd := range fds {
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, end)
		if err != nil {
			return fmt.Errorf("duplicate descriptor %d: %w", fd, err)
		}
		moved[i] = high
	}
	for i, fd := range moved {
		if err := unix.Dup3(fd, firstFD+i, 0); err != nil {
			return fmt.Errorf("place descriptor %d: %w", firstFD+i, err)
		}
	}
	return nil
}

// TakeState returns what Reexec left for this process: the state and the
// descriptors that came with it, now close-on-exec. The caller owns them.
func TakeState() (state []byte, fds []int, err error) {
	b, err := ReadFile(firstFD, maxState)
	if err != nil || len(b) < 4 {
		return nil, nil, fmt.Errorf("read inherited state: %w", errors.Join(err, errNoState))
	}
	unix.Close(firstFD)
	for i := range int(binary.NativeEndian.Uint32(b)) {
		fd := firstFD + 1 + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, nil, fmt.Errorf("inherited descriptor %d: %w", fd, err)
		}
		fds = append(fds, fd)
	}
	return b[4:], fds, nil
}

var errNoState = errors.New("this role is started by `socketbox bind` only")

// ReadFile reads a memory file of at most limit bytes from its beginning,
// without moving its offset: by pread64, which the dispatcher's filter allows.
func ReadFile(fd, limit int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	if st.Size < 0 || st.Size > int64(limit) {
		return nil, fmt.Errorf("file of %d bytes, at most %d expected", st.Size, limit)
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if err != nil {
			return nil, fmt.Errorf("pread: %w", err)
		}
		if n == 0 {
			return nil, errors.New("file is shorter than it says")
		}
		off += n
	}
	return b, nil
}

// execveat executes the file behind fd; it returns only on failure.
func execveat(fd int, argv, env []string) error {
	empty, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	args, err := pointers(argv)
	if err != nil {
		return err
	}
	vars, err := pointers(env)
	if err != nil {
		return err
	}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&vars[0])), unix.AT_EMPTY_PATH, 0)
	return e
}

// pointers makes a NULL-terminated vector of C strings.
func pointers(list []string) ([]*byte, error) {
	out := make([]*byte, 0, len(list)+1)
	for _, s := range list {
		p, err := unix.BytePtrFromString(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return append(out, nil), nil
}
