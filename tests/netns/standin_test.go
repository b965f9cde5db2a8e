package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// receiver takes hand-offs one after another and answers each client with its
// name and the client's address as the kernel tells it.
type receiver struct {
	Path  string
	Name  string        // "": the last component of Path
	Take  time.Duration // per connection
	First time.Duration // more for the first one
	Group int           // of the socket file; 0: the directory decides

	wire  *handoff.Receiver
	count atomic.Int64
	done  chan struct{}
	err   error
}

// open binds the receiver's path.
func (r *receiver) open() (err error) {
	if r.Name == "" {
		r.Name = filepath.Base(r.Path)
	}
	group := r.Group
	if group == 0 {
		group = -1
	}
	r.wire, err = handoff.Listen(r.Path, handoff.Options{Group: group, From: -1})
	return err
}

// openApart is open in a network namespace of its own, which only the socket
// lives in: net.unix.max_dgram_qlen is 10 there, whatever it is here.
func (r *receiver) openApart() error {
	return elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, r.open)
}

// elsewhere runs do in the network namespace that enter goes to. The thread
// comes back: if it ended, so would the programs that were started from it
// (PR_SET_PDEATHSIG, see start).
func elsewhere(enter, do func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	if err = enter(); err == nil {
		err = do()
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		panic(back)
	}
	runtime.UnlockOSThread()
	return err
}

// serve answers until Shutdown and until what is queued is served.
func (r *receiver) serve() error {
	for {
		conn, err := r.wire.Recv()
		switch {
		case errors.Is(err, handoff.ErrBad):
			continue
		case errors.Is(err, os.ErrClosed):
			return r.wire.Close()
		case err != nil:
			return err
		}
		if r.count.Add(1) == 1 {
			time.Sleep(r.First)
		}
		time.Sleep(r.Take)
		answer(conn.FD, r.Name)
	}
}

// answer writes name and peer to a passed connection and closes it.
func answer(fd int, name string) {
	defer unix.Close(fd)
	line := []byte(name + " " + peerOf(fd) + "\n")
	for len(line) > 0 {
		n, err := unix.Write(fd, line)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return // the client is gone
		}
		line = line[n:]
	}
}

func peerOf(fd int) string {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return err.Error()
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)).String()
	}
	return "unix"
}

// runReceiver starts r in this process; it ends with the test.
func runReceiver(t *testing.T, r *receiver) *receiver {
	t.Helper()
	if err := r.openApart(); err != nil {
		t.Fatal(err)
	}
	r.run()
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *receiver) run() {
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		r.err = r.serve()
	}()
}

// stop ends r as TERM ends a receiver: intake first, then the queue.
func (r *receiver) stop(t *testing.T) {
	t.Helper()
	select {
	case <-r.done:
		return
	default:
	}
	if err := r.wire.Shutdown(); err != nil {
		t.Errorf("%s: %v", r.Path, err)
	}
	select {
	case <-r.done:
		if r.err != nil {
			t.Errorf("%s: %v", r.Path, r.err)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("%s: does not end", r.Path)
	}
}

// stuckReceiver binds path and takes nothing until release.
func stuckReceiver(t *testing.T, path string) (release func()) {
	t.Helper()
	r := &receiver{Path: path, Name: "stuck"}
	if err := r.openApart(); err != nil {
		t.Fatal(err)
	}
	released := false
	release = func() {
		if !released {
			released = true
			r.run()
		}
	}
	t.Cleanup(func() { release(); r.stop(t) })
	return release
}

// Stand-ins that need a process of their own are this test binary, told by an
// environment variable what to be.
const standinMark = "SOCKETBOX_TEST_STANDIN"

// standin is what such a process does.
type standin struct {
	Act      string    // "receive", "hog" or "intrude"
	Receiver *receiver `json:",omitempty"`
	Count    int       // of a hog's descriptors
	Dir      string    // where to intrude
}

func init() {
	text := os.Getenv(standinMark)
	if text == "" {
		return
	}
	os.Unsetenv(standinMark)
	var s standin
	err := json.Unmarshal([]byte(text), &s)
	if err == nil {
		err = s.act()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (s *standin) act() error {
	switch s.Act {
	case "receive":
		return s.receive()
	case "hog":
		return s.hog()
	case "intrude":
		return s.intrude()
	}
	return fmt.Errorf("unknown act %q", s.Act)
}

// receive is a receiver that TERM ends in good order.
func (s *standin) receive() error {
	depth, err := queueDepth()
	if err != nil {
		return err
	}
	r := s.Receiver
	if err := r.open(); err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	go func() {
		<-term
		r.wire.Shutdown()
	}()
	fmt.Printf("receiving, queue of %d\n", depth)
	if err := r.serve(); err != nil {
		return err
	}
	fmt.Printf("answered %d\n", r.count.Load())
	return nil
}

// queueDepth counts how many datagrams a Unix socket of this namespace holds:
// one more than net.unix.max_dgram_qlen. (Root of a user namespace does not
// see that file.)
func queueDepth() (int, error) {
	const kind = unix.SOCK_DGRAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	taker, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(taker)
	if err := unix.Bind(taker, &unix.SockaddrUnix{}); err != nil {
		return 0, err
	}
	address, err := unix.Getsockname(taker)
	if err != nil {
		return 0, err
	}
	giver, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(giver)
	for n := range 10_000 {
		if err := unix.Sendto(giver, []byte{0}, 0, address); err != nil {
			return n, nil
		}
	}
	return 0, errors.New("a queue without a bound")
}

// hog keeps Count descriptors in flight until it is killed.
func (s *standin) hog() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fds := make([]int, 250) // all of them stdin
	for sent := 0; sent < s.Count; sent += len(fds) {
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT); err != nil {
			return err
		}
	}
	fmt.Println("in flight")
	select {}
}

// standinCommand returns the command that runs s in ns, as the ordinary user
// uid unless that is 0.
func standinCommand(t *testing.T, ns namespace, uid int, s standin) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if uid != 0 {
		self = publicCopy(t, self)
	}
	cmd := ns.command(asUser(uid, self)...)
	cmd.Env = append(os.Environ(), standinMark+"="+string(text))
	return cmd
}

// startReceiver runs r as a process in ns and waits until it receives.
func startReceiver(t *testing.T, ns namespace, uid int, r *receiver) *process {
	t.Helper()
	p := start(t, standinCommand(t, ns, uid, standin{Act: "receive", Receiver: r}))
	p.waitLog("receiving")
	return p
}

// asUser is the command line args as user and group uid; 0: as it is.
func asUser(uid int, args ...string) []string {
	if uid == 0 {
		return args
	}
	id := fmt.Sprint(uid)
	return append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--"}, args...)
}

// publicCopy returns a copy of a program that every user may execute.
func publicCopy(t *testing.T, program string) string {
	t.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(publicDir(t), filepath.Base(program))
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// publicDir is an empty directory that every user may enter and list.
func publicDir(t *testing.T) string {
	t.Helper()
	return filepath.Dir(socketDir(t))
}

// deadSocket leaves a socket file at path that nobody receives on.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// groupOf is the group of a file.
func groupOf(t *testing.T, path string) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Gid)
}

// bindConfig starts `socketbox bind` with a configuration file, which stands
// beside the main socket directory and may be read by all. DIR in text is
// that directory.
func bindConfig(t *testing.T, text string, args ...string) *box {
	t.Helper()
	return bindConfigIn(t, here(), socketDir(t), text, args...)
}

func bindConfigIn(t *testing.T, ns namespace, dir, text string, args ...string) *box {
	t.Helper()
	return bindIn(t, ns, dir, append([]string{"--config", putConfig(t, dir, text)}, args...)...)
}

// putConfig writes the configuration file of the main socket directory dir.
func putConfig(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(dir), "socketbox.toml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// listenerFor is a listener on 127.0.0.1 with the name "in".
func listenerFor(port int) string {
	return fmt.Sprintf("[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:%d\"\n", port)
}

// balance waits until nothing is on hold any more and fails the test unless
// each of n accepted connections was delivered, rejected or failed.
func (b *box) balance(n int) {
	b.t.Helper()
	eventually(b.t, 5*time.Second, func() error {
		c := b.status().Total
		if int(c.Accepted) != n || c.Waiting != 0 || c.Delivered+c.Rejected+c.Failed != c.Accepted {
			return fmt.Errorf("%d connections, and the counters say %+v", n, c)
		}
		return nil
	})
}

// waiting waits until n connections are on hold.
func (b *box) waiting(n int) {
	b.t.Helper()
	eventually(b.t, 10*time.Second, func() error {
		if c := b.status().Total; int(c.Waiting) != n {
			return fmt.Errorf("%d should wait: %+v", n, c)
		}
		return nil
	})
}

// gone waits until process pid has ended.
func gone(t *testing.T, pid int, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() error {
		if processState(pid) == 0 {
			return nil
		}
		return fmt.Errorf("process %d is still there", pid)
	})
}

// processState is the letter of proc(5), 0 for a process that has ended,
// whether or not somebody has waited for it.
func processState(pid int) byte {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), ") ")
	if after == "" || after[0] == 'Z' || after[0] == 'X' {
		return 0
	}
	return after[0]
}

// kill9 kills a process that a test has started.
func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill %d: %v", pid, err)
	}
}

// inNamespace runs a client in ns, a namespace with a name.
func inNamespace(ns namespace, c client) visit {
	c.in = ns.name
	return c.visit()
}

// inside runs do in the namespace of that name.
func inside(name string, do func() error) error {
	return elsewhere(func() error {
		fd, err := unix.Open("/run/netns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Setns(fd, unix.CLONE_NEWNET)
	}, do)
}

// portRange returns the first of n free ports in a row.
func portRange(t *testing.T, n int) int {
	t.Helper()
	for range 1000 {
		first, free := freePort(t), true
		for i := range n {
			free = free && first+i < 65536 && isFree(first+i)
		}
		if free {
			return first
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

// isFree reports whether nobody listens on a port of either family.
func isFree(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
	if err == nil {
		l.Close()
	}
	return err == nil
}
