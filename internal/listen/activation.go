package listen

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Passed is a descriptor that a service manager passed.
type Passed struct {
	FD   int    // close-on-exec; the caller owns it
	Name string // from $LISTEN_FDNAMES; "" if it has none
}

// firstPassed is SD_LISTEN_FDS_START.
const firstPassed = 3

// Activation takes the descriptors that a service manager passed
// (sd_listen_fds(3)): $LISTEN_FDS of them from 3 on, if $LISTEN_PID is this
// process. The variables are removed: what this process executes is not meant
// by them.
//
// (go-systemd's activation package would do, but brings crypto/tls and its
// self-tests at start into every process: docs/decisions.)
func Activation() []Passed {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	n, err := strconv.Atoi(count)
	if pid != strconv.Itoa(os.Getpid()) || err != nil {
		return nil
	}
	var passed []Passed
	for i := range n {
		p := Passed{FD: firstPassed + i}
		if i < len(names) && names[i] != "unknown" {
			p.Name = names[i]
		}
		unix.CloseOnExec(p.FD)
		passed = append(passed, p)
	}
	return passed
}
