package socketdir

import (
	"errors"
	"fmt"
	"io"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

const (
	// mode of a socket directory: its owner does what it likes, the binder's
	// group passes, and what is made inside belongs to that group.
	mode = 0o2750
	// passMode of what leads there: others pass, and see nothing.
	passMode = 0o2751
	// longest is the longest name of a socket that a receiver makes there.
	longest = len("/65535.ipv6.sock")
	maxPath = 107 // sun_path less its NUL, unix(7)
)

// Plan is a socket directory to be made.
type Plan struct {
	Main  string // main socket directory
	Name  string // below it, with slashes if it is nested
	Owner Owner
}

// Check refuses a name that leads elsewhere, and a path on which no socket
// would fit.
func (p *Plan) Check() error {
	if p.Name == "" || strings.HasPrefix(p.Name, "/") {
		return fmt.Errorf("name %q: expected one below %s, as shop or shop/web", p.Name, p.Main)
	}
	for part := range strings.SplitSeq(p.Name, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return fmt.Errorf("name %q: its part %q is empty, begins with a dot, or has a space or control character", p.Name, part)
		}
	}
	if n := len(p.Path()) + longest; n > maxPath {
		return fmt.Errorf("name %q is too long: a socket in %s would have a path of up to %d bytes, at most %d", p.Name, p.Path(), n, maxPath)
	}
	return nil
}

// Path is the directory's path.
func (p *Plan) Path() string { return filepath.Join(p.Main, p.Name) }

// Create makes the directory and what leads there, or mends the rights of what
// is there, in place: containers that have it mounted see the inode. It tells
// out what it did.
func (p *Plan) Create(out io.Writer) error {
	if err := p.Check(); err != nil {
		return err
	}
	fd, err := unix.Open(p.Main, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return &handoff.HintError{Err: fmt.Errorf("main socket directory %s: %w", p.Main, err),
			Text: "`socketbox bind` makes it, or systemd-tmpfiles --create socketbox.conf; another one is named by --dir"}
	}
	if err != nil {
		return fmt.Errorf("main socket directory %s: %w", p.Main, err)
	}
	defer func() { unix.Close(fd) }()
	var main unix.Stat_t
	if err := unix.Fstat(fd, &main); err != nil {
		return fmt.Errorf("main socket directory %s: %w", p.Main, err)
	}
	parts := strings.Split(p.Name, "/")
	path := p.Main
	for i, part := range parts {
		path += "/" + part
		s := step{path: path, name: part, uid: int(main.Uid), gid: int(main.Gid), mode: passMode, keep: true, passer: p.Owner.UID}
		if i == len(parts)-1 {
			s.uid, s.mode, s.keep = p.Owner.UID, mode, false
		}
		next, err := s.enter(fd)
		if err != nil {
			return err
		}
		unix.Close(fd)
		fd = next
		if err := s.settle(fd, out); err != nil {
			return err
		}
	}
	return nil
}

// step is one directory on the way.
type step struct {
	path, name string
	uid, gid   int
	mode       uint32
	passer     int  // who is to pass it
	keep       bool // one that is there stays as it is
	made       bool
}

// enter opens the directory below the one behind fd, after making it if it is
// not there. A link in its place is refused.
func (s *step) enter(fd int) (int, error) {
	err := unix.Mkdirat(fd, s.name, 0o700)
	s.made = err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("make socket directory %s: %w", s.path, err)
	}
	next, err := unix.Openat(fd, s.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return -1, &handoff.HintError{Err: fmt.Errorf("socket directory %s: there is something else, or a link", s.path), Text: "ls -ld " + s.path}
	}
	if err != nil {
		return -1, fmt.Errorf("open socket directory %s: %w", s.path, err)
	}
	return next, nil
}

// settle gives the directory behind fd its owner and mode.
func (s *step) settle(fd int, out io.Writer) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at socket directory %s: %w", s.path, err)
	}
	if s.keep && !s.made {
		if s.passer == 0 || int(st.Uid) == s.passer || st.Mode&0o001 != 0 {
			return nil
		}
		return say(out, "note: %s (owner %d, mode %04o) stays as it is, and user %d can't pass it: that is well where the directory below is mounted into a container, else chmod o+x %s\n",
			s.path, st.Uid, st.Mode&0o7777, s.passer, s.path)
	}
	if int(st.Uid) == s.uid && int(st.Gid) == s.gid && st.Mode&0o7777 == s.mode {
		return say(out, "%s is as it should be: %s\n", s.path, s.rights())
	}
	if err := unix.Fchown(fd, s.uid, s.gid); err != nil {
		return &handoff.HintError{Err: fmt.Errorf("chown socket directory %s to %d:%d: %w", s.path, s.uid, s.gid, err), Text: "run the command as root"}
	}
	if err := unix.Fchmod(fd, s.mode); err != nil {
		return fmt.Errorf("chmod socket directory %s to %04o: %w", s.path, s.mode, err)
	}
	if s.made {
		return say(out, "%s made: %s\n", s.path, s.rights())
	}
	return say(out, "%s mended: %s, was %d:%d %04o\n", s.path, s.rights(), st.Uid, st.Gid, st.Mode&0o7777)
}

func (s *step) rights() string {
	return fmt.Sprintf("owner %d, group %d, mode %04o", s.uid, s.gid, s.mode)
}

func say(out io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(out, format, args...)
	return err
}

// Tmpfiles prints the lines of tmpfiles.d(5) that make the directory at boot,
// and what leads there as it is now, in the group of the main socket directory,
// which is socketbox where that is not there yet. Nothing is made.
func (p *Plan) Tmpfiles(out io.Writer) error {
	if err := p.Check(); err != nil {
		return err
	}
	group := "socketbox"
	var st unix.Stat_t
	if unix.Stat(p.Main, &st) == nil {
		group = groupName(st.Gid)
	}
	parts := strings.Split(p.Name, "/")
	path := p.Main
	for i, part := range parts {
		path += "/" + part
		owner, group, rights := "root", group, uint32(passMode)
		switch {
		case i == len(parts)-1:
			owner, rights = p.Owner.Text, mode
		case unix.Lstat(path, &st) == nil:
			owner, group, rights = userName(st.Uid), groupName(st.Gid), st.Mode&0o7777
		}
		if err := say(out, "d %s %04o %s %s -\n", path, rights, owner, group); err != nil {
			return err
		}
	}
	return nil
}

func userName(uid uint32) string {
	id := strconv.Itoa(int(uid))
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.Itoa(int(gid))
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
