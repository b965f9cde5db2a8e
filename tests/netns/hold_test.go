package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// twoTargets sends clients from 127.0.1.0/24 to a.sock and those from
// 127.0.2.0/24 to b.sock.
func twoTargets(port int, top string) string {
	return top + listenerFor(port) + `
[[rule]]
remote = "127.0.1.0/24"
target = "DIR/a.sock"
[[rule]]
remote = "127.0.2.0/24"
target = "DIR/b.sock"
`
}

// from returns clients with the given local address.
func from(local, address string) func(int) client {
	return func(int) client { return client{to: address, from: local} }
}

// 2,000 clients at once, a queue of ten, 2 ms for each: all are served.
func TestSmallQueue(t *testing.T) {
	const clients = 2000
	for _, kind := range []string{"one target", "several targets"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			text := twoTargets(port, "hold = { connections = 4000 }\n")
			path := "a.sock"
			if kind == "one target" {
				text, path = listenerFor(port), "default.sock"
			}
			b := bindConfig(t, text)
			r := startReceiver(t, unshared(), 0, &receiver{Path: filepath.Join(b.dir, path), Take: 2 * time.Millisecond})
			if !strings.Contains(r.log.String(), "queue of 11") {
				t.Fatalf("net.unix.max_dgram_qlen of a fresh namespace is not 10: %s", r.log)
			}
			c := atOnce(clients, from("127.0.1.1", at(port)))
			t.Log(c)
			c.allServed(t, clients)
			b.balance(clients)
			t.Logf("%+v", b.status().Total)
		})
	}
}

// A receiver that comes a second after its clients gets them all.
func TestAbsentThenBound(t *testing.T) {
	const clients = 200
	port, fan := freePort(t), freePort(t)
	one := bindConfig(t, listenerFor(port)+"handoff = \"connection\"\n")
	several := bindConfig(t, twoTargets(fan, ""))
	first, second := begin(clients, to(at(port))), begin(clients, from("127.0.1.1", at(fan)))
	time.Sleep(time.Second)
	if w := one.status().Total.Waiting; w != 1 {
		t.Errorf("a listener with one target holds %d, not one", w)
	}
	several.waiting(clients)
	runReceiver(t, &receiver{Path: filepath.Join(one.dir, "default.sock")})
	runReceiver(t, &receiver{Path: filepath.Join(several.dir, "a.sock")})
	first.end().allServed(t, clients)
	second.end().allServed(t, clients)
	t.Log("one target:", first.crowd)
	t.Log("several targets:", second.crowd)
	one.balance(clients)
	several.balance(clients)
}

// Full is not absent: hold.time does not count for a receiver that is there.
func TestBusyIsNotAbsent(t *testing.T) {
	const clients = 60
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, "hold = { time = \"1s\" }\n"))
	startReceiver(t, unshared(), 0, &receiver{Path: filepath.Join(b.dir, "a.sock"), First: 2500 * time.Millisecond})
	c := begin(clients, from("127.0.1.1", at(port)))
	b.waiting(clients - 12) // one is being served, eleven fit in the queue
	c.end().allServed(t, clients)
	t.Log(c.crowd)
	b.balance(clients)
}

// hold.busy ends that patience where it is set.
func TestBusyBounded(t *testing.T) {
	const clients = 40
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, "hold = { busy = \"300ms\" }\n"))
	startReceiver(t, unshared(), 0, &receiver{Path: filepath.Join(b.dir, "a.sock"), First: 2 * time.Second})
	c := atOnce(clients, from("127.0.1.1", at(port)))
	if c.count(served) != 12 || c.count(reset) != clients-12 {
		t.Errorf("of %d clients, twelve should be served and the others reset: %s", clients, c)
	}
	b.balance(clients)
	b.waitLog("hold.busy")
}

// An absent receiver's clients are reset after hold.time, those who come then
// at once, and all that is counted and logged; when it is back it is served.
func TestHoldTime(t *testing.T) {
	const clients = 20
	for _, kind := range []string{"one target", "several targets"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			top := "hold = { time = \"700ms\" }\n"
			text := twoTargets(port, top)
			if kind == "one target" {
				text = top + listenerFor(port) + "[[rule]]\ntarget = \"DIR/a.sock\"\n"
			}
			b := bindConfig(t, text)
			begun := time.Now()
			c := atOnce(clients, from("127.0.1.1", at(port)))
			if took := time.Since(begun); took < 600*time.Millisecond || took > 5*time.Second {
				t.Errorf("the last client was reset after %v, hold.time is 700ms", took)
			}
			if c.count(reset) != clients {
				t.Errorf("not all %d clients were reset: %s", clients, c)
			}
			again := client{to: at(port), from: "127.0.1.1"}.visit()
			if again.outcome != reset || again.took > 600*time.Millisecond {
				t.Errorf("while the receiver is still absent: %s after %v", again.outcome, again.took)
			}
			b.balance(clients + 1)
			if failed := b.status().Total.Failed; failed != clients+1 {
				t.Errorf("failed is %d, not %d", failed, clients+1)
			}
			b.waitLog("hold.time")
			if lines := strings.Count(b.log.String(), "hold.time"); lines > 4 {
				t.Errorf("%d log lines in %v", lines, time.Since(begun))
			}
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
			eventually(t, 2*time.Second, func() error {
				if v := (client{to: at(port), from: "127.0.1.1"}).visit(); v.outcome != served {
					return fmt.Errorf("the receiver is back, and a client was %s", v.outcome)
				}
				return nil
			})
			atOnce(clients, from("127.0.1.1", at(port))).allServed(t, clients)
		})
	}
}

// hold.connections bounds what waits for one path, and nothing else.
func TestHoldConnections(t *testing.T) {
	const clients, limit = 25, 5
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, fmt.Sprintf("hold = { connections = %d }\n", limit)))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "b.sock")})
	c := begin(clients, from("127.0.1.1", at(port)))
	eventually(t, 5*time.Second, func() error {
		if n := c.crowd.count(reset); n != clients-limit {
			return fmt.Errorf("%d clients reset, not %d: %s", n, clients-limit, c.crowd)
		}
		return nil
	})
	b.waiting(limit)
	rounds(2, clients, from("127.0.2.1", at(port))).allServed(t, clients)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	if n := c.end().count(served); n != limit {
		t.Errorf("%d of those on hold were served, not %d: %s", n, limit, c.crowd)
	}
	b.balance(2 * clients)
	b.waitLog("hold.connections reached")
}

// The first clients of a path come before anybody has looked for its
// receiver: that is no reason to reset them.
func TestFirstBurst(t *testing.T) {
	const clients, limit = 14, 5 // eleven fit in the receiver's queue
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, fmt.Sprintf("hold = { connections = %d }\n", limit)))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	atOnce(clients, from("127.0.1.1", at(port))).allServed(t, clients)
	b.balance(clients)
}

// Connections that leave together are no more than may be on hold: where the
// receiver turns out to be full, nobody is reset who could have waited in the
// backlog.
func TestGatheredFitHold(t *testing.T) {
	const clients = 64
	port := freePort(t)
	b := bindConfig(t, "hold = { connections = 2 }\n"+listenerFor(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), First: time.Second})
	takenBy(t, "default.sock", client{to: at(port)})
	dispatcher := b.status().Dispatcher
	if err := unix.Kill(dispatcher, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c := begin(clients, to(at(port)))
	time.Sleep(300 * time.Millisecond) // until all are in the backlog
	if err := unix.Kill(dispatcher, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.end().allServed(t, clients)
	b.balance(clients + 1)
}

// hold_total bounds what waits for all paths together.
func TestHoldTotal(t *testing.T) {
	const each, limit = 10, 8
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, fmt.Sprintf("hold_total = %d\n", limit)))
	first := begin(each, from("127.0.1.1", at(port)))
	second := begin(each, from("127.0.2.1", at(port)))
	resets := func() int { return first.crowd.count(reset) + second.crowd.count(reset) }
	eventually(t, 5*time.Second, func() error {
		if n := resets(); n != 2*each-limit {
			return fmt.Errorf("%d reset, not %d", n, 2*each-limit)
		}
		return nil
	})
	b.waiting(limit)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "b.sock")})
	if n := first.end().count(served) + second.end().count(served); n != limit {
		t.Errorf("%d served, not %d", n, limit)
	}
	b.balance(2 * each)
	b.waitLog("hold_total reached")
}

// A receiver that TERM stops and that starts again, ten times under load:
// nobody notices.
func TestReceiverRestarts(t *testing.T) {
	const restarts, clients = 10, 32
	for _, kind := range []string{"one target", "several targets"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			text := twoTargets(port, "")
			if kind == "one target" {
				text = listenerFor(port) + "[[rule]]\ntarget = \"DIR/a.sock\"\n"
			}
			b := bindConfig(t, text)
			r := &receiver{Path: filepath.Join(b.dir, "a.sock"), Take: 200 * time.Microsecond}
			p := startReceiver(t, unshared(), 0, r)
			load := keep(clients, 5*time.Millisecond, from("127.0.1.1", at(port)))
			for range restarts {
				time.Sleep(100 * time.Millisecond)
				p.signal(15)
				if status := p.wait(5 * time.Second); status != 0 {
					t.Fatalf("the receiver ended with %d: %s", status, p.log)
				}
				p = startReceiver(t, unshared(), 0, r)
			}
			time.Sleep(100 * time.Millisecond)
			c := load.end()
			t.Log(c)
			c.allServed(t, c.total())
			if c.total() < 10*restarts {
				t.Errorf("only %d clients came", c.total())
			}
			b.balance(c.total())
		})
	}
}

// noticeable is a generous bound for the p99 of clients whom nothing should
// delay; the figures are in the log.
const noticeable = 250 * time.Millisecond

// A stuck or absent target does not delay the other one of its listener.
func TestStuckTargetDelaysNobody(t *testing.T) {
	const stuckClients, total = 300, 3000
	for _, kind := range []string{"stuck", "absent"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, twoTargets(port, ""))
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
			other := filepath.Join(b.dir, "b.sock")
			release := func() { runReceiver(t, &receiver{Path: other}) }
			if kind == "stuck" {
				release = stuckReceiver(t, other)
			}
			load := func() *crowd { return rounds(8, total, from("127.0.1.1", at(port))) }
			alone := load()
			stuck := begin(stuckClients, from("127.0.2.1", at(port)))
			eventually(t, 5*time.Second, func() error {
				if w := b.status().Total.Waiting; w < stuckClients-20 {
					return fmt.Errorf("%d wait", w)
				}
				return nil
			})
			beside := load()
			t.Logf("alone: %s", alone)
			t.Logf("beside %d clients of a target that is %s: %s", stuckClients, kind, beside)
			alone.allServed(t, total)
			beside.allServed(t, total)
			if p99 := beside.p99(); p99 > noticeable {
				t.Errorf("p99 %v beside a target that is %s", p99, kind)
			}
			release()
			stuck.end().allServed(t, stuckClients)
			b.balance(2*total + stuckClients)
		})
	}
}

// Three listeners with a trickle of clients each do not delay the fourth.
func TestTrickleDelaysNobody(t *testing.T) {
	const total = 3000
	ports := []int{freePort(t), freePort(t), freePort(t), freePort(t)}
	var args []string
	for _, p := range ports {
		args = append(args, "--listen", at(p))
	}
	b := bind(t, args...)
	for _, p := range ports {
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, strconv.Itoa(p)+".sock")})
	}
	alone := rounds(8, total, to(at(ports[3])))
	var trickle []*under
	for _, p := range ports[:3] {
		trickle = append(trickle, keep(2, 2*time.Millisecond, to(at(p))))
	}
	beside := rounds(8, total, to(at(ports[3])))
	sum := 2 * total
	for _, u := range trickle {
		c := u.end()
		c.allServed(t, c.total())
		sum += c.total()
		t.Logf("a trickle: %s", c)
	}
	t.Logf("alone: %s", alone)
	t.Logf("beside three: %s", beside)
	alone.allServed(t, total)
	beside.allServed(t, total)
	if p99 := beside.p99(); p99 > noticeable {
		t.Errorf("p99 %v beside three listeners with a trickle", p99)
	}
	b.balance(sum)
}

// A thousand listeners all serve.
func TestThousandListeners(t *testing.T) {
	const listeners = 1000
	port := freePort(t)
	address := func(i int) string { return fmt.Sprintf("127.1.%d.%d:%d", i/250, i%250+1, port) }
	var text strings.Builder
	for i := range listeners {
		fmt.Fprintf(&text, "[[listener]]\nname = \"l%d\"\naddress = %q\n", i, address(i))
	}
	begun := time.Now()
	b := bindConfig(t, text.String())
	t.Logf("serving after %v", time.Since(begun).Round(time.Millisecond))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, strconv.Itoa(port)+".sock")})
	c := rounds(8, 3*listeners, func(i int) client { return client{to: address(i % listeners)} })
	t.Log(c)
	c.allServed(t, 3*listeners)
	b.balance(3 * listeners)
	s := b.status()
	for _, l := range s.Listeners {
		if l.Delivered != 3 {
			t.Errorf("listener %s delivered %d, not 3", l.Name, l.Delivered)
		}
	}
	t.Logf("RSS: binder %s, dispatcher %s", rss(t, s.PID), rss(t, s.Dispatcher))
}

// rss is the resident size of a process as proc(5) tells it.
func rss(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// ordinary is who stands for an ordinary user in tests of limits that root is
// exempt from. In a user namespace uid 0 is none the less ordinary.
func ordinary() int {
	if os.Getenv(insideMark) == "" {
		return 12345
	}
	return 0
}

// bindOrdinary starts `socketbox bind` as the ordinary user with room for
// files descriptors.
func bindOrdinary(t *testing.T, files int, text string) *box {
	t.Helper()
	dir := socketDir(t)
	program := filepath.Join(programs, "socketbox")
	if uid := ordinary(); uid != 0 {
		program = publicCopy(t, program)
		if err := os.Chown(filepath.Dir(dir), uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	args := asUser(ordinary(), "prlimit", fmt.Sprintf("--nofile=%d:%d", files, files), program,
		"bind", "--dir", dir, "--config", putConfig(t, dir, text))
	b := &box{process: start(t, here().command(args...)), dir: dir}
	b.waitLog("serving")
	return b
}

// Another process of the dispatcher's uid has a thousand descriptors in
// flight, more than the dispatcher's RLIMIT_NOFILE: what can't be passed is on
// hold, and is delivered when there is room again.
func TestDescriptorsInFlight(t *testing.T) {
	const clients = 60
	for _, kind := range []string{"one target", "several targets"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			text := twoTargets(port, "")
			if kind == "one target" {
				text = listenerFor(port) + "[[rule]]\ntarget = \"DIR/a.sock\"\n"
			}
			b := bindOrdinary(t, 256, text)
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock"), Group: ordinary()})
			atOnce(10, from("127.0.1.1", at(port))).allServed(t, 10)
			dispatcher := b.status().Dispatcher
			hog := start(t, standinCommand(t, here(), ordinary(), standin{Act: "hog", Count: 1000}))
			hog.waitLog("in flight")
			c := begin(clients, from("127.0.1.1", at(port)))
			b.waitLog("too many references")
			time.Sleep(500 * time.Millisecond)
			if n := c.crowd.total(); n != 0 {
				t.Errorf("%d clients have ended while nothing could be passed: %s", n, c.crowd)
			}
			if busy := cpu(t, dispatcher, 300*time.Millisecond); busy > 0.5 {
				t.Errorf("the dispatcher uses %.2f of a processor meanwhile", busy)
			}
			hog.kill()
			c.end().allServed(t, clients)
			t.Log(c.crowd)
			b.balance(clients + 10)
			if now := b.status().Dispatcher; now != dispatcher {
				t.Errorf("the dispatcher was replaced")
			}
		})
	}
}

// A receiver that comes while nothing can be passed, not even its socket to
// the dispatcher, is reached later; nothing on hold is lost.
func TestReceiverComesWhileNothingCanBePassed(t *testing.T) {
	const clients = 30
	port := freePort(t)
	b := bindOrdinary(t, 256, twoTargets(port, ""))
	dispatcher := b.status().Dispatcher
	c := begin(clients, from("127.0.1.1", at(port)))
	b.waiting(clients)
	hog := start(t, standinCommand(t, here(), ordinary(), standin{Act: "hog", Count: 1000}))
	hog.waitLog("in flight")
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock"), Group: ordinary()})
	time.Sleep(time.Second)
	if n := c.crowd.total(); n != 0 {
		t.Errorf("%d clients have ended while nothing could be passed: %s", n, c.crowd)
	}
	hog.kill()
	c.end().allServed(t, clients)
	b.balance(clients)
	if now := b.status().Dispatcher; now != dispatcher {
		t.Errorf("the dispatcher was replaced")
	}
}

// cpu returns how much of a processor process pid uses during d.
func cpu(t *testing.T, pid int, d time.Duration) float64 {
	t.Helper()
	const perSecond = 100 // USER_HZ
	ticks := func() int {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(after)
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		return user + system
	}
	before := ticks()
	time.Sleep(d)
	return float64(ticks()-before) / perSecond / d.Seconds()
}

// The dispatcher runs out of descriptors: clients wait in the backlog, those
// on hold stay there, the dispatcher does not spin, and all are served when
// their receiver comes.
func TestOutOfDescriptors(t *testing.T) {
	const clients = 150
	port := freePort(t)
	b := bindOrdinary(t, 96, twoTargets(port, "hold_total = 1000\n"))
	dispatcher := b.status().Dispatcher
	c := begin(clients, from("127.0.1.1", at(port)))
	b.waitLog("can't accept")
	time.Sleep(200 * time.Millisecond)
	if n := c.crowd.total(); n != 0 {
		t.Errorf("%d clients have ended: %s", n, c.crowd)
	}
	if busy := cpu(t, dispatcher, 500*time.Millisecond); busy > 0.5 {
		t.Errorf("the dispatcher uses %.2f of a processor while it has no descriptor left", busy)
	}
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock"), Group: ordinary()})
	c.end().allServed(t, clients)
	b.balance(clients)
	if now := b.status().Dispatcher; now != dispatcher {
		t.Errorf("the dispatcher was replaced")
	}
}
