package handoff

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// The golden files are the loan wire; the C tests of the preload library read
// the same.
func TestGoldenLoan(t *testing.T) {
	request, answer := LoanRequest{Backlog: 511}, LoanAnswer{TakeConnections, "a rule names this listener"}
	for name, got := range map[string][]byte{"testdata/loan-request.v1": request.Append(nil), "testdata/loan-answer.v1": answer.Append(nil)} {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: written %q, want %q", name, got, want)
		}
	}
	if got, err := ParseLoanRequest(append(request.Append(nil), "of later versions"...)); err != nil || got != request {
		t.Errorf("request read: %+v, %v", got, err)
	}
	if got, err := ParseLoanAnswer(answer.Append(nil)); err != nil || got != answer {
		t.Errorf("answer read: %+v, %v", got, err)
	}
}

func TestWhatIsNoLoanRequest(t *testing.T) {
	sound := string(LoanRequest{Backlog: 1}.Append(nil))
	for _, packet := range []string{
		"", "S", sound[:11], "sbxl" + sound[4:], "SBXL\x02" + sound[5:], sound[:6] + "\x01" + sound[7:], sound + strings.Repeat("x", 117),
	} {
		if q, err := ParseLoanRequest([]byte(packet)); err == nil {
			t.Errorf("%q is read as %+v", packet, q)
		}
	}
}

func TestLoanReasons(t *testing.T) {
	long := LoanAnswer{Denied, strings.Repeat("x", MaxLoanReason-1) + "é"}
	got, err := ParseLoanAnswer(long.Append(nil))
	if err != nil || got.Reason != strings.Repeat("x", MaxLoanReason-1) {
		t.Errorf("a long reason: %+v, %v", got, err)
	}
	got, err = ParseLoanAnswer(append(LoanAnswer{Verdict: 77}.Append(nil), "\x1b[2J\xff ok"...))
	if err != nil || got != (LoanAnswer{Failed, "?[2J? ok"}) {
		t.Errorf("a hostile reason: %+v, %v", got, err)
	}
}

// FuzzLoanRequest: what parses is written again as the same bytes, but for
// flags and what is reserved at its end.
func FuzzLoanRequest(f *testing.F) {
	f.Add(LoanRequest{Backlog: 511}.Append(nil))
	f.Add([]byte("SBXL\x01\x07\x00\x00\x01\x02\x03\x04more"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		q, err := ParseLoanRequest(packet)
		if err != nil {
			return
		}
		again := q.Append(nil)
		again[5] = packet[5]
		if !bytes.HasPrefix(packet, again) {
			t.Errorf("%q is written as %q", packet, again)
		}
	})
}

// FuzzLoanAnswer: whatever comes, the reason is fit for a terminal.
func FuzzLoanAnswer(f *testing.F) {
	f.Add(LoanAnswer{Denied, "no"}.Append(nil))
	f.Fuzz(func(t *testing.T, packet []byte) {
		a, err := ParseLoanAnswer(packet)
		if err == nil && (a.Verdict > Failed || !utf8.ValidString(a.Reason) || strings.ContainsAny(a.Reason, "\x00\x1b\n\u202e")) {
			t.Errorf("%q is read as %+v", packet, a)
		}
	})
}

// lender answers each request at the returned path with answer and fd, after
// it has looked at the request.
func lender(t *testing.T, answer func(q LoanRequest, own int) (packet []byte, fds []int)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "80.listener")
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Bind(l, &unix.SockaddrUnix{Name: path}), unix.Listen(l, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { unix.Shutdown(l, unix.SHUT_RDWR); <-done; unix.Close(l) })
	go func() {
		defer close(done)
		for {
			conn, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			unix.Poll([]unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}}, 5000)
			q, own, err := RecvLoanRequest(conn)
			if err != nil {
				t.Errorf("request: %v", err)
			} else {
				packet, fds := answer(q, own)
				if packet != nil {
					fdpass.Send(conn, packet, fds...)
				}
				CloseShown(own)
			}
			unix.Close(conn)
		}
	}()
	return path
}

func newSocket(t *testing.T, domain, kind, protocol int) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func newListener(t *testing.T) int {
	t.Helper()
	fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestBorrow(t *testing.T) {
	lent, own := newListener(t), newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	path := lender(t, func(q LoanRequest, shown int) ([]byte, []int) {
		if f, err := FormOf(shown); q.Backlog != 7 || err != nil || f.String() != "IPv4 TCP" {
			t.Errorf("asked for %+v with a socket of %s, %v", q, f, err)
		}
		return LoanAnswer{Verdict: Lent}.Append(nil), []int{lent}
	})
	fd, err := Borrow(path, own, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	a, _ := unix.Getsockname(lent)
	b, _ := unix.Getsockname(fd)
	if a.(*unix.SockaddrInet4).Port != b.(*unix.SockaddrInet4).Port || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("borrowed %+v with flags %d, lent was %+v", b, flags, a)
	}
}

// TestBorrowRefuses: every verdict but Lent is a LoanError, and what a lender
// may not answer is an error that leaves no descriptor behind.
func TestBorrowRefuses(t *testing.T) {
	lent, unready := newListener(t), newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	other, own := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0), newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer closeEach(pipe)
	yes := LoanAnswer{Verdict: Lent}.Append(nil)
	for name, c := range map[string]struct {
		packet  []byte
		fds     []int
		verdict Verdict
		text    string
	}{
		"connections":  {LoanAnswer{TakeConnections, "why"}.Append(nil), nil, TakeConnections, "why"},
		"denied":       {LoanAnswer{Denied, "why"}.Append(nil), []int{lent}, Denied, "why"},
		"failed":       {LoanAnswer{Failed, "why"}.Append(nil), nil, Failed, "why"},
		"no answer":    {nil, nil, 0, "ended the conversation"},
		"no socket":    {yes, nil, 0, "no socket"},
		"two sockets":  {yes, []int{lent, lent}, 0, "truncated"},
		"other form":   {yes, []int{other}, 0, "IPv4 UDP"},
		"no listener":  {yes, []int{unready}, 0, "does not listen"},
		"no socket fd": {yes, pipe[:1], 0, "socket operation on non-socket"},
		"other magic":  {[]byte("sbox\x01\x00\x00\x00"), []int{lent}, 0, "not a message of the loan wire"},
	} {
		path := lender(t, func(LoanRequest, int) ([]byte, []int) { return c.packet, c.fds })
		before := descriptors(t)
		fd, err := Borrow(path, own, 0)
		var refused *LoanError
		isRefusal := errors.As(err, &refused)
		switch {
		case err == nil:
			unix.Close(fd)
			t.Errorf("%s: no error", name)
		case isRefusal != (c.verdict != 0) || isRefusal && refused.Verdict != c.verdict || !strings.Contains(err.Error(), c.text):
			t.Errorf("%s: %v", name, err)
		}
		settled(t, name, before)
	}
}

// settled waits for the lender's side to close its copies.
func settled(t *testing.T, what string, before int) {
	t.Helper()
	for range 200 {
		if descriptors(t) <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s: %d descriptors before, %d after", what, before, descriptors(t))
}

func closeEach(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func TestBorrowFromNobody(t *testing.T) {
	own := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	path := filepath.Join(t.TempDir(), "80.listener")
	if _, err := Borrow(path, own, 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no file: %v", err)
	}
	s := newSocket(t, unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err := unix.Bind(s, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if _, err := Borrow(path, own, 0); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a dead file: %v", err)
	}
}

// TestBadLoanRequests: whatever a borrower sends, nothing of it stays open.
func TestBadLoanRequests(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeEach(pair[:])
	own, sound := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0), LoanRequest{}.Append(nil)
	before := descriptors(t)
	for name, c := range map[string]struct {
		packet []byte
		fds    []int
	}{
		"no socket":   {sound, nil},
		"two sockets": {sound, []int{own, own}},
		"short":       {sound[:9], []int{own}},
		"too long":    {append(sound, make([]byte, 117)...), []int{own}},
		"other":       {[]byte("hello, lender"), []int{own}},
	} {
		if err := fdpass.Send(pair[0], c.packet, c.fds...); err != nil {
			t.Fatal(err)
		}
		if q, fd, err := RecvLoanRequest(pair[1]); err == nil || fd != -1 {
			t.Errorf("%s: %+v, descriptor %d", name, q, fd)
		}
	}
	if _, _, err := RecvLoanRequest(pair[1]); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing there: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
