package launch

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"socketbox/internal/inetd"
)

// What the launcher exits with when it is not the daemon's own status, as
// env(1) and nohup(1) do.
const (
	ExitFailure  = 125 // of the launcher itself
	ExitNoExec   = 126 // the program can't be executed
	ExitNotFound = 127 // there is no such program
)

// StageError is a failure in the stage, as it told it.
type StageError struct {
	Text, Next string
	Code       int
}

func (e *StageError) Error() string { return e.Text }

// Hint returns the next step, "" if none is known.
func (e *StageError) Hint() string { return e.Next }

// ExitStatus is the daemon's own end, which the launcher passes on.
type ExitStatus int

func (s ExitStatus) Error() string { return fmt.Sprintf("the daemon ended with status %d", int(s)) }

// exitCode returns what to exit with for an error of the launcher.
func exitCode(err error) int {
	var command *inetd.CommandError
	var stage *StageError
	switch {
	case errors.As(err, &command):
		return command.ExitCode
	case errors.As(err, &stage):
		return stage.Code
	}
	return ExitFailure
}

// ExitCode returns what socketbox-launch exits with: the daemon's status,
// 128 and its number after a signal, or what exitCode says. silent tells that
// there is nothing to print.
func ExitCode(err error) (code int, silent bool) {
	var status ExitStatus
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &status):
		return int(status), true
	}
	return exitCode(err), false
}

// statusOf is a shell's view of a process's end.
func statusOf(w unix.WaitStatus) ExitStatus {
	if w.Signaled() {
		return ExitStatus(128 + int(w.Signal()))
	}
	return ExitStatus(w.ExitStatus())
}
