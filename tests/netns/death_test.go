package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
)

// backSoon is a generous bound for the time that a new dispatcher takes: it
// should be less than 100 ms, on a machine that has nothing else to do.
const backSoon = 500 * time.Millisecond

// The dispatcher is killed 20 times under 64 clients: nobody is refused, and
// those cut are at most the ones that it had in hand.
func TestDispatcherKilled(t *testing.T) {
	const kills, clients = 20, 64
	for _, kind := range []string{"one target", "several targets"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			text := twoTargets(port, "")
			if kind == "one target" {
				text = listenerFor(port) + "[[rule]]\ntarget = \"DIR/a.sock\"\n"
			}
			b := bindConfig(t, text)
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock"), Take: 200 * time.Microsecond})
			load := keep(clients, 10*time.Millisecond, from("127.0.1.1", at(port)))
			var back []time.Duration
			waiting := 0
			for i := range kills {
				time.Sleep(time.Duration(50+3*i) * time.Millisecond)
				s := b.status()
				// Stopped, it can be looked at.
				if err := unix.Kill(s.Dispatcher, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				waiting += int(b.status().Total.Waiting)
				killed := time.Now()
				kill9(t, s.Dispatcher)
				takenBy(t, "a.sock", client{to: at(port), from: "127.0.1.1"})
				back = append(back, time.Since(killed).Round(time.Millisecond))
				eventually(t, 5*time.Second, func() error {
					if n := b.status(); n.Dispatcher == s.Dispatcher || n.Dispatcher == 0 {
						return fmt.Errorf("dispatcher %d was not replaced", s.Dispatcher)
					}
					return nil
				})
			}
			c := load.end()
			slices.Sort(back)
			// What a dispatcher had in hand was counted as accepted, no more; one
			// that it had just accepted not even that.
			n := b.status().Total
			open := int(n.Accepted - n.Delivered - n.Failed - n.Rejected - n.Waiting)
			cut := c.count(reset, empty)
			t.Logf("%s; cut %d, on hold when killed %d, in hand %d to %d", c, cut, waiting, open, open+kills)
			t.Logf("served again after: median %v, worst %v", back[kills/2], back[kills-1])
			if c.count(served)+cut != c.total() {
				t.Errorf("some clients were neither served nor cut: %s", c)
			}
			if cut > waiting+open+kills {
				t.Errorf("%d deaths cut %d clients, %d were on hold and at most %d in hand", kills, cut, waiting, open+kills)
			}
			if open > kills*fdpass.BurstMax {
				t.Errorf("%d connections are not accounted for: %+v", open, n)
			}
			if kind == "one target" && waiting > kills+2*fdpass.BurstMax {
				t.Errorf("%d were on hold at %d deaths: their place is the backlog", waiting, kills)
			}
			if back[kills/2] > backSoon {
				t.Errorf("half of the time clients are served again only after %v", back[kills/2])
			}
			if n := b.status().Restarts; int(n) != kills {
				t.Errorf("%d restarts, not %d", n, kills)
			}
		})
	}
}

// With nothing in hand, a dispatcher's death costs nobody anything: clients
// who come meanwhile wait in the backlog.
func TestDispatcherKilledIdle(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock")})
	takenBy(t, "default.sock", client{to: at(port)})
	var back []time.Duration
	for range 10 {
		dispatcher := b.status().Dispatcher
		killed := time.Now()
		kill9(t, dispatcher)
		gone(t, dispatcher, 5*time.Second)
		c := atOnce(20, to(at(port)))
		c.allServed(t, 20)
		back = append(back, time.Since(killed).Round(time.Millisecond))
	}
	slices.Sort(back)
	t.Logf("20 clients served after: median %v, worst %v", back[5], back[9])
	if back[5] > backSoon {
		t.Errorf("half of the time clients are served again only after %v", back[5])
	}
}

// A dispatcher that dies at once, again and again, does not take the binder
// along, which pauses between the attempts.
func TestDispatcherKeepsDying(t *testing.T) {
	const kills = 40
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("%d.ipv4.sock", port)), Name: "app"})
	takenBy(t, "app", client{to: at(port)})
	begun := time.Now()
	last, pauses := 0, 0
	for range kills {
		before := time.Now()
		eventually(t, 5*time.Second, func() error {
			if d := b.status().Dispatcher; d == 0 || d == last {
				return fmt.Errorf("no dispatcher yet")
			} else {
				last = d
			}
			return nil
		})
		if time.Since(before) > 500*time.Millisecond {
			pauses++
		}
		kill9(t, last)
		gone(t, last, 5*time.Second)
	}
	took := time.Since(begun).Round(time.Millisecond)
	t.Logf("%d deaths in %v, %d pauses", kills, took, pauses)
	if pauses < 5 {
		t.Errorf("%d pauses: the binder does not back off", pauses)
	}
	takenBy(t, "app", client{to: at(port)})
	if s := b.status(); s.Restarts != kills {
		t.Errorf("%d restarts, not %d", s.Restarts, kills)
	}
}

// A dispatcher that is stopped for a while loses nobody.
func TestDispatcherStopped(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock")})
	takenBy(t, "default.sock", client{to: at(port)})
	dispatcher := b.status().Dispatcher
	load := keep(16, 2*time.Millisecond, to(at(port)))
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		if err := unix.Kill(dispatcher, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		if err := unix.Kill(dispatcher, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	c := load.end()
	c.allServed(t, c.total())
	b.balance(c.total() + 1)
	if now := b.status().Dispatcher; now != dispatcher {
		t.Errorf("the dispatcher was replaced")
	}
}

// The binder is killed: its dispatcher ends, nothing stays, and a new start
// binds at once.
func TestBinderKilled(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	path := filepath.Join(filepath.Dir(dir), "in.sock")
	args := []string{"--listen", at(port), "--listen", fmt.Sprintf("[::1]:%d", port), "--listen", "unix:" + path}
	for range 3 {
		b := bindIn(t, here(), dir, args...)
		r := runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("%d.sock", port))})
		load := keep(16, 2*time.Millisecond, to(at(port)))
		time.Sleep(settled)
		s := b.status()
		kill9(t, s.PID)
		killed := time.Now()
		gone(t, s.Dispatcher, 5*time.Second)
		t.Logf("the dispatcher ended after %v", time.Since(killed).Round(time.Millisecond))
		nobodyLeft(t, b.pid())
		c := load.end()
		if c.count(served) == 0 || c.count(broken, crossed, late) > 0 {
			t.Errorf("clients of a binder that was killed: %s", c)
		}
		r.stop(t)
	}
	b := bindIn(t, here(), dir, args...)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock")})
	for _, address := range []string{at(port), fmt.Sprintf("[::1]:%d", port), path} {
		takenBy(t, "default.sock", client{to: address})
	}
	files, err := filepath.Glob(dir + ".control*")
	if err != nil || len(files) != 1 || files[0] != dir+".control" {
		t.Errorf("control sockets: %v (%v)", files, err)
	}
}

// nobodyLeft waits until no process of a group is left.
func nobodyLeft(t *testing.T, group int) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		if left := groupMembers(t, group); len(left) > 0 {
			return fmt.Errorf("processes are left: %v", left)
		}
		return nil
	})
}

// groupMembers are the live processes of a process group.
func groupMembers(t *testing.T, group int) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var members []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || processState(pid) == 0 {
			continue
		}
		if g, err := unix.Getpgid(pid); err == nil && g == group {
			members = append(members, pid)
		}
	}
	return members
}

// TERM lets nobody in any more, delivers what is on hold and in the backlog,
// and ends with 0.
func TestTermDrains(t *testing.T) {
	const clients = 50
	for _, kind := range []string{"one target", "several targets"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			text := twoTargets(port, "")
			if kind == "one target" {
				text = listenerFor(port) + "[[rule]]\ntarget = \"DIR/a.sock\"\n"
			}
			b := bindConfig(t, text)
			s := b.status()
			c := begin(clients, from("127.0.1.1", at(port)))
			if kind == "one target" {
				b.waiting(1)
				time.Sleep(100 * time.Millisecond) // the others are in the backlog
			} else {
				b.waiting(clients)
			}
			b.signal(unix.SIGTERM)
			b.signal(unix.SIGTERM) // as of timeout(1), which signals process and group
			b.waitLog("stopping")
			eventually(t, 2*time.Second, func() error {
				if v := (client{to: at(port), from: "127.0.2.1", limit: time.Second}).visit(); v.outcome != refused {
					return fmt.Errorf("after TERM a client was %s", v.outcome)
				}
				return nil
			})
			if n := c.crowd.total(); n != 0 {
				t.Errorf("TERM ended %d clients: %s", n, c.crowd)
			}
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
			c.end().allServed(t, clients)
			if status := b.wait(5 * time.Second); status != 0 {
				t.Errorf("exit %d", status)
			}
			gone(t, s.Dispatcher, 5*time.Second)
			if _, err := os.Lstat(b.dir + ".control"); err == nil && os.Geteuid() != 0 {
				t.Errorf("the control socket is still there")
			}
			for _, bad := range []string{"error", "listener is dead"} {
				if strings.Contains(b.log.String(), bad) {
					t.Errorf("the log has %q", bad)
				}
			}
		})
	}
}

// TERM under load: every client is served or was never let in.
func TestTermUnderLoad(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Take: 200 * time.Microsecond})
	takenBy(t, "default.sock", client{to: at(port)})
	load := keep(32, time.Millisecond, to(at(port)))
	time.Sleep(200 * time.Millisecond)
	b.signal(unix.SIGTERM)
	if status := b.wait(5 * time.Second); status != 0 {
		t.Errorf("exit %d", status)
	}
	c := load.end()
	t.Log(c)
	// A client whose handshake ends between the last accept and the close
	// is reset by the kernel; nobody can prevent that.
	if n := c.count(empty, late, crossed, broken); n > 0 || c.count(reset) > 32 || c.count(served) == 0 {
		t.Errorf("%s", c)
	}
}

// sameStop is longer than the binder takes two TERM signals for one.
const sameStop = 150 * time.Millisecond

// A second TERM, or INT, ends at once, and what waits is reset.
func TestEndsNow(t *testing.T) {
	tests := []struct {
		name    string
		signals []unix.Signal
	}{
		{"TERM TERM", []unix.Signal{unix.SIGTERM, unix.SIGTERM}},
		{"INT", []unix.Signal{unix.SIGINT}},
		{"TERM INT", []unix.Signal{unix.SIGTERM, unix.SIGINT}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const clients = 10
			port := freePort(t)
			b := bindConfig(t, twoTargets(port, ""))
			s := b.status()
			c := begin(clients, from("127.0.1.1", at(port)))
			b.waiting(clients)
			for i, signal := range tt.signals {
				if i > 0 {
					b.waitLog("stopping")
					time.Sleep(sameStop)
				}
				b.signal(signal)
			}
			if status := b.wait(5 * time.Second); status != 0 {
				t.Errorf("exit %d", status)
			}
			gone(t, s.Dispatcher, 5*time.Second)
			if n := c.end().count(reset); n != clients {
				t.Errorf("clients on hold: %s", c.crowd)
			}
			t.Log(c.crowd)
			nobodyLeft(t, b.pid())
		})
	}
}
