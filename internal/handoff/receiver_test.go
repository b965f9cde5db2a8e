package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

var anybody = Options{Group: -1, From: -1}

func listen(t *testing.T, path string, o Options) *Receiver {
	t.Helper()
	r, err := Listen(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func connect(t *testing.T, path string) int {
	t.Helper()
	fd, err := Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// stream returns a connected stream socket; its other end is closed with the
// test.
func stream(t testing.TB) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[1])
	t.Cleanup(func() { unix.Close(fds[0]) })
	return fds[0]
}

// descriptors returns how many descriptors this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestHandOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	r := listen(t, path, anybody)
	defer r.Close()
	if r.Path() != path || !r.Bound() {
		t.Errorf("path %q, bound %v", r.Path(), r.Bound())
	}
	if _, err := r.TryRecv(); err != ErrEmpty {
		t.Errorf("nothing sent: got %v", err)
	}
	sock, fd := connect(t, path), stream(t)
	var want unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		t.Fatal(err)
	}
	for _, recv := range []func() (Conn, error){r.TryRecv, r.Recv, r.TryRecv} { // Recv hands the socket to the poller
		if err := fdpass.Send(sock, goldenHeader.Append(nil), fd); err != nil {
			t.Fatal(err)
		}
		conn, err := recv()
		if err != nil {
			t.Fatal(err)
		}
		var got unix.Stat_t
		if err := unix.Fstat(conn.FD, &got); err != nil || got.Ino != want.Ino || conn.Header != goldenHeader {
			t.Errorf("got %+v, %v", conn, err)
		}
		if flags, _ := unix.FcntlInt(uintptr(conn.FD), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Error("not close-on-exec")
		}
		unix.Close(conn.FD)
	}
}

func TestRightsWhateverTheUmask(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	for _, umask := range []int{0, 0o022, 0o777} {
		for _, mode := range []fs.FileMode{0, 0o600, 0o666} {
			path := filepath.Join(t.TempDir(), "s.sock")
			unix.Umask(umask)
			r, err := Listen(path, Options{Mode: mode, Group: -1, From: -1})
			unix.Umask(0)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(path)
			r.Close()
			want := mode
			if want == 0 {
				want = 0o660
			}
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("umask %03o, mode %04o: got %v, %v", umask, mode, info.Mode(), err)
			}
		}
	}
}

func TestGroup(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatal("only root may give a file any group")
		}
		t.Skip("only root may give a file any group")
	}
	path := filepath.Join(t.TempDir(), "s.sock")
	defer listen(t, path, Options{Group: 54321, From: -1}).Close()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Gid != 54321 || st.Uid != 0 || st.Mode&0o777 != 0o660 {
		t.Errorf("gid %d, uid %d, mode %o, %v", st.Gid, st.Uid, st.Mode, err)
	}
}

func TestStaleIsReplacedLiveIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	r := listen(t, path, anybody)
	if _, err := Listen(path, anybody); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a live one: got %v", err)
	}
	var hint interface{ Hint() string }
	if _, err := Listen(path, anybody); !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "ss ") {
		t.Errorf("no next step in %v", err)
	}
	unix.Close(r.fd) // as if killed: the file stays
	next := listen(t, path, anybody)
	if !next.Bound() {
		t.Error("the new one is not bound")
	}
	next.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWhatIsNoSocketStays(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir} {
		if r, err := Listen(path, anybody); err == nil {
			r.Close()
			t.Errorf("%s: bound", path)
		}
	}
	if text, err := os.ReadFile(file); string(text) != "text" {
		t.Errorf("the file: %q, %v", text, err)
	}
}

func TestCloseLeavesASuccessorAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	r := listen(t, path, anybody)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next := listen(t, path, anybody)
	defer next.Close()
	r.Close()
	if !next.Bound() {
		t.Error("the successor's file was removed")
	}
}

func TestMissingDirectory(t *testing.T) {
	_, err := Listen(filepath.Join(t.TempDir(), "no", "s.sock"), anybody)
	var hint interface{ Hint() string }
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &hint) {
		t.Errorf("got %v", err)
	}
}

// TestOnePathManyReceivers: of those that start at once exactly one gets the
// path, also over a dead socket file.
func TestOnePathManyReceivers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	for round := range 50 {
		var won atomic.Int32
		var all sync.WaitGroup
		receivers := make(chan *Receiver, 8)
		for range 8 {
			all.Go(func() {
				r, err := Listen(path, anybody)
				switch {
				case err == nil:
					won.Add(1)
					receivers <- r
				case !errors.Is(err, unix.EADDRINUSE):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		all.Wait()
		close(receivers)
		if won.Load() != 1 {
			t.Fatalf("round %d: %d receivers have the path", round, won.Load())
		}
		r := <-receivers
		if !r.Bound() {
			t.Fatalf("round %d: the winner is not at the path", round)
		}
		unix.Close(r.fd) // leaves a dead file for the next round
	}
}

func TestLongPaths(t *testing.T) {
	dir := t.TempDir()
	for len(dir) < 150 {
		dir = filepath.Join(dir, strings.Repeat("d", 40))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	r := listen(t, path, anybody)
	defer r.Close()
	if err := fdpass.Send(connect(t, path), []byte{0}, stream(t)); err != nil {
		t.Fatal(err)
	}
	conn, err := r.Recv()
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(conn.FD)
	if _, err := Listen(path, anybody); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a live one: got %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("n", 120)), anybody); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name that is too long itself: got %v", err)
	}
}

func TestBadDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	r := listen(t, path, anybody)
	defer r.Close()
	sock, fd := connect(t, path), stream(t)
	listening, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listening)
	if err := unix.Bind(listening, &unix.SockaddrUnix{Name: filepath.Join(t.TempDir(), "l")}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	bad := []struct {
		name    string
		payload []byte
		fds     []int
	}{
		{"no descriptor", []byte{0}, nil},
		{"empty", nil, nil},
		{"empty with a descriptor", nil, []int{fd}},
		{"two", []byte{0}, []int{fd, fd}},
		{"253", []byte{0}, slicesRepeat(fd, fdpass.MaxFDs)},
		{"a pipe", []byte{0}, []int{pipe[0]}},
		{"a datagram socket", []byte{0}, []int{sock}},
		{"a listening socket", []byte{0}, []int{listening}},
		{"one byte too long", make([]byte, MaxPayload+1), []int{fd}},
		{"very long", make([]byte, 100_000), []int{fd}},
	}
	before := descriptors(t)
	for i, b := range bad {
		if err := fdpass.Send(sock, b.payload, b.fds...); err != nil {
			t.Fatalf("%s: %v", b.name, err)
		}
		if conn, err := r.TryRecv(); !errors.Is(err, ErrBad) {
			t.Errorf("%s: got %+v, %v", b.name, conn, err)
		}
		if r.Bad() != uint64(i+1) {
			t.Errorf("%s: counted %d", b.name, r.Bad())
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	if err := fdpass.Send(sock, bytes.Repeat([]byte{'x'}, MaxPayload), fd); err != nil {
		t.Fatal(err)
	}
	conn, err := r.TryRecv()
	if err != nil {
		t.Fatalf("%d bytes: %v", MaxPayload, err)
	}
	unix.Close(conn.FD)
}

func slicesRepeat(fd, n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = fd
	}
	return all
}

func TestFrom(t *testing.T) {
	for _, from := range []int{os.Getuid(), 54321} {
		path := filepath.Join(t.TempDir(), "s.sock")
		r := listen(t, path, Options{Group: -1, From: from})
		defer r.Close()
		if err := fdpass.Send(connect(t, path), []byte{0}, stream(t)); err != nil {
			t.Fatal(err)
		}
		before := descriptors(t)
		conn, err := r.TryRecv()
		if from == os.Getuid() {
			if err != nil {
				t.Fatalf("from ourselves: %v", err)
			}
			unix.Close(conn.FD)
		} else if !errors.Is(err, ErrBad) || descriptors(t) != before {
			t.Errorf("from another: got %+v, %v", conn, err)
		}
	}
}

// TestShutdownLosesNothing: whatever a sender was told is sent is received,
// although the end comes between any two steps of any sender.
func TestShutdownLosesNothing(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	fd := stream(t)
	for round := range rounds {
		path := filepath.Join(t.TempDir(), "s.sock")
		r := listen(t, path, anybody)
		var sent, refused atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			sock := connect(t, path)
			all.Go(func() {
				for {
					switch err := fdpass.Send(sock, []byte{0}, fd); {
					case err == nil:
						sent.Add(1)
					case errors.Is(err, unix.EAGAIN):
						unix.Poll([]unix.PollFd{{Fd: int32(sock), Events: unix.POLLOUT}}, 1)
					case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTCONN):
						refused.Add(1)
						return
					default:
						t.Errorf("send: %v", err)
						return
					}
				}
			})
		}
		all.Go(func() {
			time.Sleep(time.Duration(round%10) * 100 * time.Microsecond)
			if err := r.Shutdown(); err != nil {
				t.Error(err)
			}
		})
		var received int64
		for {
			conn, err := r.Recv()
			if errors.Is(err, os.ErrClosed) {
				break
			}
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			unix.Close(conn.FD)
			received++
		}
		all.Wait()
		if received != sent.Load() {
			t.Fatalf("round %d: %d sent, %d received", round, sent.Load(), received)
		}
		r.Close()
	}
}

func TestRecvWakesUpForShutdown(t *testing.T) {
	r := listen(t, filepath.Join(t.TempDir(), "s.sock"), anybody)
	defer r.Close()
	result := make(chan error)
	go func() {
		_, err := r.Recv()
		result <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := r.Shutdown(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		if err != os.ErrClosed {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it sleeps on")
	}
}

// inherited returns a receiver of a socket that was bound by somebody else,
// and that one's descriptor.
func inherited(t *testing.T) (r *Receiver, theirs int, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s.sock")
	theirs, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(theirs) })
	if err := unix.Bind(theirs, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = Inherit(fd, anybody); err != nil {
		t.Fatal(err)
	}
	return r, theirs, path
}

func TestInheritedStaysOpenToSenders(t *testing.T) {
	r, theirs, path := inherited(t)
	sock, fd := connect(t, path), stream(t)
	for range 3 {
		if err := fdpass.Send(sock, []byte{0}, fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Shutdown(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		conn, err := r.Recv()
		if err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
		unix.Close(conn.FD)
	}
	if _, err := r.Recv(); err != os.ErrClosed {
		t.Errorf("after the last: %v", err)
	}
	r.Close()
	if err := fdpass.Send(sock, []byte{0}, fd); err != nil {
		t.Errorf("a later sender: %v", err)
	}
	m, err := fdpass.Recv(theirs, make([]byte, 1), 1, unix.MSG_DONTWAIT)
	if err != nil || len(m.FDs) != 1 {
		t.Errorf("it is not in the socket: %+v, %v", m, err)
	}
	m.Close()
}

func TestInheritedRecvWakesUpForShutdown(t *testing.T) {
	r, _, _ := inherited(t)
	defer r.Close()
	result := make(chan error)
	go func() {
		_, err := r.Recv()
		result <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := r.Shutdown(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		if err != os.ErrClosed {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it sleeps on")
	}
}

func TestInheritRefuses(t *testing.T) {
	unbound, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	null, err := unix.Dup(int(file.Fd()))
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	for name, fd := range map[string]int{"unbound": unbound, "TCP": tcp, "file": null} {
		if r, err := Inherit(fd, anybody); err == nil {
			t.Errorf("%s: taken as %s", name, r.Path())
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%s: not closed", name)
		}
	}
}

// FuzzRecv sends any payload with any number of descriptors of any kind: the
// receiver gives out a stream socket or refuses, and nothing stays open.
func FuzzRecv(f *testing.F) {
	dir, err := os.MkdirTemp("", "fuzz")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s.sock")
	var kinds []int
	socket := func(fd int, err error) {
		if err != nil {
			f.Fatal(err)
		}
		kinds = append(kinds, fd)
	}
	stream := stream(f)
	kinds = append(kinds, stream)
	socket(unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	socket(unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	socket(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0))
	socket(unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0))
	socket(unix.EpollCreate1(unix.EPOLL_CLOEXEC))
	r, err := Listen(path, Options{Group: -1, From: os.Getuid()}) // with SO_PASSCRED there is more to parse
	if err != nil {
		f.Fatal(err)
	}
	sock, err := Connect(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0}, []byte{0})
	f.Add([]byte{}, []byte{})
	f.Add(goldenHeader.Append(nil), []byte{2})
	f.Add(make([]byte, 200), []byte{0, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, payload, choice []byte) {
		var fds []int
		for _, c := range choice[:min(len(choice), fdpass.MaxFDs)] {
			fds = append(fds, kinds[int(c)%len(kinds)])
		}
		before := descriptors(t)
		if err := fdpass.Send(sock, payload, fds...); err != nil {
			if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
				return
			}
			t.Fatal(err)
		}
		conn, err := r.TryRecv()
		switch {
		case err == nil:
			var want, got unix.Stat_t
			unix.Fstat(fds[0], &want)
			unix.Fstat(conn.FD, &got)
			if len(fds) != 1 || len(payload) < 1 || len(payload) > MaxPayload || want.Ino != got.Ino {
				t.Errorf("%d descriptors, %d bytes: taken", len(fds), len(payload))
			}
			if kind, _ := unix.GetsockoptInt(conn.FD, unix.SOL_SOCKET, unix.SO_TYPE); kind != unix.SOCK_STREAM {
				t.Errorf("taken although of type %d", kind)
			}
			unix.Close(conn.FD)
		case !errors.Is(err, ErrBad):
			t.Errorf("got %v", err)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
	})
}

func ExampleParseHeader() {
	header, ok := ParseHeader([]byte("sbox\x01\x00\x03web"))
	fmt.Println(header.Listener, ok)
	// Output: web true
}
