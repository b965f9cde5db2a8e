package binder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// withHint gives err a next step.
func withHint(err error, hint string) error { return &handoff.HintError{Err: err, Text: hint} }

// mainMode is the mode of the main socket directory: root and the socketbox
// group see everything, others pass through to directories of their own;
// sticky, so that nobody unlinks another's socket; what is made inside
// belongs to the group.
const mainMode = 0o3771

// makeMainDirectory makes dir or mends its rights in place: containers that
// have it mounted see the inode, not the path.
func makeMainDirectory(dir string, a account) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make socket directory %s: %w", dir, err)
	}
	err := unix.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make socket directory %s: %w", dir, err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return withHint(fmt.Errorf("open socket directory %s: %w", dir, err), "it must be a directory, not a link; `ls -ld "+dir+"`")
	}
	defer unix.Close(fd)
	if a.keep {
		return nil // an ordinary user's directory is that user's business
	}
	return mendDirectory(fd, dir, a.gid)
}

func mendDirectory(fd int, dir string, gid int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at socket directory %s: %w", dir, err)
	}
	if st.Mode&0o002 != 0 {
		return withHint(fmt.Errorf("socket directory %s: everybody may write to it", dir), "choose a directory that holds nothing else, as /run/socketbox")
	}
	if err := unix.Fchown(fd, 0, gid); err != nil {
		return fmt.Errorf("chown socket directory %s to 0:%d: %w", dir, gid, err)
	}
	if err := unix.Fchmod(fd, mainMode); err != nil {
		return fmt.Errorf("chmod socket directory %s to %04o: %w", dir, mainMode, err)
	}
	return nil
}
