package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/notify"
)

// readiness passes on what the daemon tells its service manager (sd_notify(3)).
// That one believes the supervisor, its main process, and perhaps nobody else;
// and an abstract address of it is in another network namespace than the daemon.
type readiness struct {
	dir string
	fd  int
}

const notifyVariable = "NOTIFY_SOCKET"

// passReadiness makes a socket for the daemon where there is a service manager,
// and returns the daemon's environment.
func (s *supervisor) passReadiness(env []string) ([]string, *readiness, error) {
	if variable(s.o.Environ, notifyVariable) == "" {
		return env, nil, nil
	}
	dir, err := os.MkdirTemp("", "socketbox-launch-")
	if err != nil {
		return nil, nil, err
	}
	r := &readiness{dir: dir, fd: -1}
	path := filepath.Join(dir, "notify")
	err = os.Chmod(dir, 0o711) // for a daemon of another user
	if err == nil {
		r.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err == nil {
		err = unix.Bind(r.fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err == nil {
		err = unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}
	if err != nil {
		r.end()
		return nil, nil, fmt.Errorf("a socket for the daemon's readiness: %w", err)
	}
	go r.serve()
	return append(withoutVariables(env, notifyVariable), notifyVariable+"="+path), r, nil
}

// end removes the socket's file; the descriptor ends with the supervisor.
func (r *readiness) end() {
	if r != nil {
		os.RemoveAll(r.dir)
	}
}

// serve passes on what comes from the daemon and its children, until the
// supervisor ends. Descriptors that come along are not passed on; closing them is
// what a sender that wants to know that it was heard waits for (BARRIER=1).
func (r *readiness) serve() {
	buf := make([]byte, 4096)
	for {
		m, err := fdpass.Recv(r.fd, buf, fdpass.MaxFDs, 0)
		if err != nil && !errors.Is(err, fdpass.ErrTruncated) {
			return
		}
		if err == nil && m.Cred != nil && descends(int(m.Cred.Pid), os.Getpid()) {
			if state := ownState(string(buf[:m.N])); state != "" {
				notify.State(state)
			}
		}
		m.Close()
	}
}

// descends says whether a process is one of ancestor's.
func descends(pid, ancestor int) bool {
	for range 64 {
		if pid = parentOf(pid); pid <= 1 || pid == ancestor {
			return pid == ancestor
		}
	}
	return false
}

// ownState leaves out of a message what is about processes and descriptors: the
// main process is the supervisor, whatever the daemon thinks.
func ownState(message string) string {
	var kept []string
	for line := range strings.Lines(message) {
		line = strings.TrimSuffix(line, "\n")
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "READY", "STATUS", "RELOADING", "STOPPING", "MONOTONIC_USEC", "ERRNO", "BUSERROR", "EXIT_STATUS", "WATCHDOG", "WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC":
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}
