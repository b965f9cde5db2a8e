package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What can become of a client. Only served is what it came for; none of the
// others may happen unseen.
const (
	served  = "served"  // the whole answer, then an orderly end
	refused = "refused" // connect: ECONNREFUSED
	reset   = "reset"   // RST after connect
	empty   = "empty"   // an orderly end without an answer
	late    = "late"    // no end in time
	crossed = "crossed" // the receiver saw another peer than this client
	broken  = "broken"  // anything else
)

// client describes one TCP or Unix client: it connects, says nothing, and
// reads until the end.
type client struct {
	to    string        // host:port, or the path of a Unix listener
	from  string        // local address; "": the kernel's choice
	in    string        // network namespace, by name; "": the tests'
	limit time.Duration // for everything; 0: clientLimit
}

const clientLimit = 20 * time.Second

// visit is what a client experienced.
type visit struct {
	outcome  string
	receiver string // that answered
	took     time.Duration
	err      error
}

// visit runs the client.
func (c client) visit() visit {
	begin := time.Now()
	v := c.talk()
	v.took = time.Since(begin)
	return v
}

func (c client) talk() visit {
	limit := c.limit
	if limit == 0 {
		limit = clientLimit
	}
	conn, err := c.dial(limit)
	if err != nil {
		return visit{outcome: outcomeOf(err), err: err}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	text, err := io.ReadAll(conn)
	if err != nil {
		return visit{outcome: outcomeOf(err), err: err}
	}
	if len(text) == 0 {
		return visit{outcome: empty}
	}
	name, peer, ok := strings.Cut(strings.TrimSuffix(string(text), "\n"), " ")
	if !ok {
		return visit{outcome: broken, err: fmt.Errorf("answer %q", text)}
	}
	if own := conn.LocalAddr().String(); peer != own && peer != "unix" {
		return visit{outcome: crossed, receiver: name, err: fmt.Errorf("%s was seen as %s", own, peer)}
	}
	return visit{outcome: served, receiver: name}
}

func (c client) dial(limit time.Duration) (net.Conn, error) {
	if strings.HasPrefix(c.to, "/") {
		return net.DialTimeout("unix", c.to, limit)
	}
	d := net.Dialer{Timeout: limit}
	if c.from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(c.from)}
	}
	if c.in == "" {
		return d.Dial("tcp", c.to)
	}
	var conn net.Conn
	err := inside(c.in, func() (err error) {
		conn, err = d.Dial("tcp", c.to)
		return err
	})
	return conn, err
}

func outcomeOf(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return reset
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return late
	}
	return broken
}

// crowd is what became of many clients.
type crowd struct {
	mu       sync.Mutex
	outcomes map[string]int
	by       map[string]int // served, by receiver
	took     []time.Duration
	sample   error // of one that was not served
}

func newCrowd() *crowd { return &crowd{outcomes: map[string]int{}, by: map[string]int{}} }

func (c *crowd) add(v visit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes[v.outcome]++
	if v.outcome == served {
		c.by[v.receiver]++
		c.took = append(c.took, v.took)
	} else if v.err != nil {
		c.sample = v.err
	}
}

func (c *crowd) count(outcomes ...string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, o := range outcomes {
		n += c.outcomes[o]
	}
	return n
}

// total is how many clients there were.
func (c *crowd) total() int {
	return c.count(served, refused, reset, empty, late, crossed, broken)
}

func (c *crowd) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for o, n := range c.outcomes {
		parts = append(parts, fmt.Sprintf("%s %d", o, n))
	}
	sort.Strings(parts)
	s := strings.Join(parts, ", ")
	if len(c.took) > 0 {
		s += fmt.Sprintf("; p50 %v, p99 %v, max %v", c.percentile(50), c.percentile(99), c.percentile(100))
	}
	if c.sample != nil {
		s += fmt.Sprintf("; e.g. %v", c.sample)
	}
	return s
}

// percentile of the time that served clients took.
func (c *crowd) percentile(p int) time.Duration {
	sorted := slices.Clone(c.took)
	slices.Sort(sorted)
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*p/100, len(sorted)-1)].Round(10 * time.Microsecond)
}

// p99 is the crowd's 99th percentile.
func (c *crowd) p99() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.percentile(99)
}

// allServed fails the test unless n clients came and each was served.
func (c *crowd) allServed(t *testing.T, n int) {
	t.Helper()
	if c.total() != n || c.count(served) != n {
		t.Errorf("of %d clients: %s", n, c)
	}
}

// atOnce runs n clients at the same time and returns when all have ended.
func atOnce(n int, of func(i int) client) *crowd { return begin(n, of).end() }

// under is a load that goes on in the background.
type under struct {
	crowd *crowd
	wg    sync.WaitGroup
	quit  atomic.Bool
}

// begin starts n clients at the same time and returns at once.
func begin(n int, of func(i int) client) *under {
	u := &under{crowd: newCrowd()}
	for i := range n {
		c := of(i)
		u.wg.Go(func() { u.crowd.add(c.visit()) })
	}
	return u
}

// loadLimit bounds every load in number, whatever its test does.
const loadLimit = 50_000

// keep starts `clients` clients that come again, pause after they were gone,
// until end is called.
func keep(clients int, pause time.Duration, of func(i int) client) *under {
	u := &under{crowd: newCrowd()}
	var made atomic.Int64
	for range clients {
		u.wg.Go(func() {
			for !u.quit.Load() {
				i := int(made.Add(1))
				if i > loadLimit {
					return
				}
				u.crowd.add(of(i).visit())
				time.Sleep(pause)
			}
		})
	}
	return u
}

// rounds runs clients that come again until there were `total` of them.
func rounds(clients, total int, of func(i int) client) *crowd {
	u := &under{crowd: newCrowd()}
	var made atomic.Int64
	for range clients {
		u.wg.Go(func() {
			for i := int(made.Add(1)); i <= min(total, loadLimit); i = int(made.Add(1)) {
				u.crowd.add(of(i).visit())
			}
		})
	}
	return u.end()
}

// end lets nobody come again, waits for those who are there, and returns all.
func (u *under) end() *crowd {
	u.quit.Store(true)
	u.wg.Wait()
	return u.crowd
}

// to returns clients of one address.
func to(address string) func(int) client {
	return func(int) client { return client{to: address} }
}

// at is the address of a port on 127.0.0.1.
func at(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
