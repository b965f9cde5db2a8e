package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relayState is what socketbox-relay --log json says of itself after USR1.
type relayState struct {
	Open, Waiting, Received, Connected, Closed, Resets, Idle, Lifetimes, Unreachable, Failed, Gone, Drained, Shortages int
}

// relayState asks socketbox-relay, started with --log json.
func (p *process) relayState() relayState {
	p.t.Helper()
	lines := func() []string {
		var found []string
		for line := range strings.Lines(p.log.String()) {
			if strings.Contains(line, `"msg":"state"`) {
				found = append(found, line)
			}
		}
		return found
	}
	before := len(lines())
	p.signal(syscall.SIGUSR1)
	var s relayState
	eventually(p.t, 5*time.Second, func() error {
		now := lines()
		if len(now) == before {
			return fmt.Errorf("no state in the log")
		}
		return json.Unmarshal([]byte(now[len(now)-1]), &s)
	})
	return s
}

// quiet waits until nothing is open any more and returns the counters.
func (p *process) quiet() (s relayState) {
	p.t.Helper()
	eventually(p.t, 10*time.Second, func() error {
		if s = p.relayState(); s.Open+s.Waiting > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return s
}

// front starts a relay, with limits of its own, that listens in front of a
// port and returns where.
func front(t *testing.T, files, port int, args ...string) (*process, string) {
	t.Helper()
	at := fmt.Sprint("127.0.0.1:", freePort(t))
	program := []string{filepath.Join(programs, "socketbox-relay"), "--log", "json", "--listen", at, "--to", fmt.Sprint("127.0.0.1:", port)}
	if files > 0 {
		program = append([]string{"prlimit", fmt.Sprint("--nofile=", files), "--"}, program...)
	}
	p := start(t, exec.Command(program[0], append(program[1:], args...)...))
	p.waitLog("relaying")
	return p, at
}

// 10,000 idle connections, or as many as an ordinary user has descriptors for:
// what they cost, and that each of them still works.
func TestRelayIdleConnections(t *testing.T) {
	count := min(10000, (manyFiles(t)-3000)/2)
	port, conns := accepting(t)
	r, at := front(t, 0, port)
	before, files := residentKiB(t, r.pid()), descriptors(t, r.pid())
	clients, servers := make([]net.Conn, count), make([]net.Conn, count)
	for i := range count {
		clients[i] = dialFrom(t, fmt.Sprintf("127.0.%d.1", i%4), at)
		servers[i] = <-conns
	}
	if s := r.relayState(); s.Open != count {
		t.Errorf("%d are open", s.Open)
	}
	per := float64(residentKiB(t, r.pid())-before) * 1024 / float64(count)
	t.Logf("%d idle connections: %d → %d KiB resident, %.0f bytes each, %d descriptors more", count, before, residentKiB(t, r.pid()), per, len(descriptors(t, r.pid()))-len(files))
	if per > 4096 {
		t.Errorf("%.0f bytes each", per)
	}
	if more := len(descriptors(t, r.pid())) - len(files); more > 2*count {
		t.Errorf("%d descriptors more: idle connections hold pipes", more)
	}
	for i := range count {
		fmt.Fprintf(clients[i], "%08d", i)
	}
	got := map[string]bool{} // servers come in an order of their own
	for i := range count {
		text := make([]byte, 8)
		if _, err := io.ReadFull(servers[i], text); err != nil {
			t.Fatal(err)
		}
		got[string(text)] = true
		servers[i].Close()
		clients[i].Close()
	}
	if len(got) != count {
		t.Errorf("%d of %d were heard", len(got), count)
	}
	r.quiet()
	checkDescriptors(t, r, files)
}

// 2,000 clients at once, a destination that takes its time, and limits far
// below: everybody is served.
func TestRelaySlowDestination(t *testing.T) {
	const count = 2000
	for _, tt := range []struct {
		name  string
		files int
		args  []string
	}{
		{"no limit", 0, nil},
		{"--max 50", 0, []string{"--max", "50"}},
		{"256 descriptors", 256, nil},
		{"256 descriptors, --max-per-source 5", 256, []string{"--max-per-source", "5"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port, most := slow(t, 5*time.Millisecond)
			r, at := front(t, tt.files, port, tt.args...)
			files := descriptors(t, r.pid())
			c := atOnce(count, func(i int) client {
				return client{to: at, from: fmt.Sprintf("127.0.8.%d", i%20+1), limit: 30 * time.Second}
			})
			t.Log(c)
			if n := c.count(served, crossed); n != count {
				t.Errorf("%d of %d were served", n, count)
			}
			s := r.quiet()
			if s.Received != count || s.Connected != count || s.Failed+s.Gone != 0 {
				t.Errorf("%+v", s)
			}
			if tt.name == "--max 50" && most() > 50 {
				t.Errorf("%d at once", most())
			}
			checkDescriptors(t, r, files)
		})
	}
}

// slow is a server in this process that takes a time for each connection, all
// at once. most returns how many it had at once.
func slow(t *testing.T, takes time.Duration) (port int, most func() int) {
	t.Helper()
	port, conns := accepting(t)
	var mu sync.Mutex
	now, peak := 0, 0
	go func() {
		for c := range conns {
			mu.Lock()
			now++
			peak = max(peak, now)
			mu.Unlock()
			go func() {
				time.Sleep(takes)
				fmt.Fprintf(c, "slow %s\n", c.RemoteAddr())
				mu.Lock()
				now--
				mu.Unlock()
				c.Close()
			}()
		}
	}()
	return port, func() int { mu.Lock(); defer mu.Unlock(); return peak }
}

// A crowd from one address does not delay another one.
func TestRelayMaxPerSource(t *testing.T) {
	port, most := slow(t, 50*time.Millisecond)
	r, at := front(t, 0, port, "--max-per-source", "2")
	crowd := begin(40, from("127.0.9.1", at))
	time.Sleep(100 * time.Millisecond)
	if v := (client{to: at, from: "127.0.9.2"}).visit(); v.took > 500*time.Millisecond || v.outcome != crossed && v.outcome != served {
		t.Errorf("beside a crowd: %s after %v", v.outcome, v.took)
	}
	if c := crowd.end(); c.count(served, crossed) != 40 {
		t.Error(c)
	}
	if most() > 3 {
		t.Errorf("%d at once", most())
	}
	r.quiet()
}

// A destination that is down, or does not answer: the client is reset after
// the connect timeout, which is counted and logged.
func TestRelayDestinationDown(t *testing.T) {
	deaf := deafServer(t)
	at := freePort(t)
	r := relay(t, here(), "--log", "json", "--listen", fmt.Sprint("127.0.0.1:", at),
		"--to", deaf, "--connect-timeout", "500ms", "--log-connections=false")
	begin := time.Now()
	out, err := exec.Command("curl", "-sS", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d/", at)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "reset") {
		t.Errorf("%s, %v", out, err)
	}
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("after %v already", took)
	}
	if s := r.quiet(); s.Unreachable != 1 || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
	r.waitLog(deaf + ": connect timeout")
}

// deafServer is an address that answers no SYN: its backlog is full.
func deafServer(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprint("127.0.0.1:", sa.(*unix.SockaddrInet4).Port)
	for range 5 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("a backlog of 0 takes everybody")
	return ""
}

// soakTime is how long a test that can go on for as long as one likes does so
// (make soak).
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	return d
}

// Slow readers, slow writers, one byte at a time, resets at random: nothing is
// left of them, however long it goes on.
func TestRelayLeavesNothing(t *testing.T) {
	const wave = 100
	port, conns := accepting(t)
	go func() {
		for c := range conns {
			go misbehave(c, rand.Int())
		}
	}()
	r, at := front(t, 0, port)
	files, threads := descriptors(t, r.pid()), len(tasks(t, r.pid()))
	var wait sync.WaitGroup
	begin, waves, early := time.Now(), 0, 0
	for waves == 0 || time.Since(begin) < soakTime(t) {
		for i := range wave {
			wait.Go(func() {
				conn, err := net.Dial("tcp", at)
				if err == nil {
					misbehave(conn.(*net.TCPConn), i)
				} else if !errors.Is(err, unix.ECONNRESET) { // by a server that was quicker than this goroutine
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if waves++; waves == 10 {
			early = residentKiB(t, r.pid())
		}
	}
	s := r.quiet()
	if s.Received != waves*wave {
		t.Errorf("%+v", s)
	}
	if late := residentKiB(t, r.pid()); early > 0 {
		t.Logf("%d connections in %v: %+v; resident %d KiB after the first 1,000, %d in the end", s.Received, time.Since(begin), s, early, late)
		if late > early+2048 {
			t.Errorf("resident memory grows: %d KiB, then %d", early, late)
		}
	}
	checkDescriptors(t, r, files)
	if now := len(tasks(t, r.pid())); now > threads+4 { // the runtime's own
		t.Errorf("%d threads before, %d after", threads, now)
	}
}

// misbehave does one of several things to a connection, for a second at most.
func misbehave(c *net.TCPConn, how int) {
	c.SetDeadline(time.Now().Add(time.Second))
	piece := make([]byte, 64<<10)
	switch how % 5 {
	case 0: // reads slowly
		for range 10 {
			c.Read(piece[:1000])
			time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
		}
	case 1: // writes one byte at a time
		for range 20 {
			c.Write(piece[:1])
			time.Sleep(20 * time.Millisecond)
		}
	case 2: // writes all it can and reads nothing
		for {
			if _, err := c.Write(piece); err != nil {
				break
			}
		}
	case 3: // reads all
		io.Copy(io.Discard, c)
	case 4: // goes at some time
		c.Write(piece)
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
	}
	if rand.IntN(2) == 0 {
		c.SetLinger(0)
	}
	c.Close()
}

// Times that end a connection, and the rates.
func TestRelayTimes(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		count func(relayState) int
	}{
		{[]string{"--idle-timeout", "300ms"}, func(s relayState) int { return s.Idle }},
		{[]string{"--lifetime", "300ms"}, func(s relayState) int { return s.Lifetimes }},
	} {
		port, conns := accepting(t)
		r, at := front(t, 0, port, tt.args...)
		c := dialFrom(t, "127.0.0.1", at)
		server := <-conns
		begin := time.Now()
		if tt.args[0] == "--idle-timeout" { // a byte now and then keeps it
			for range 4 {
				time.Sleep(150 * time.Millisecond)
				if _, err := server.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); err == nil {
			t.Errorf("%v: an orderly end", tt.args)
		}
		if took := time.Since(begin); took < 300*time.Millisecond || tt.args[0] == "--idle-timeout" && took < 850*time.Millisecond {
			t.Errorf("%v: ended after %v", tt.args, took)
		}
		if s := r.quiet(); tt.count(s) != 1 {
			t.Errorf("%v: %+v", tt.args, s)
		}
		server.Close()
	}
}

func TestRelayRate(t *testing.T) {
	for _, args := range [][]string{{"--rate", "1M"}, {"--rate-all", "1M"}} {
		port, conns := accepting(t)
		_, at := front(t, 0, port, args...)
		c := dialFrom(t, "127.0.0.1", at)
		go func() {
			c.Write(make([]byte, 1<<20))
			c.CloseWrite()
		}()
		begin := time.Now()
		server := <-conns
		n, err := io.Copy(io.Discard, server)
		if took := time.Since(begin); n != 1<<20 || err != nil || took < 700*time.Millisecond {
			t.Errorf("%v: %d bytes in %v, %v", args, n, took, err)
		}
		server.Close()
		c.Close()
	}
}

// TERM serves what is open until --drain is over.
func TestRelayDrain(t *testing.T) {
	port, conns := accepting(t)
	r, at := front(t, 0, port, "--drain", "700ms")
	c := dialFrom(t, "127.0.0.1", at)
	server := <-conns
	r.signal(syscall.SIGTERM)
	r.waitLog("ending when")
	time.Sleep(100 * time.Millisecond)
	if conn, err := net.Dial("tcp", at); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
	if _, err := c.Write([]byte("still")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 5)); err != nil {
		t.Error(err)
	}
	if status := r.wait(10 * time.Second); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("after the drain: %v", err)
	}
	if !strings.Contains(r.log.String(), `"drained":1`) {
		t.Error("it does not count what it has reset")
	}
	c.Close()
	server.Close()
}

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	var kib int
	fmt.Sscanf(strings.TrimSuffix(rss(t, pid), " kB"), "%d", &kib)
	if kib == 0 {
		t.Fatalf("no resident memory in %q", rss(t, pid))
	}
	return kib
}

// tasks lists the threads of a process.
func tasks(t *testing.T, pid int) []string {
	t.Helper()
	found, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// manyFiles gives this process, and what it starts, descriptors for 10,000 relayed
// connections, if it has the right to, and returns how many there are.
func manyFiles(t *testing.T) int {
	t.Helper()
	const want = 24000
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Max >= want {
		return want
	}
	more := unix.Rlimit{Cur: want, Max: want}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &more); err != nil {
		return int(files.Max)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &files) })
	return want
}

// What the relay does not need it has given up before it says that it relays: no
// thread has a capability but for what its options take, and none can be gained.
func TestRelayGivesUp(t *testing.T) {
	needRoot(t)
	ns := ipNetns(t)
	for _, c := range []struct {
		args []string
		want string // CapEff
	}{
		{[]string{"--to", "127.0.0.1:9"}, "0000000000000000"},
		{[]string{"--netns", ns.name}, "0000000000000000"},
		{[]string{"--netns", "/run/netns/{listener}"}, "0000000000200000"},     // SYS_ADMIN
		{[]string{"--to", "127.0.0.1:9", "--transparent"}, "0000000000001000"}, // NET_ADMIN
	} {
		b := bindConfig(t, listeners(freePort(t)))
		r := relay(t, here(), append([]string{"--dir", b.dir}, c.args...)...)
		for _, task := range tasks(t, r.pid()) {
			text, err := os.ReadFile(filepath.Join(task, "status"))
			if err != nil {
				continue // a thread of the runtime that has ended
			}
			for _, line := range []string{"CapEff:\t" + c.want, "CapPrm:\t" + c.want, "CapBnd:\t" + c.want, "CapInh:\t0000000000000000", "NoNewPrivs:\t1"} {
				if !strings.Contains(string(text), "\n"+line+"\n") {
					t.Errorf("%v: %s has not %q", c.args, task, line)
				}
			}
		}
		r.signal(unix.SIGTERM)
		if status := r.wait(10 * time.Second); status != 0 {
			t.Errorf("exit status %d", status)
		}
		if _, err := os.Lstat(filepath.Join(b.dir, "default.sock")); err == nil {
			t.Errorf("%v: the receiving socket is still there", c.args)
		}
	}
}
