//go:build docker

package docker

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// process is a program that runs until its test ends.
type process struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	log  bytes.Buffer
	done chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// start starts cmd. At the end of the test it gets SIGTERM and, 20 seconds
// later, SIGKILL.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(20 * time.Second):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-p.done
		}
		if t.Failed() {
			said := p.said()
			t.Logf("%s:\n%s", cmd.Path, said[max(0, len(said)-4000):])
		}
	})
	return p
}

// waitFor repeats check until it returns nil.
func waitFor(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *process) says(t *testing.T, text string) {
	t.Helper()
	waitFor(t, 15*time.Second, func() error {
		select {
		case <-p.done:
			t.Fatalf("%s has ended:\n%s", p.cmd.Path, p.said())
		default:
		}
		if !strings.Contains(p.said(), text) {
			return fmt.Errorf("%s does not say %q:\n%s", p.cmd.Path, text, p.said())
		}
		return nil
	})
}

// temporary returns a folder that every user may reach, until the test ends.
func temporary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "docker-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// patience is how long a client waits for its answer: longer than a container
// takes to restart.
const patience = 25 * time.Second

// get fetches / over a new connection and returns the body and the client's
// and server's address, as nginx.conf writes them.
func get(from, to string) (body, truth string, err error) {
	d := &net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"); err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return "", "", err
	}
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	if len(head) < 12 || head[9:12] != "200" {
		return "", "", fmt.Errorf("answer %.80q", b)
	}
	l, r := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
	return strings.TrimSpace(body), fmt.Sprintf("%s %d %s %d", l.IP, l.Port, r.IP, r.Port), nil
}

// seen checks that a client is served and seen with its true address.
func seen(t *testing.T, from, to string) {
	t.Helper()
	body, truth, err := get(from, to)
	if err != nil {
		t.Errorf("client %s of %s: %v", from, to, err)
	} else if body != truth {
		t.Errorf("client %s of %s: nginx says %q, true is %q", from, to, body, truth)
	}
}

// crowd is a number of clients that fetch one page after another.
type crowd struct {
	served, lost atomic.Int64
	longest      atomic.Int64 // wait, in nanoseconds
	first        sync.Once
	err          error // of the first that was lost
	all          sync.WaitGroup
	stop         chan struct{}
}

// begin starts clients that make count requests in turn to the addresses.
func begin(clients, count int, pause time.Duration, to ...string) *crowd {
	c := &crowd{stop: make(chan struct{})}
	var next atomic.Int64
	for range clients {
		c.all.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(count) || c.stopped() {
					return
				}
				began := time.Now()
				if _, _, err := get("", to[int(n)%len(to)]); err != nil {
					c.lost.Add(1)
					c.first.Do(func() { c.err = err })
				} else {
					c.served.Add(1)
				}
				took := int64(time.Since(began))
				for old := c.longest.Load(); took > old && !c.longest.CompareAndSwap(old, took); old = c.longest.Load() {
				}
				time.Sleep(pause)
			}
		})
	}
	return c
}

func (c *crowd) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// end waits for the clients, which stop after the request they are at.
func (c *crowd) end() { close(c.stop); c.all.Wait() }

func (c *crowd) String() string {
	return fmt.Sprintf("%d served, %d lost (%v), the longest wait was %v", c.served.Load(), c.lost.Load(), c.err, time.Duration(c.longest.Load()).Round(time.Millisecond))
}
