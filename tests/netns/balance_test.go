package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// balanced is a listener whose one target has the sockets a.sock, b.sock and
// c.sock.
func balanced(port int, balance, top string) string {
	return top + listenerFor(port) + fmt.Sprintf(`
[[rule]]
target = "shop"
[target.shop]
sockets = ["DIR/a.sock", "DIR/b.sock", "DIR/c.sock"]
balance = %q
`, balance)
}

// source is a client from one of many addresses of 127.0.0.0/8.
func source(port int) func(int) client {
	return func(i int) client {
		return client{to: at(port), from: fmt.Sprintf("127.1.%d.%d", i/250%250, 1+i%250)}
	}
}

// receiversOf starts the receivers of names in b's directory.
func receiversOf(t *testing.T, b *box, take time.Duration, names ...string) map[string]*receiver {
	t.Helper()
	all := map[string]*receiver{}
	for _, name := range names {
		all[name] = runReceiver(t, &receiver{Path: filepath.Join(b.dir, name), Take: take})
	}
	return all
}

// Each way to balance gives every receiver its share.
func TestBalanceShares(t *testing.T) {
	const clients = 900
	for balance, fair := range map[string]func(n int) bool{
		"failover":    func(n int) bool { return n == 0 || n == clients },
		"round-robin": func(n int) bool { return n >= clients/3-30 && n <= clients/3+30 }, // one that is full is passed over
		"source-hash": func(n int) bool { return n >= clients/5 && n <= clients/2 },
	} {
		t.Run(balance, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, balanced(port, balance, ""))
			receiversOf(t, b, 0, "a.sock", "b.sock", "c.sock")
			b.lives(3)
			c := rounds(4, clients, source(port))
			c.allServed(t, clients)
			t.Log(c.by)
			for _, name := range []string{"a.sock", "b.sock", "c.sock"} {
				if n := c.by[name]; !fair(n) {
					t.Errorf("%s got %d of %d", name, n, clients)
				}
			}
			b.balance(clients)
			if balance == "source-hash" {
				sameAgain(t, source(port))
			}
		})
	}
}

// lives waits until n paths are live.
func (b *box) lives(n int) {
	b.t.Helper()
	eventually(b.t, 5*time.Second, func() error {
		live := 0
		for _, p := range b.status().Paths {
			if p.Live {
				live++
			}
		}
		if live != n {
			return fmt.Errorf("%d paths live, expected %d: %+v", live, n, b.status().Paths)
		}
		return nil
	})
}

// sameAgain fails the test unless each source gets one receiver, whatever its port.
func sameAgain(t *testing.T, of func(int) client) {
	t.Helper()
	for i := range 20 {
		first := of(i).visit()
		for range 3 {
			if again := of(i).visit(); again.receiver != first.receiver {
				t.Errorf("client %d: %s, then %s", i, first.receiver, again.receiver)
			}
		}
	}
}

// A receiver ends under load, and comes back: nobody is lost, and it has its
// share again. Of source-hash only its own clients move.
func TestBalanceRestart(t *testing.T) {
	for _, balance := range []string{"failover", "round-robin", "source-hash"} {
		t.Run(balance, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, balanced(port, balance, ""))
			all := receiversOf(t, b, 200*time.Microsecond, "a.sock", "b.sock", "c.sock")
			b.lives(3)
			before := assigned(source(port))
			load := keep(16, 2*time.Millisecond, source(port))
			time.Sleep(200 * time.Millisecond)
			all["a.sock"].stop(t)
			b.lives(2)
			while := assigned(source(port))
			receiversOf(t, b, 200*time.Microsecond, "a.sock")
			b.lives(3)
			after := assigned(source(port))
			c := load.end()
			t.Log(c, c.by)
			c.allServed(t, c.total())
			if while["a.sock"] != nil {
				t.Error("a receiver that has ended took clients")
			}
			if after["a.sock"] == nil {
				t.Error("the receiver is back and gets no client")
			}
			if balance == "source-hash" {
				stayed(t, before, while, "b.sock", "c.sock")
				stayed(t, before, after, "a.sock", "b.sock", "c.sock")
			}
			b.balance(c.total() + 3*sources)
		})
	}
}

const sources = 40

// assigned tells which sources each receiver serves.
func assigned(of func(int) client) map[string]map[int]bool {
	by := map[string]map[int]bool{}
	for i := range sources {
		v := of(i).visit()
		if by[v.receiver] == nil {
			by[v.receiver] = map[int]bool{}
		}
		by[v.receiver][i] = true
	}
	return by
}

func stayed(t *testing.T, before, after map[string]map[int]bool, names ...string) {
	t.Helper()
	for _, name := range names {
		for i := range before[name] {
			if !after[name][i] {
				t.Errorf("source %d of %s has moved", i, name)
			}
		}
	}
}

// A receiver that is killed loses what is in its own queue and nothing else; the
// others serve meanwhile, and it is used again once it is back.
func TestBalanceKill(t *testing.T) {
	const kills, clients, queue = 5, 32, 12
	port := freePort(t)
	b := bindConfig(t, balanced(port, "round-robin", ""))
	receiversOf(t, b, 200*time.Microsecond, "a.sock", "b.sock")
	r := &receiver{Path: filepath.Join(b.dir, "c.sock"), Take: time.Millisecond}
	p := startReceiver(t, unshared(), 0, r)
	b.lives(3)
	load := keep(clients, 2*time.Millisecond, source(port))
	for range kills {
		time.Sleep(100 * time.Millisecond)
		p.kill()
		time.Sleep(100 * time.Millisecond)
		p = startReceiver(t, unshared(), 0, r)
		b.lives(3)
	}
	c := load.end()
	t.Log(c, c.by)
	if lost := c.total() - c.count(served); lost > kills*queue || c.count(refused) > 0 {
		t.Errorf("%d lost, expected at most the queue of %d at each of %d kills: %s", lost, queue, kills, c)
	}
	if c.by["c.sock"] == 0 {
		t.Error("the receiver that was killed got nothing")
	}
	b.balance(c.total())
}

// While nobody is there connections wait, within the target's hold; the first
// receiver that comes gets them, whichever it is. A listener with nothing else
// behind it holds one and leaves the others in its backlog.
func TestBalanceAllGone(t *testing.T) {
	const clients = 100
	for _, balance := range []string{"failover", "round-robin", "source-hash"} {
		t.Run(balance, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, balanced(port, balance, "hold = { time = \"1s\" }\n"))
			load := begin(clients, source(port))
			b.waiting(1)
			receiversOf(t, b, 0, "b.sock")
			c := load.end()
			c.allServed(t, clients)
			if c.by["b.sock"] != clients {
				t.Errorf("served by %v", c.by)
			}
			b.balance(clients)
		})
	}
	t.Run("for too long", func(t *testing.T) {
		port := freePort(t)
		b := bindConfig(t, balanced(port, "round-robin", "hold = { time = \"500ms\" }\n"))
		begun := time.Now()
		c := atOnce(10, source(port))
		if took := time.Since(begun); c.count(reset) != 10 || took < 400*time.Millisecond || took > 5*time.Second {
			t.Errorf("after %v: %s", took, c)
		}
		isReset(t, client{to: at(port)})
		b.balance(11)
		receiversOf(t, b, 0, "c.sock")
		becomesServed(t, "c.sock", client{to: at(port)})
	})
}

// becomesServed waits until clients are answered by the receiver, whatever
// happened to those before.
func becomesServed(t *testing.T, receiver string, c client) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		if v := c.visit(); v.outcome != served || v.receiver != receiver {
			return fmt.Errorf("%s by %q", v.outcome, v.receiver)
		}
		return nil
	})
}

// One receiver is stuck: with round-robin nobody waits for it but those in its
// queue; with source-hash its own clients wait, and the others don't.
func TestBalanceStuck(t *testing.T) {
	const queue = 11
	for _, balance := range []string{"round-robin", "source-hash"} {
		t.Run(balance, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, balanced(port, balance, ""))
			receiversOf(t, b, 0, "a.sock", "b.sock")
			release := stuckReceiver(t, filepath.Join(b.dir, "c.sock"))
			b.lives(3)
			load := begin(300, source(port))
			most := queue
			if balance == "source-hash" {
				most = 200 // about a third has the stuck one
			}
			eventually(t, 5*time.Second, func() error {
				if waits := 300 - load.crowd.count(served); waits > most {
					return fmt.Errorf("%d wait, expected at most %d: %s", waits, most, load.crowd)
				}
				return nil
			})
			time.Sleep(200 * time.Millisecond)
			if waits := 300 - load.crowd.count(served); waits < queue {
				t.Errorf("%d wait, the stuck receiver's queue has %d", waits, queue)
			}
			release()
			load.end().allServed(t, 300)
			b.balance(300)
		})
	}
}

// A place whose directory does not exist is passed over, and used within a second
// or two once it exists; with none, connections are reset at once.
func TestBalanceDirectories(t *testing.T) {
	port := freePort(t)
	text := listenerFor(port) + `
[[rule]]
target = "shop"
[target.shop]
sockets = ["DIR/one/", "DIR/two/"]
`
	b := bindConfig(t, text)
	isReset(t, client{to: at(port)})
	receives := func(name, file string) {
		dir := filepath.Join(b.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		runReceiver(t, &receiver{Path: filepath.Join(dir, file), Name: name, Group: groupOf(t, b.dir)})
	}
	receives("two", "default.sock")
	becomesServed(t, "two", client{to: at(port)})
	receives("one", fmt.Sprintf("%d.sock", port))
	becomes(t, "one", client{to: at(port)})
	b.hup("configuration reloaded")
	becomes(t, "one", client{to: at(port)})
	expect(t, socketbox(t, here(), 0, "explain", "--dir", b.dir, "--to", at(port)), 0, "it is delivered to "+b.dir+"/one/")
}

// explain tells which of several receivers takes a connection as the dispatcher
// does; a takeover hands over what waits for all of them.
func TestBalanceExplainAndTakeover(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	b := bindConfigIn(t, here(), dir, balanced(port, "source-hash", ""))
	load := begin(50, source(port))
	b.waiting(1)
	b = b.takeOver("--config", filepath.Join(filepath.Dir(dir), "socketbox.toml"))
	receiversOf(t, b, 0, "a.sock", "b.sock", "c.sock")
	load.end().allServed(t, 50)
	b.lives(3)
	for i := range 10 {
		c := source(port)(i)
		v := c.visit()
		expect(t, socketbox(t, here(), 0, "explain", "--dir", dir, "--to", at(port), "--from", c.from), 0, "it is delivered to "+filepath.Join(dir, v.receiver))
	}
}
