package binder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// readableBy says why a user with no supplementary group could not read path.
func readableBy(path string, uid, gid int) error {
	return mayAccess(path, uid, gid, 4)
}

// mayAccess walks to path and returns an error that names the first component
// which the user may not pass, or path itself if it lacks a right of want (4
// read, 2 write, 1 execute). Access control lists are not looked at.
func mayAccess(path string, uid, gid int, want uint32) error {
	for i := 1; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		if err := mayPass(path[:i], "directory", uid, gid, 1); err != nil {
			return err
		}
	}
	what := "file"
	switch st, err := os.Stat(path); {
	case err != nil:
	case st.IsDir():
		what, want = "directory", 5
	case st.Mode()&fs.ModeSocket != 0:
		what = "socket file"
	}
	return mayPass(path, what, uid, gid, want)
}

// accessError is a file whose rights keep a user out.
type accessError struct {
	what, path string
	st         unix.Stat_t
	uid, gid   int
}

func (e *accessError) Error() string {
	return fmt.Sprintf("%s %s (owner %d:%d, mode %04o) does not let uid %d, gid %d in",
		e.what, e.path, e.st.Uid, e.st.Gid, e.st.Mode&0o7777, e.uid, e.gid)
}

// Hint is the command that lets the user's group in.
func (e *accessError) Hint() string {
	mode := "0660"
	if e.what == "directory" {
		mode = "2750"
	}
	return fmt.Sprintf("give it to the socketbox group: chgrp %d %s && chmod %s %s", e.gid, e.path, mode, e.path)
}

func mayPass(path, what string, uid, gid int, want uint32) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("%s %s: %w", what, path, err)
	}
	bits := st.Mode & 7
	switch {
	case int(st.Uid) == uid:
		bits = st.Mode >> 6 & 7
	case int(st.Gid) == gid:
		bits = st.Mode >> 3 & 7
	}
	if bits&want == want {
		return nil
	}
	return &accessError{what, path, st, uid, gid}
}

// complain logs why a path can't be used, once in a while for each reason.
func (r *resolver) complain(path string, err error) {
	const every = 10 * time.Second
	args := []any{"path", path, "reason", err}
	if errors.Is(err, unix.EACCES) {
		var why *accessError
		if errors.As(mayAccess(path, unix.Geteuid(), unix.Getegid(), 2), &why) {
			args = append(args, "because", why, "hint", why.Hint())
		}
	}
	text := fmt.Sprint(args...)
	if last, ok := r.denied[text]; ok && r.now().Sub(last) < every {
		return
	}
	if len(r.denied) >= maxRoutes {
		clear(r.denied)
	}
	r.denied[text] = r.now()
	r.log.Warn("can't use socket", args...)
}
