package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/privsep"
)

// lender is a process of the test binary that makes sockets as a binder's
// privileged stage does, and passes them to the test.
type lender struct {
	Guard bool
	Make  []lent
}

// lent is one socket: on all addresses of one family or, for IPv6, of both.
type lent struct{ Family, Type, Port int }

const lenderVariable = "SOCKETBOX_TEST_LENDER"

// lend runs a lender until the test ends. The test owns the sockets.
func (l *lender) lend(t *testing.T) (p *process, sockets []*os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "lender")
	defer theirs.Close()
	defer unix.Close(pair[0])
	text, _ := json.Marshal(l)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), lenderVariable+"="+string(text))
	cmd.ExtraFiles = []*os.File{theirs}
	p = start(t, cmd)
	theirs.Close()
	m, err := fdpass.Recv(pair[0], make([]byte, 16), len(l.Make), 0)
	if err != nil || len(m.FDs) != len(l.Make) {
		t.Fatalf("sockets of the lender: %v, %v\n%s", m.FDs, err, p.log)
	}
	for _, fd := range m.FDs {
		f := os.NewFile(uintptr(fd), "lent")
		sockets = append(sockets, f)
		t.Cleanup(func() { f.Close() })
	}
	return p, sockets
}

// runLender is what the lender's process does.
func runLender(text string) error {
	l := &lender{}
	if err := json.Unmarshal([]byte(text), l); err != nil {
		return err
	}
	if l.Guard {
		if _, err := privsep.EnterGuard(0, 0); err != nil {
			return err
		}
	}
	var fds []int
	for _, m := range l.Make {
		fd, err := m.open()
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	if err := fdpass.Send(3, []byte("lent"), fds...); err != nil {
		return err
	}
	select {} // until the test ends it
}

func (m lent) open() (int, error) {
	fd, err := unix.Socket(m.Family, m.Type|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var all unix.Sockaddr = &unix.SockaddrInet4{Port: m.Port}
	if m.Family == unix.AF_INET6 {
		all = &unix.SockaddrInet6{Port: m.Port}
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, all))
	if err == nil && m.Type == unix.SOCK_STREAM {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		return -1, fmt.Errorf("lend port %d: %w", m.Port, err)
	}
	return fd, nil
}
