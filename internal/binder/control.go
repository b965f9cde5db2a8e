package binder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/privsep"
)

// The control socket is SOCK_SEQPACKET. Each packet is a small JSON object
// and descriptors; whatever may be large (a configuration, a status) goes in
// a sealed memory file.

const (
	maxControlPacket  = 4096
	maxControlClients = 16
	maxStatus         = 64 << 20
	// fdsPerPacket leaves room below SCM_MAX_FD.
	fdsPerPacket = 200
	// controlTime bounds how long a client may keep a connection.
	controlTime = 2 * time.Minute
)

// request is what a command asks of the binder.
type request struct {
	// Op is "status"; "sessions"; "diag", with a namespace; "explain", with a
	// question; "trace", with a filter; "reload", which "tables", "diags" and
	// "sockets" may follow and "apply" ends;
	// "takeover", which "yield" follows, and "farewell" after its answers.
	Op       string       `json:"op"`
	Question *Question    `json:"question,omitempty"`
	Trace    *TraceFilter `json:"trace,omitempty"`
	// Indexes says which listeners of the new configuration the descriptors
	// of a "sockets" packet are.
	Indexes []int `json:"indexes,omitempty"`
	// Namespaces are the inodes of their network namespaces, which the binder
	// may not look up; of "diag" it is a cookie.
	Namespaces []uint64 `json:"namespaces,omitempty"`
}

// brought is a listening socket that a reload brings.
type brought struct {
	fd        int
	namespace uint64 // inode; 0: unknown
	steering  int    // what brings it connections (steer.go); -1: none
}

func (in brought) close() {
	unix.Close(in.fd)
	if in.steering >= 0 {
		unix.Close(in.steering)
	}
}

// at returns list[i], zero where there is no such item.
func at[T any](list []T, i int) T {
	if i < len(list) {
		return list[i]
	}
	var zero T
	return zero
}

// reply answers a request; a status comes in the descriptor.
type reply struct {
	Error string   `json:"error,omitempty"`
	Hints []string `json:"hints,omitempty"`
}

// client is one connection to the control socket, on the binder's side.
type client struct {
	b      *binder
	file   *os.File
	raw    syscall.RawConn
	cred   *unix.Ucred
	text   []byte          // of a reload that has begun
	opened map[int]brought // listeners that came with it
	tables []int           // and the files of its tables
}

// serveControl accepts commands until the process ends.
func (b *binder) serveControl() error {
	if err := unix.SetNonblock(b.control, true); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	file := os.NewFile(uintptr(b.control), "control socket")
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	go func() {
		slots := make(chan struct{}, maxControlClients)
		for {
			slots <- struct{}{}
			fd, err := acceptControl(raw)
			if err != nil {
				b.log.Warn("control socket: accept", "reason", err)
				time.Sleep(100 * time.Millisecond)
				<-slots
				continue
			}
			go func() {
				b.serveClient(fd)
				<-slots
			}()
		}
	}()
	return nil
}

func acceptControl(raw syscall.RawConn) (fd int, err error) {
	waitErr := raw.Read(func(s uintptr) bool {
		fd, _, err = unix.Accept4(int(s), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return !errors.Is(err, unix.EAGAIN)
	})
	return fd, errors.Join(waitErr, err)
}

// serveClient talks to one command; it owns fd. What the command sends is not
// trusted beyond what its uid allows.
func (b *binder) serveClient(fd int) {
	file := os.NewFile(uintptr(fd), "control client")
	defer file.Close()
	file.SetDeadline(time.Now().Add(controlTime))
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	c := &client{b: b, file: file, raw: raw, cred: cred, opened: map[int]brought{}}
	defer c.discard()
	for c.serveRequest() {
	}
}

func (c *client) discard() {
	for _, in := range c.opened {
		in.close()
	}
	closeAll(c.tables)
	c.opened, c.tables = map[int]brought{}, nil
}

// serveRequest reads and answers one request. It returns false when the
// conversation is over.
func (c *client) serveRequest() bool {
	buf := make([]byte, maxControlPacket)
	m, err := receivePacket(c.raw, buf, fdsPerPacket)
	if err != nil || m.N == 0 {
		return false
	}
	var q request
	if err := json.Unmarshal(buf[:m.N], &q); err != nil {
		m.Close()
		c.answer(fmt.Errorf("request is not understood: %w", err), nil)
		return false
	}
	if !asks[q.Op] && !c.mayChange() {
		m.Close()
		c.answer(withHint(fmt.Errorf("uid %d may not change this instance: %w", c.cred.Uid, unix.EPERM), "run the command as root"), nil)
		return false
	}
	switch q.Op {
	case "status":
		m.Close()
		return c.show(func() (any, error) { return c.b.status(), nil })
	case "trace":
		m.Close()
		if q.Trace == nil {
			q.Trace = &TraceFilter{}
		}
		return c.trace(*q.Trace)
	case "explain":
		m.Close()
		if q.Question == nil {
			return c.answer(errors.New("explain without a question"), nil)
		}
		return c.show(func() (any, error) { return c.b.explain(*q.Question) })
	case "reload":
		return c.takeText(m)
	case "tables":
		return c.takeTables(m)
	case "sockets":
		return c.takeSockets(q, m)
	case "steering":
		return c.takeSteering(q, m)
	case "sessions":
		m.Close()
		return c.sessions()
	case "diag":
		m.Close()
		return c.lendDiag(at(q.Namespaces, 0))
	case "diags":
		return c.takeDiags(m)
	case "apply":
		m.Close()
		return c.apply()
	case "takeover":
		m.Close()
		return c.bequeath()
	case "yield":
		m.Close()
		return c.yield()
	}
	m.Close()
	c.answer(fmt.Errorf("request %q is unknown to this version", q.Op), nil)
	return false
}

// asks are the requests that change nothing: whoever may connect may make them.
var asks = map[string]bool{"status": true, "sessions": true, "explain": true, "trace": true}

// mayChange: uid 0, or the one user of an instance that was not started by
// root. The binder's own uid is not enough: the dispatcher has it too.
func (c *client) mayChange() bool {
	return c.cred.Uid == 0 || c.b.h.Owner != 0 && int(c.cred.Uid) == c.b.h.Owner
}

// show answers with what look returns, as JSON in a sealed memory file. look
// runs in the binder's own goroutine.
func (c *client) show(look func() (any, error)) bool {
	type result struct {
		text []byte
		err  error
	}
	results := make(chan result, 1)
	c.b.calls <- func() {
		v, err := look()
		var text []byte
		if err == nil {
			text, err = json.Marshal(v)
		}
		results <- result{text, err}
	}
	r := <-results
	if r.err != nil {
		return c.answer(r.err, nil)
	}
	fd, err := privsep.SealedFile(r.text)
	if err != nil {
		return c.answer(err, nil)
	}
	defer unix.Close(fd)
	return c.answer(nil, []int{fd})
}

func (c *client) takeText(m fdpass.Message) bool {
	defer m.Close()
	if len(m.FDs) != 1 {
		c.answer(errors.New("a reload brings one file"), nil)
		return false
	}
	text, err := readSealed(m.FDs[0], maxConfig)
	if err != nil {
		c.answer(fmt.Errorf("configuration: %w", err), nil)
		return false
	}
	c.text = text
	return c.answer(nil, nil)
}

// takeSockets keeps listening sockets for the reload that has begun.
func (c *client) takeSockets(q request, m fdpass.Message) bool {
	if len(q.Indexes) != len(m.FDs) || c.text == nil {
		m.Close()
		c.answer(errors.New("sockets without a reload, or without their numbers"), nil)
		return false
	}
	for i, fd := range m.FDs {
		if old, twice := c.opened[q.Indexes[i]]; twice {
			old.close()
		}
		c.opened[q.Indexes[i]] = brought{fd, at(q.Namespaces, i), -1}
	}
	return c.answer(nil, nil)
}

// takeSteering keeps what brings connections to a listener that has come.
func (c *client) takeSteering(q request, m fdpass.Message) bool {
	in, ok := c.opened[at(q.Indexes, 0)]
	if len(q.Indexes) != 1 || len(m.FDs) != 1 || !ok || in.steering >= 0 {
		m.Close()
		return c.answer(errors.New("no listener for what brings it connections"), nil)
	}
	in.steering = m.FDs[0]
	c.opened[q.Indexes[0]] = in
	return c.answer(nil, nil)
}

// takeTables keeps the files of tables, in the order of the configuration, for
// the reload that has begun.
func (c *client) takeTables(m fdpass.Message) bool {
	if c.text == nil || len(c.tables) > 0 {
		m.Close()
		c.answer(errors.New("tables without a reload, or twice"), nil)
		return false
	}
	c.tables = m.FDs
	return c.answer(nil, nil)
}

// takeDiags takes the sock_diag sockets of namespaces that the binder can't enter.
func (c *client) takeDiags(m fdpass.Message) bool {
	for _, fd := range m.FDs {
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_NETLINK {
			m.Close()
			return c.answer(errors.New("no sock_diag socket"), nil)
		}
	}
	result := make(chan error, 1)
	c.b.calls <- func() { result <- c.b.takeDiags(m.FDs) }
	return c.answer(<-result, nil)
}

func (c *client) apply() bool {
	if c.text == nil {
		c.answer(errors.New("apply without a reload"), nil)
		return false
	}
	result := make(chan error, 1)
	text, opened, tables := c.text, c.opened, c.tables
	c.text, c.opened, c.tables = nil, map[int]brought{}, nil
	c.b.calls <- func() { c.b.notify("RELOADING=1", monotonic()) }
	next, err := c.b.receiveConfig(text, opened, tables)
	c.b.calls <- func() {
		c.b.beginReload(next, err, func(err error) {
			if err != nil {
				c.b.log.Error("reload failed, the old configuration stays in force", "reason", err)
			}
			result <- err
		})
	}
	c.answer(<-result, nil)
	return false
}

func (c *client) answer(err error, fds []int) bool {
	var r reply
	if err != nil {
		r.Error = err.Error()
		r.Hints = hintsOf(err)
		const most = maxControlPacket - 1024
		if len(r.Error) > most {
			r.Error = r.Error[:most] + " …"
		}
	}
	return sendPacket(c.raw, r, fds) == nil
}

// hintsOf collects the hints in an error's tree.
func hintsOf(err error) []string {
	var hints []string
	if h, ok := err.(interface{ Hint() string }); ok && h.Hint() != "" {
		hints = append(hints, h.Hint())
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		if inner := u.Unwrap(); inner != nil {
			hints = append(hints, hintsOf(inner)...)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range u.Unwrap() {
			hints = append(hints, hintsOf(inner)...)
		}
	}
	return hints
}

// readSealed reads a memory file that its sender can't change meanwhile.
func readSealed(fd, limit int) ([]byte, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&(unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK) != unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK {
		return nil, errors.New("the file is not a sealed memory file")
	}
	return privsep.ReadFile(fd, limit)
}

func sendPacket(raw syscall.RawConn, v any, fds []int) error {
	packet, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var sendErr error
	waitErr := raw.Write(func(fd uintptr) bool {
		sendErr = fdpass.Send(int(fd), packet, fds...)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	return errors.Join(waitErr, sendErr)
}

func receivePacket(raw syscall.RawConn, buf []byte, maxFDs int) (m fdpass.Message, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		m, err = fdpass.Recv(int(fd), buf, maxFDs, unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	if waitErr != nil {
		return m, waitErr
	}
	return m, err
}

// dialControl connects to a control socket; the caller owns the descriptor.
func dialControl(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to the control socket %s: %w", path, err)
	}
	return fd, nil
}
