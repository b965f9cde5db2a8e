package privsep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stateVariable names the descriptor of an executed role's state.
const stateVariable = "SOCKETBOX_STATE_FD"

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
	if err := seal(fd); err != nil {
		return -1, err
	}
	return fd, nil
}

// seal closes fd if it fails.
func seal(fd int) error {
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return fmt.Errorf("seal memory file: %w", err)
	}
	return nil
}

// SealedCopy is SealedFile with the content of a file of at most limit bytes.
func SealedCopy(file *os.File, limit int64) (int, error) {
	fd, err := unix.MemfdCreate("socketbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	for copied := int64(0); ; {
		n, err := unix.Sendfile(fd, int(file.Fd()), nil, 1<<30)
		if copied += int64(n); err == nil && copied > limit {
			err = fmt.Errorf("more than %d bytes", limit)
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			unix.Close(fd)
			return -1, err
		case n == 0:
			if err := seal(fd); err != nil {
				return -1, err
			}
			return fd, nil
		}
	}
}

// MapSealed maps a memory file that nobody can change, of at most limit bytes,
// for reading; unmap ends that. fd stays the caller's.
func MapSealed(fd, limit int) (b []byte, unmap func(), err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, fmt.Errorf("fstat: %w", err)
	}
	const needed = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	switch {
	case err != nil || seals&needed != needed:
		return nil, nil, errors.New("the file is not a sealed memory file")
	case st.Size > int64(limit):
		return nil, nil, fmt.Errorf("file of %d bytes, at most %d expected", st.Size, limit)
	case st.Size == 0: // can't be mapped
		return nil, func() {}, nil
	}
	b, err = unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map a memory file: %w", err)
	}
	return b, func() { unix.Munmap(b) }, nil
}

// keepOpen leaves fds open across the exec that follows, each under the number
// that it has: moving them down to 3 and up would overwrite descriptors of the
// Go runtime, whose other threads still run.
func keepOpen(fds []int) error {
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor %d open: %w", fd, err)
		}
	}
	return nil
}

// encodeState puts the numbers of the descriptors before the state.
func encodeState(state []byte, fds []int) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(fds)))
	for _, fd := range fds {
		b = binary.NativeEndian.AppendUint32(b, uint32(fd))
	}
	return append(b, state...)
}

// TakeState returns what Reexec left for this process: the state and the
// descriptors that came with it, now close-on-exec. The caller owns them.
func TakeState() (state []byte, fds []int, err error) {
	memfd, err := strconv.Atoi(os.Getenv(stateVariable))
	os.Unsetenv(stateVariable)
	if err != nil {
		return nil, nil, errNoState
	}
	b, err := ReadFile(memfd, maxState)
	if err != nil {
		return nil, nil, fmt.Errorf("read inherited state: %w", err)
	}
	unix.Close(memfd)
	if len(b) < 4 || len(b) < 4+4*int(binary.NativeEndian.Uint32(b)) {
		return nil, nil, errNoState
	}
	n := int(binary.NativeEndian.Uint32(b))
	for i := range n {
		fd := int(binary.NativeEndian.Uint32(b[4+4*i:]))
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, nil, fmt.Errorf("inherited descriptor %d: %w", fd, err)
		}
		fds = append(fds, fd)
	}
	return b[4+4*n:], fds, nil
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
