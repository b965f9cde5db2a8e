package listen

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPrepare: of a borrower's options those in the table are applied, and no
// others.
func TestPrepare(t *testing.T) {
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(own)
	applied := []struct{ level, opt, value, want int }{
		{unix.SOL_TCP, unix.TCP_NODELAY, 1, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, 77, 77},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, 7, 7},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, 3, 3},
		{unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, 1, 1},
		{unix.SOL_TCP, unix.TCP_FASTOPEN, 9, 9},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, 50000, 100000},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, 60000, 120000},
	}
	for _, o := range applied {
		must(t, unix.SetsockoptInt(own, o.level, o.opt, o.value))
	}
	never := []struct{ level, opt, value int }{
		{unix.SOL_SOCKET, unix.SO_PRIORITY, 3},
		{unix.SOL_IP, unix.IP_TTL, 3},
		{unix.SOL_IP, unix.IP_FREEBIND, 1},
	}
	for _, o := range never {
		must(t, unix.SetsockoptInt(own, o.level, o.opt, o.value))
	}
	must(t, unix.SetsockoptTimeval(own, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}))

	d := parse(t, "127.0.0.1:0")
	fd := open(t, d)
	defer unix.Close(fd)
	must(t, d.Prepare(fd, WishesOf(own, 5)))
	for _, o := range applied {
		if got := getInt(t, fd, o.level, o.opt); got != o.want {
			t.Errorf("option %d/%d is %d, want %d", o.level, o.opt, got, o.want)
		}
	}
	for _, o := range never {
		if got := getInt(t, fd, o.level, o.opt); got == o.value {
			t.Errorf("option %d/%d is %d, as the borrower has it", o.level, o.opt, got)
		}
	}
	if limit, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO); err != nil || *limit != (unix.Timeval{}) {
		t.Errorf("SO_RCVTIMEO is %+v, %v", limit, err)
	}

	must(t, d.Prepare(fd, Wishes{})) // of a borrower who wishes nothing
	for _, o := range applied[:2] {
		if got := getInt(t, fd, o.level, o.opt); got != 0 {
			t.Errorf("option %d/%d stays %d", o.level, o.opt, got)
		}
	}
}

// TestPrepareRevives: a borrower can end the listener that it shares; Prepare
// has it listen again.
func TestPrepareRevives(t *testing.T) {
	d := parse(t, "127.0.0.1:0")
	probe := open(t, d)
	d.Port = portOf(t, probe) // one that the kernel chose it also takes back
	unix.Close(probe)
	fd := open(t, d)
	defer unix.Close(fd)
	port := d.Port
	must(t, unix.Shutdown(fd, unix.SHUT_RDWR))
	if reaches("127.0.0.1", port) {
		t.Fatal("shutdown leaves it listening")
	}
	must(t, d.Prepare(fd, Wishes{}))
	if !reaches("127.0.0.1", port) {
		t.Error("it does not listen again")
	}
}

func TestWishesOfAnything(t *testing.T) {
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if w := WishesOf(pipe[0], 1<<31); w != (Wishes{backlog: 1 << 30}) {
		t.Errorf("a pipe wishes %+v", w)
	}
}

// TestOpenBeside: what is bound beside a loan gets no client as long as the
// loan is there, and every one from then on.
func TestOpenBeside(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::]:0", "udp:127.0.0.1:0"} {
		d := parse(t, address)
		old := open(t, d)
		d.Port = portOf(t, old)
		if fd, err := OpenBeside(d); err == nil {
			unix.Close(fd)
			t.Fatalf("%s: beside a socket that was not lent", d)
		}
		must(t, d.Prepare(old, Wishes{}))
		if fd, err := Open(d); err == nil {
			unix.Close(fd)
			t.Fatalf("%s: opened twice", d)
		}
		beside, err := OpenBeside(d)
		must(t, err)
		for range 30 {
			knock(t, d)
		}
		if n := arrived(t, d, old); n != 30 {
			t.Errorf("%s: %d of 30 came to the loan", d, n)
		}
		unix.Close(old)
		for range 10 {
			knock(t, d)
		}
		if n := arrived(t, d, beside); n != 10 {
			t.Errorf("%s: %d of 10 came to the new socket", d, n)
		}
		unix.Close(beside)
	}
}

// knock is one client: a connection, or a datagram.
func knock(t *testing.T, d Description) {
	t.Helper()
	c, err := net.Dial(d.Network, fmt.Sprintf("127.0.0.1:%d", d.Port))
	must(t, err)
	_, err = c.Write([]byte("x"))
	must(t, err)
	c.Close()
}

// arrived counts what has come to fd, and waits a moment for stragglers.
func arrived(t *testing.T, d Description, fd int) (n int) {
	t.Helper()
	for range 30 {
		for {
			if d.Network == UDP {
				if _, err := unix.Read(fd, make([]byte, 8)); err != nil {
					break
				}
			} else {
				c, _, err := unix.Accept(fd)
				if err != nil {
					break
				}
				unix.Close(c)
			}
			n++
		}
		time.Sleep(time.Millisecond)
	}
	return n
}
