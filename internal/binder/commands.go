package binder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
)

// This file is the other side of the control socket: what `socketbox reload`
// and `socketbox status` do, with their caller's rights. They trust the
// binder with nothing but its answers.

// session is a command's connection to a running binder.
type session struct {
	file *os.File
	raw  syscall.RawConn
}

// dial connects to the instance of the main socket directory dir.
func dial(dir string) (*session, error) {
	path := controlPath(dir)
	fd, err := dialControl(path)
	if err != nil {
		return nil, dialError(path, err)
	}
	return newSession(os.NewFile(uintptr(fd), path))
}

// newSession takes over file, which is non-blocking.
func newSession(file *os.File) (*session, error) {
	file.SetDeadline(time.Now().Add(controlTime))
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &session{file: file, raw: raw}, nil
}

func dialError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return withHint(err, "`socketbox bind` is not running there; another instance is chosen by --dir")
	case errors.Is(err, unix.EACCES):
		return withHint(err, "run the command as root, or as a member of the group of "+path)
	}
	return err
}

// ask sends one request and waits for the answer, whose descriptors the
// caller owns.
func (s *session) ask(q request, fds ...int) ([]int, error) {
	if err := sendPacket(s.raw, q, fds); err != nil {
		return nil, fmt.Errorf("ask the binder: %w", err)
	}
	return s.answer()
}

// answer waits for one answer, whose descriptors the caller owns.
func (s *session) answer() ([]int, error) {
	buf := make([]byte, 2*maxControlPacket)
	m, err := receivePacket(s.raw, buf, fdsPerPacket)
	if err != nil {
		return nil, fmt.Errorf("the binder's answer: %w", err)
	}
	if m.N == 0 {
		return nil, errors.New("the binder ended the conversation (it stopped, or too many commands run at once)")
	}
	var r reply
	if err := json.Unmarshal(buf[:m.N], &r); err != nil {
		m.Close()
		return nil, fmt.Errorf("the binder's answer: %w", err)
	}
	if r.Error != "" {
		m.Close()
		return nil, withHint(errors.New(r.Error), strings.Join(r.Hints, "\n"))
	}
	return m.FDs, nil
}

// FetchStatus returns the status of the instance of dir.
func FetchStatus(dir string) (*Status, error) {
	s, err := dial(dir)
	if err != nil {
		return nil, err
	}
	defer s.file.Close()
	return s.status()
}

func (s *session) status() (*Status, error) {
	fds, err := s.ask(request{Op: "status"})
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, errors.New("the binder's status is missing")
	}
	defer unix.Close(fds[0])
	text, err := privsep.ReadFile(fds[0], maxStatus)
	if err != nil {
		return nil, fmt.Errorf("the binder's status: %w", err)
	}
	st := &Status{}
	if err := json.Unmarshal(text, st); err != nil {
		return nil, fmt.Errorf("the binder's status: %w", err)
	}
	st.look()
	return st, nil
}

// Reload has the instance of dir take the configuration in path. The file is
// read, and listeners that the instance has not are opened, with the caller's
// rights; it returns when the new configuration is in force, or why it is not.
func Reload(dir, path string) error {
	text, err := ReadConfigFile(path)
	if err != nil {
		return err
	}
	cfg, err := config.Parse(path, text, config.DefaultsFor(os.Geteuid(), os.Getenv))
	if err != nil {
		return err
	}
	tables, err := openTables(cfg)
	if err != nil {
		return err
	}
	defer closeAll(tables)
	s, err := dial(dir)
	if err != nil {
		return err
	}
	defer s.file.Close()
	st, err := s.status()
	if err != nil {
		return err
	}
	if err := st.mustBeOf(path); err != nil {
		return err
	}
	file, err := privsep.SealedFile(text)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if _, err := s.ask(request{Op: "reload"}, file); err != nil {
		return err
	}
	if err := s.bringTables(tables); err != nil {
		return err
	}
	if err := s.bringSockets(cfg, st); err != nil {
		return err
	}
	_, err = s.ask(request{Op: "apply"})
	return err
}

// bringTables passes the files of the configuration's tables.
func (s *session) bringTables(files []int) error {
	if len(files) == 0 {
		return nil
	}
	_, err := s.ask(request{Op: "tables"}, files...)
	return err
}

// bringSockets opens the listeners of cfg that the instance has not, all or
// none, and passes them.
func (s *session) bringSockets(cfg *config.Config, st *Status) error {
	var indexes []int
	var missing []listen.Description
	for i, d := range cfg.Descriptions() {
		if st.find(d, nil) < 0 {
			indexes, missing = append(indexes, i), append(missing, d)
		}
	}
	if len(missing) > 0 && st.GuardState.On {
		if err := privsep.JoinGuard(st.PID); err != nil {
			return fmt.Errorf("bind under the running instance's guard: %w", err)
		}
	}
	fds, _, err := openAll(missing, st.Dir)
	if err != nil {
		return err
	}
	defer closeAll(fds)
	steering, err := steerAll(missing, fds)
	if err != nil {
		return err
	}
	defer closeAll(steering)
	if err := s.bringDiags(fds); err != nil {
		return err
	}
	numbers := indexes
	for len(fds) > 0 {
		n := min(len(fds), fdsPerPacket)
		q := request{Op: "sockets", Indexes: indexes[:n]}
		for _, fd := range fds[:n] {
			q.Namespaces = append(q.Namespaces, listen.Namespace(fd))
		}
		if _, err := s.ask(q, fds[:n]...); err != nil {
			return err
		}
		fds, indexes = fds[n:], indexes[n:]
	}
	for i, d := range missing {
		if !d.Steered() {
			continue
		}
		if _, err := s.ask(request{Op: "steering", Indexes: numbers[i : i+1]}, steering[0]); err != nil {
			return err
		}
		steering = steering[1:]
	}
	return nil
}

// bringDiags opens, in the namespaces of new listeners, what the binder asks the
// kernel about sockets with, and passes it.
func (s *session) bringDiags(listeners []int) error {
	if len(listeners) == 0 {
		return nil
	}
	diags := openDiags(listeners)
	defer closeAll(diags)
	for rest := diags; len(rest) > 0; {
		n := min(len(rest), fdsPerPacket)
		if _, err := s.ask(request{Op: "diags"}, rest[:n]...); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
