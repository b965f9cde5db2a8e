package launch

import (
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// notPassed are the signals that are not the daemon's: the kernel's own words
// to a process about itself, what stops and continues a whole process group,
// those of Go's runtime (URG) and libc's (32 and 33).
var notPassed = []unix.Signal{
	unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG,
	unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT,
	unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGSYS, unix.SIGPROF, 32, 33,
}

const lastSignal = 64

// handleSignals takes over all signals but those that we were told to ignore
// (nohup): a daemon is told so, too.
func (s *supervisor) handleSignals() {
	s.signals, s.children = make(chan os.Signal, 32), make(chan os.Signal, 1)
	signal.Notify(s.children, unix.SIGCHLD)
	// A log that nobody reads is no reason to end.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	for n := unix.Signal(1); n <= lastSignal; n++ {
		if !slices.Contains(notPassed, n) && !signal.Ignored(n) {
			signal.Notify(s.signals, n)
		}
	}
}

// pass gives the daemon a signal that came for it. The second TERM ends
// everything at once.
func (s *supervisor) pass(sig os.Signal) {
	n, _ := sig.(syscall.Signal)
	again := s.stopping && n == unix.SIGTERM
	s.noteStop(sig)
	switch {
	case again:
		s.log.Warn("ending now", "signal", unix.SignalName(n))
		signalAll(append(children(), s.pid), unix.SIGKILL)
	case (n == unix.SIGINT || n == unix.SIGQUIT) && inForeground():
		// The terminal has sent it to the daemon as well.
	case s.pid != 0:
		unix.Kill(s.pid, n)
	default:
		signalAll(children(), n)
	}
}

// noteStop has no daemon start any more after a signal that means the end.
func (s *supervisor) noteStop(sig os.Signal) {
	if sig == unix.SIGTERM || sig == unix.SIGINT {
		s.stopping = true
	}
}

// inForeground tells whether a terminal sends its signals to our process
// group, which the daemon is in.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func signalAll(pids []int, sig unix.Signal) {
	for _, pid := range pids {
		if pid > 0 {
			unix.Kill(pid, sig)
		}
	}
}

// children returns the processes whose parent this one is.
func children() (pids []int) {
	own := os.Getpid()
	names, _ := readNames("/proc")
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err == nil && parentOf(pid) == own {
			pids = append(pids, pid)
		}
	}
	return pids
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// parentOf returns the parent of a process, 0 if there is no such process.
func parentOf(pid int) int {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold any byte.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}
