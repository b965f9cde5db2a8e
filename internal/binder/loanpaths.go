package binder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loanSocket is a path at which listeners are lent. Several listeners may have
// one port: the borrower's form chooses.
type loanSocket struct {
	id        uint32
	path      string
	fd        int // -1: not bound at the moment
	file      identity
	mode      uint32
	listeners []*listener
	talking   map[int]int // conversations by uid
	complaint string      // the last that was logged, "" if it is well
}

// loanPaths keeps the sockets at which listeners are lent: in the main socket
// directory, and in those that lend names, whenever these appear.
type loanPaths struct {
	byPath map[string]*loanSocket
	byID   map[uint32]*loanSocket
	lastID uint32
	dirs   map[string]bool
	watch  *watcher
	retry  time.Time // something is to be tried again
	seize  bool      // a predecessor's live sockets are to be replaced
}

// retryLoans is how often a path is tried again that could not be bound, should
// inotify(7) not tell that its reason is gone.
const retryLoans = time.Second

func newLoanPaths() (*loanPaths, error) {
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	return &loanPaths{byPath: map[string]*loanSocket{}, byID: map[uint32]*loanSocket{}, dirs: map[string]bool{}, watch: w}, nil
}

// loanNames returns the names of a listener's loan sockets: its port's, and its
// own if it was given one. (A name of digits alone would be another's port.)
func loanNames(l *listener) []string {
	var names []string
	if l.bound != 0 {
		names = append(names, fmt.Sprintf("%d.listener", l.bound))
	}
	name := l.description.Name
	if _, err := strconv.Atoi(name); err != nil && !strings.ContainsAny(name, ":[]%") {
		names = append(names, name+".listener")
	}
	return names
}

// loanPaths returns all paths that the table in force asks for.
func (t *table) loanPaths() map[string][]*listener {
	all := map[string][]*listener{}
	for i, l := range t.listeners {
		if l.description.Network == "unix" || l.description.Steered() {
			continue
		}
		dirs := append([]string{t.cfg.Dir}, t.cfg.Listeners[i].Lend.Dirs...)
		for _, dir := range dirs {
			for _, name := range loanNames(l) {
				path := filepath.Join(dir, name)
				if !slices.Contains(all[path], l) {
					all[path] = append(all[path], l)
				}
			}
		}
	}
	return all
}

// settleLoans makes the loan sockets those of the table in force.
func (b *binder) settleLoans() {
	p, want := b.loans, b.active.loanPaths()
	for path, s := range p.byPath {
		if want[path] == nil {
			b.retireLender(s)
			delete(p.byPath, path)
			delete(p.byID, s.id)
		}
	}
	dirs := map[string]bool{b.active.cfg.Dir: true}
	for path, listeners := range want {
		dirs[filepath.Dir(path)] = true
		s := p.byPath[path]
		if s == nil {
			p.lastID++
			s = &loanSocket{id: p.lastID, path: path, fd: -1, talking: map[int]int{}}
			p.byPath[path], p.byID[s.id] = s, s
		}
		s.listeners = listeners
	}
	p.dirs = dirs
	p.watch.keep(nil)
	for dir := range dirs {
		b.watchLoanDir(dir)
	}
	b.bindLoans()
}

// watchLoanDir watches a directory, or, where it is not there yet, its parent.
func (b *binder) watchLoanDir(dir string) {
	w := b.loans.watch
	if !w.has(dir) {
		if err := w.add(dir); err == nil {
			return
		}
		w.remove(dir)
	}
	if parent := filepath.Dir(dir); !isDirectory(dir) && !w.has(parent) {
		if w.add(parent) != nil {
			w.remove(parent) // the retry looks again
		}
	}
}

// loanEvent notes that something happened at path.
func (b *binder) loanEvent(path string) {
	p := b.loans
	if p.dirs[path] {
		b.watchLoanDir(path)
		b.bindLoans()
		b.scoutAll()
		return
	}
	if s := p.byPath[path]; s != nil && b.lends() {
		b.bindLoan(s)
	}
	if filepath.Dir(path) == b.active.cfg.Dir {
		b.appeared(path)
	}
}

// lends: else another instance lends, or nobody any more.
func (b *binder) lends() bool { return b.before < 0 && b.yield == nil && !b.draining }

// bindLoans binds every loan socket that is not where it belongs.
func (b *binder) bindLoans() {
	b.loans.retry = time.Time{}
	if !b.lends() {
		return
	}
	for _, s := range b.loans.byPath {
		b.bindLoan(s)
	}
	b.loans.seize = false
}

// bindLoan binds s, unless it is bound. What can't be done now is said once and
// tried again.
func (b *binder) bindLoan(s *loanSocket) {
	mode, err := b.loanMode(s)
	if err == nil {
		if file, lookErr := identityOf(s.path); lookErr == nil && s.fd >= 0 && file.same(s.file) && mode == s.mode {
			return
		}
		s.mode = mode
		err = b.bindLoanSocket(s)
	}
	if err == nil {
		s.complaint = ""
		return
	}
	b.loans.retry = time.Now().Add(retryLoans)
	if text := err.Error(); !errors.Is(err, unix.ENOENT) && text != s.complaint {
		s.complaint = text
		args := []any{"path", s.path, "reason", err}
		for _, hint := range hintsOf(err) {
			args = append(args, "hint", hint)
		}
		b.log.Warn("can't lend at", args...)
	}
}

func (id identity) same(o identity) bool { return id.dev == o.dev && id.ino == o.ino }

// loanMode returns the mode of a loan socket. Who may look into the directory
// at all may borrow there, unless everybody may pass through it: then it is the
// owner and the group, or, where allow says who, allow.
func (b *binder) loanMode(s *loanSocket) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(s.path), &st); err != nil {
		return 0, fmt.Errorf("look at socket directory %s: %w", filepath.Dir(s.path), err)
	}
	if st.Mode&0o001 == 0 {
		return 0o666, nil
	}
	for _, l := range s.listeners {
		if l.allowed != nil {
			return 0o666, nil
		}
	}
	return 0o660, nil
}

// bindLoanSocket binds a new socket for s, under another name first: borrowers
// never find a path without anybody behind it, and a link that the directory's
// owner puts in the way is replaced, not followed.
func (b *binder) bindLoanSocket(s *loanSocket) error {
	if err := b.mayTake(s.path); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	file, err := bindLender(fd, s.path, s.mode)
	if err == nil {
		err = b.lookout.watch(fd, unix.EPOLLIN, aboutLoanSocket, s.id)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	b.closeLender(s)
	s.fd, s.file = fd, file
	return nil
}

// loanBacklog bounds borrowers that wait to be let in.
const loanBacklog = 64

func bindLender(fd int, path string, mode uint32) (identity, error) {
	born := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	unix.Unlink(born)
	// The file is born with these bits less the umask (unix(7)).
	err := unix.Fchmod(fd, mode)
	if err == nil {
		old := unix.Umask(0)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: born})
		unix.Umask(old)
	}
	if err != nil {
		return identity{}, loanBindError(born, err)
	}
	file, err := identityOf(born)
	if err == nil {
		err = unix.Listen(fd, loanBacklog)
	}
	if err == nil {
		err = unix.Rename(born, path)
	}
	if err != nil {
		unix.Unlink(born)
		return identity{}, fmt.Errorf("lend at %s: %w", path, err)
	}
	return file, nil
}

func loanBindError(path string, err error) error {
	dir := filepath.Dir(path)
	wrapped := fmt.Errorf("bind in %s as uid %d, gid %d: %w", dir, unix.Geteuid(), unix.Getegid(), err)
	if errors.Is(err, unix.EACCES) {
		return withHint(wrapped, fmt.Sprintf("the binder's group must be able to write there: chgrp %d %s && chmod 3770 %s", unix.Getegid(), dir, dir))
	}
	return wrapped
}

// mayTake says why path is not to be replaced.
func (b *binder) mayTake(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s is there and no socket", path)
	case b.loans.seize:
		return nil
	}
	fd, err := dialControl(path)
	if err == nil {
		unix.Close(fd)
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return withHint(fmt.Errorf("%s: another program lends there", path), "`ss -xlp` names it")
}

// closeLender stops lending at s, and leaves the path.
func (b *binder) closeLender(s *loanSocket) {
	if s.fd >= 0 {
		b.lookout.forget(s.fd)
		unix.Close(s.fd)
		s.fd = -1
	}
}

// unlend stops lending at s, and removes the path if it still is the binder's.
func (b *binder) unlend(s *loanSocket) {
	if file, err := identityOf(s.path); err == nil && s.fd >= 0 && file.same(s.file) {
		unix.Unlink(s.path)
	}
	b.closeLender(s)
}

// stopLending ends all lending. Where a listener is out on loan, the path stays:
// a borrower that comes back waits there for the next binder, and the next
// binder sees whose address is taken (beside.go).
func (b *binder) stopLending() {
	for _, s := range b.loans.byPath {
		b.retireLender(s)
	}
}

func (b *binder) retireLender(s *loanSocket) {
	if slices.ContainsFunc(s.listeners, (*listener).out) {
		b.closeLender(s)
		return
	}
	b.unlend(s)
}

// out says whether somebody may still have the listener.
func (l *listener) out() bool { return l.standing.State == Lent && l.standing.Loans > 0 }

// suspendLending leaves the paths to a successor.
func (b *binder) suspendLending() {
	for _, s := range b.loans.byPath {
		b.closeLender(s)
	}
}
