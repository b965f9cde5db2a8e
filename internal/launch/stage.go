package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"socketbox/internal/inetd"
	"socketbox/internal/privsep/isolate"
)

// StageName is the argv[0] that makes this program the stage.
const StageName = "socketbox-launch: stage"

// IsStage tells whether this process was started as the stage.
func IsStage(args []string) bool { return len(args) > 1 && args[0] == StageName }

// stage is the second process, from its start in the new namespaces to the
// exec of the daemon. All it does counts for this one thread, the only one
// that survives the exec.
type stage struct {
	order
	fds []int // NetNS, then Sockets
}

// Stage makes the namespaces ready, gives up what the daemon shall not have,
// and executes it: os.Args[1:] is its argv. It returns only what to exit with.
func Stage() int {
	runtime.LockOSThread()
	unix.CloseOnExec(stageFD)
	o, fds, err := recvOrder(stageFD)
	if err != nil {
		fmt.Fprintln(os.Stderr, "socketbox-launch: error: this is the second half of socketbox-launch, to be started by the first:", err)
		return ExitFailure
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	s := &stage{order: o, fds: fds}
	err = s.run()
	r := report{About: reportFailed, Text: err.Error(), Code: exitCode(err)}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		r.Hint = hinted.Hint()
	}
	if send(stageFD, r) != nil {
		fmt.Fprintln(os.Stderr, "socketbox-launch: error:", err)
	}
	return r.Code
}

// run does one step after another, and returns only with an error. The order:
// the filter while there may be rights that make no_new_privs unnecessary,
// limits before the user changes, the directory as the new user, and last what
// can't be undone.
func (s *stage) run() error {
	steps := []struct {
		name string
		do   func() error
	}{
		{"network namespace", s.network},
		{"seccomp filter", s.filter},
		{"", s.limits},
		{"", s.becomeUser},
		{"no_new_privs", s.noNewPrivs},
		{"", s.directory},
		{"", func() error { return isolate.Apply(s.Isolate) }},
		{"", s.await},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			if step.name != "" {
				err = fmt.Errorf("%s: %w", step.name, err)
			}
			return err
		}
	}
	return s.execute()
}

func (s *stage) note(format string, args ...any) {
	send(stageFD, report{About: reportNote, Text: fmt.Sprintf(format, args...)})
}

func (s *stage) limits() error {
	for _, l := range s.Limits {
		if err := unix.Setrlimit(l.Resource, &l.Rlimit); err != nil {
			return fmt.Errorf("resource limit %d: %w", l.Resource, err)
		}
	}
	return nil
}

func (s *stage) noNewPrivs() error {
	if !s.NoNewPrivs {
		return nil
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

func (s *stage) directory() error {
	if s.Chdir == "" {
		return nil
	}
	if err := unix.Chdir(s.Chdir); err != nil {
		return fmt.Errorf("chdir %s: %w", s.Chdir, err)
	}
	return nil
}

// await tells the supervisor that all is done but the exec, and waits for its
// word: it has to serve notifications before the daemon's first bind.
func (s *stage) await() error {
	if err := send(stageFD, report{About: reportReady}); err != nil {
		return err
	}
	var b [16]byte
	n, err := unix.Read(stageFD, b[:])
	if err == nil && n == 0 {
		err = errors.New("the supervisor has ended")
	}
	return err
}

// execute becomes the daemon.
func (s *stage) execute() error {
	if err := s.placeSockets(); err != nil {
		return err
	}
	env := append(os.Environ(), s.ListenEnv...)
	if variable(s.ListenEnv, "LISTEN_FDS") != "" {
		env = append(env, fmt.Sprintf("LISTEN_PID=%d", os.Getpid()))
	}
	err := syscall.Exec(s.Path, os.Args[1:], env)
	return executeError(s.Path, err)
}

// executeError is a program that the kernel does not execute; with what a
// shell would exit with.
func executeError(path string, err error) error {
	code := ExitNoExec
	if errors.Is(err, fs.ErrNotExist) {
		code = ExitNotFound
		// The file is there, since we have looked: its interpreter is not.
		if _, statErr := os.Stat(path); statErr == nil {
			err = fmt.Errorf("its interpreter is not there: %w", err)
		}
	}
	return &inetd.CommandError{Name: path, Err: err, ExitCode: code}
}

// placeSockets puts the listening sockets on the numbers that the daemon
// looks for them under. They are first moved out of each other's way.
func (s *stage) placeSockets() error {
	sockets := s.fds[s.NetNS:]
	above := stageFD
	for _, fd := range s.FDs {
		above = max(above, fd)
	}
	for i, fd := range sockets {
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, above+1)
		if err != nil {
			return fmt.Errorf("pass a listening socket on: %w", err)
		}
		sockets[i] = high
	}
	// The pair may be on a number that is wanted: it goes out of the way, too,
	// and the copy closes at exec like the rest.
	for i, fd := range sockets {
		if s.FDs[i] == stageFD {
			if _, err := unix.FcntlInt(stageFD, unix.F_DUPFD_CLOEXEC, above+1); err != nil {
				return fmt.Errorf("pass a listening socket on: %w", err)
			}
		}
		if err := unix.Dup3(fd, s.FDs[i], 0); err != nil {
			return fmt.Errorf("pass a listening socket on as descriptor %d: %w", s.FDs[i], err)
		}
	}
	return nil
}

// withoutVariables returns env without the variables of those names.
func withoutVariables(env []string, names ...string) []string {
	var kept []string
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		found := false
		for _, n := range names {
			found = found || n == name
		}
		if !found {
			kept = append(kept, entry)
		}
	}
	return kept
}
