package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"
)

// What is under test gets this long to serve its first client.
const startPatience = 10 * time.Second

// Ports are taken from here: above those of services and below the range from
// which the kernel takes a client's (ip_local_port_range).
const firstPort, lastPort = 20000, 31999

// server is one variant, running: the processes that serve a port and which
// of them the figures are of.
type server struct {
	port      int
	request   string // what a client has to say first, if anything
	dir       string // main socket directory of its binder
	processes []*process
	measured  []int          // pids whose CPU is counted
	extra     []int          // pids whose CPU is shown apart
	resident  map[string]int // pids whose memory is shown, by role
}

// add starts one more process of the server.
func (s *server) add(b *bench, program string, args ...string) (*process, error) {
	p, err := b.start(program, args...)
	if err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	return p, nil
}

// stop ends the processes, the last started first.
func (s *server) stop() {
	for i := len(s.processes) - 1; i >= 0; i-- {
		s.processes[i].stop()
	}
}

// alive fails if a process of the server has ended.
func (s *server) alive() error {
	for _, p := range s.processes {
		if p.hasEnded() {
			return p.failure()
		}
	}
	return nil
}

// await calls done until it is true, the patience is used up, a process of the
// server ends or the run is interrupted.
func (s *server) await(b *bench, what string, done func() bool) error {
	for deadline := time.Now().Add(startPatience); ; {
		if done() {
			return nil
		}
		if err := errors.Join(b.ctx.Err(), s.alive()); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v", what, startPatience)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// awaitFile waits for a receiver's socket.
func (s *server) awaitFile(b *bench, path string) error {
	return s.await(b, "wait for "+path, func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// awaitServed waits until a client is served on the port.
func (s *server) awaitServed(b *bench, port int) error {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return s.await(b, "wait to be served on "+address, func() bool { return served(b.ctx, address, s.request) })
}

// served tells whether a client gets its answer: anything to a request, else
// the one byte of those who speak first.
func served(ctx context.Context, address, request string) bool {
	dialer := net.Dialer{Timeout: startPatience}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(startPatience)) // fails only on a closed connection
	if request != "" {
		if _, err := io.WriteString(conn, request); err != nil {
			return false
		}
	}
	answer, err := io.ReadAll(conn)
	return err == nil && (string(answer) == "x" || request != "" && len(answer) > 0)
}

// freePorts returns the first of n consecutive ports on which nobody listens.
func freePorts(n int) (int, error) {
	const tries = 100
	for range tries {
		first := firstPort + rand.IntN(lastPort-firstPort-n+2)
		if allFree(first, n) {
			return first, nil
		}
	}
	return 0, fmt.Errorf("no %d consecutive free ports found in %d-%d", n, firstPort, lastPort)
}

func allFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// socketDir makes a directory in which sockets get the group of the binder,
// which is not root even where the bench is.
func (b *bench) socketDir() (string, error) {
	b.serial++
	dir := filepath.Join(b.dir, strconv.Itoa(b.serial))
	if err := os.Mkdir(dir, 0o755); err != nil || os.Geteuid() != 0 {
		return dir, err
	}
	if err := os.Chown(dir, 0, binderGroup()); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o750|os.ModeSetgid)
}

// binderGroup returns the group of the user that a root binder becomes.
func binderGroup() int {
	for _, name := range []string{"socketbox", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			if gid, err := strconv.Atoi(u.Gid); err == nil {
				return gid
			}
		}
	}
	return 0
}
