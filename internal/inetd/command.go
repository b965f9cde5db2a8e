package inetd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// CommandError is a program that can't be executed. ExitCode is what a shell
// would end with: 127 if it is not there, 126 if it may not be executed.
type CommandError struct {
	Name     string
	Err      error
	ExitCode int
}

func (e *CommandError) Error() string { return fmt.Sprintf("execute %s: %v", e.Name, e.Err) }
func (e *CommandError) Unwrap() error { return e.Err }

// Hint names the next step.
func (e *CommandError) Hint() string {
	if e.ExitCode == 127 && !strings.Contains(e.Name, "/") {
		return "it is in no directory of PATH (" + os.Getenv("PATH") + "); give its full path"
	}
	return ""
}

// FindCommand returns the absolute path of the program name, once and for all
// children. A name with a slash is a path, any other is looked up in path.
func FindCommand(name, path string) (string, error) {
	if name == "" {
		return "", &CommandError{name, errors.New("the name is empty"), 127}
	}
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", commandError(name, err)
		}
		return filepath.Abs(name)
	}
	var found error = fs.ErrNotExist
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "." // as execvp(3)
		}
		file := filepath.Join(dir, name)
		err := executable(file)
		if err == nil {
			return filepath.Abs(file)
		}
		if _, absent := os.Stat(file); absent == nil {
			found = err // a better reason than that it is not there
		}
	}
	return "", commandError(name, found)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return errors.Unwrap(err)
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a file")
	}
	return unix.Access(path, unix.X_OK)
}

func commandError(name string, err error) error {
	code := 126
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		code = 127
	}
	if err == fs.ErrNotExist {
		err = errors.New("not found")
	}
	return &CommandError{name, err, code}
}
