package binder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/listen"
)

// openListeners returns a listening socket for each configured listener:
// inherited by LISTEN_FDS (sd_listen_fds(3)) where one fits, else bound now.
// All failures are reported together. Inherited sockets that no listener asks
// for are listeners of their own, unless there is a configuration file.
func openListeners(cfg *config.Config, h *handover, p *predecessor) ([]int, error) {
	inherited, err := inheritedSockets()
	if err != nil {
		return nil, err
	}
	if p != nil {
		inherited = append(inherited, p.inherited()...)
	}
	fds, err := h.openMissing(cfg, inherited)
	if err != nil {
		return nil, err
	}
	for _, in := range inherited {
		if in.used {
			continue
		}
		if in.key != "" {
			h.Warnings = append(h.Warnings, fmt.Sprintf("no longer listening on %s: it is not configured any more", in.d))
			unix.Close(in.fd)
			continue
		}
		if h.Options.Config != "" {
			h.Warnings = append(h.Warnings, fmt.Sprintf("inherited socket %s is in no [[listener]]: closed", in.d))
			forget(in.name)
			unix.Close(in.fd)
			continue
		}
		h.Inherited = append(h.Inherited, in.d)
		fds = append(fds, in.fd)
	}
	if len(fds) == 0 {
		return nil, withHint(errors.New("nothing to listen on"), "socketbox bind --listen :8080, or a [[listener]] in the configuration")
	}
	return fds, nil
}

// inherited is a socket that came by LISTEN_FDS.
type inherited struct {
	fd   int
	d    listen.Description
	name string // from $LISTEN_FDNAMES
	key  string // of a running instance's listener, which must be the same in everything
	used bool
}

// inheritedSockets describes the sockets that a service manager passed.
func inheritedSockets() ([]*inherited, error) {
	var found []*inherited
	var problems []error
	for _, p := range listen.Activation() {
		d, err := listen.Describe(p.FD)
		if err = errors.Join(err, unix.SetNonblock(p.FD, true)); err != nil {
			problems = append(problems, fmt.Errorf("inherited socket %d: %w", p.FD, err))
			continue
		}
		if listen.CheckName(p.Name) == nil {
			d.Name = p.Name
		}
		found = append(found, &inherited{fd: p.FD, d: d, name: p.Name})
	}
	return found, errors.Join(problems...)
}

// openMissing opens the listeners of cfg, each from the inherited sockets if it
// is among them.
func (h *handover) openMissing(cfg *config.Config, inherited []*inherited) ([]int, error) {
	ds := cfg.Descriptions()
	fds := make([]int, len(ds))
	var missing []listen.Description
	var where []int
	for i, d := range ds {
		if in := findInherited(inherited, d); in != nil {
			in.used = true
			fds[i] = in.fd
			continue
		}
		missing, where = append(missing, d), append(where, i)
	}
	opened, elders, err := openAll(missing, cfg.Dir)
	if err != nil {
		return nil, err
	}
	h.Elders = elders
	for k, fd := range opened {
		fds[where[k]] = fd
		if all, beside := elders[keyOf(missing[k])]; beside {
			h.Warnings = append(h.Warnings, warnOfElders(missing[k].Name, all))
		}
	}
	return fds, nil
}

func findInherited(inherited []*inherited, d listen.Description) *inherited {
	for _, in := range inherited {
		if in.used || in.key != "" && in.key != keyOf(d) {
			continue
		}
		if d.Steered() && in.key == "" && in.name != storeName(d) {
			continue // what it is bound to tells nothing
		}
		if listen.Matches(in.fd, d) == nil {
			return in
		}
	}
	return nil
}

// controlPath is where the control socket of the main socket directory dir
// is: beside it, never in it.
func controlPath(dir string) string { return filepath.Clean(dir) + ".control" }

// controlBacklog bounds commands that wait to be let in.
const controlBacklog = 16

// bindControl binds the control socket. A second instance on the same
// directory takes a name with its process id; sockets that dead instances
// left are removed.
func bindControl(dir string, a account) (fd int, path string, err error) {
	path = controlPath(dir)
	leftovers, _ := filepath.Glob(path + ".*")
	for _, left := range leftovers {
		removeDead(left)
	}
	if !removeDead(path) {
		path += "." + strconv.Itoa(os.Getpid())
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", os.NewSyscallError("socket", err)
	}
	old := unix.Umask(0o117)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	unix.Umask(old)
	if err != nil {
		unix.Close(fd)
		return -1, "", fmt.Errorf("bind control socket %s: %w", path, err)
	}
	if !a.keep {
		err = unix.Lchown(path, 0, a.gid)
	}
	if err == nil {
		err = unix.Listen(fd, controlBacklog)
	}
	if err != nil {
		unix.Unlink(path)
		unix.Close(fd)
		return -1, "", fmt.Errorf("control socket %s: %w", path, err)
	}
	return fd, path, nil
}

// removeDead unlinks the control socket at path if nobody answers there. It
// returns false if somebody does, or the file is something else.
func removeDead(path string) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return true
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false
	}
	fd, err := dialControl(path)
	if err == nil {
		unix.Close(fd)
		return false
	}
	return isRefused(err) && unix.Unlink(path) == nil
}

// isRefused: there is a socket file, and nobody behind it.
func isRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }
