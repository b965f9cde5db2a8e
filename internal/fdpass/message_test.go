package fdpass

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T, kind int) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func repeat(fd, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	return fds
}

func TestMessages(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	tests := []struct {
		name      string
		sent      string
		fds       int
		max       int
		truncated bool
	}{
		{"payload alone", "hello", 0, 0, false},
		{"one", "x", 1, 1, false},
		{"several", "x", 5, 5, false},
		{"as many as can be", "x", MaxFDs, MaxFDs, false},
		{"none expected", "x", 1, 0, true},
		{"one too many", "x", 2, 1, true},
		{"far too many", "x", MaxFDs, 1, true},
		{"payload fills the buffer", "12345678", 1, 1, false},
		{"payload is too long", "123456789", 1, 1, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := descriptors(t)
			if err := Send(a, []byte(tt.sent), repeat(b, tt.fds)...); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 8)
			m, err := Recv(b, buf, tt.max, unix.MSG_DONTWAIT)
			if tt.truncated {
				if !errors.Is(err, ErrTruncated) || len(m.FDs) > 0 {
					t.Errorf("got %+v, %v", m, err)
				}
			} else if err != nil || string(buf[:m.N]) != tt.sent || len(m.FDs) != tt.fds || m.Cred != nil {
				t.Errorf("got %+v, %v", m, err)
			}
			for _, fd := range m.FDs {
				if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
				}
			}
			m.Close()
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	a, b := pair(t, unix.SOCK_DGRAM)
	if err := unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, MaxFDs} {
		if err := Send(a, []byte("x"), repeat(a, n)...); err != nil {
			t.Fatal(err)
		}
		m, err := Recv(b, make([]byte, 1), n, unix.MSG_DONTWAIT)
		if err != nil || m.Cred == nil || int(m.Cred.Uid) != os.Getuid() || int(m.Cred.Pid) != os.Getpid() || len(m.FDs) != n {
			t.Errorf("with %d descriptors: got %+v, %v", n, m, err)
		}
		m.Close()
	}
}

func TestErrorsOfTheSocket(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	if _, err := Recv(b, make([]byte, 1), 1, unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing there: got %v", err)
	}
	for err := error(nil); ; err = Send(a, []byte("x"), a) {
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ETOOMANYREFS) {
				t.Errorf("full: got %v", err)
			}
			break
		}
	}
	c, d := pair(t, unix.SOCK_SEQPACKET)
	unix.Shutdown(d, unix.SHUT_RDWR)
	if err := Send(c, []byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("ended: got %v", err)
	}
	if m, err := Recv(c, make([]byte, 1), 1, unix.MSG_DONTWAIT); err != nil || m.N != 0 || len(m.FDs) != 0 {
		t.Errorf("ended: received %+v, %v", m, err)
	}
}

func TestPacket(t *testing.T) {
	a, b := pair(t, unix.SOCK_DGRAM)
	payload := []byte("payload")
	p := NewPacket(payload)
	payload[0] = 'X' // it has a copy
	for _, fd := range []int{a, b} {
		if errno := p.Send(a, fd); errno != 0 {
			t.Fatal(errno)
		}
		buf := make([]byte, 16)
		m, err := Recv(b, buf, 1, unix.MSG_DONTWAIT)
		if err != nil || string(buf[:m.N]) != "payload" || len(m.FDs) != 1 {
			t.Fatalf("got %+v, %v", m, err)
		}
		var want, got unix.Stat_t
		unix.Fstat(fd, &want)
		unix.Fstat(m.FDs[0], &got)
		if want.Ino != got.Ino {
			t.Error("another socket came")
		}
		m.Close()
	}
	if errno := p.Send(a, -1); errno != unix.EBADF {
		t.Errorf("no descriptor: %v", errno)
	}
	for errno := unix.Errno(0); errno != unix.EAGAIN; errno = p.Send(a, a) {
		if errno != 0 {
			t.Fatalf("full: %v", errno)
		}
	}
	if n := testing.AllocsPerRun(100, func() { p.Send(a, a) }); n != 0 {
		t.Errorf("a send allocates %v times", n)
	}
}
