package netns

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// limited is a listener on every loopback address, of either family, whose
// connections go to a.sock; limit is more keys of the listener.
func limited(port int, limit string) string {
	return fmt.Sprintf("[[listener]]\nname = \"in\"\naddress = \":%d\"\n%s\n[[rule]]\ntarget = \"DIR/a.sock\"\n", port, limit)
}

// A rate lets as many pass as it says, all at once if none came before, and the
// rest waits in the backlog: nobody is reset, nothing is accepted meanwhile.
func TestRateOfListener(t *testing.T) {
	const clients = 60 // 20 at once, then 20 a second
	const limit = "rate = \"20/s\"\n"
	for _, kind := range []string{"listener", "sole rule"} {
		t.Run(kind, func(t *testing.T) {
			port := freePort(t)
			text := limited(port, limit)
			if kind == "sole rule" {
				text = limited(port, "") + limit
			}
			b := bindConfig(t, text)
			runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
			begun := time.Now()
			load := begin(clients, to(at(port)))
			time.Sleep(500 * time.Millisecond)
			n := b.status().Total.Accepted
			if most := 21 + 20*time.Since(begun).Seconds(); n < 20 || float64(n) > most {
				t.Errorf("after half a second %d were accepted, expected 20 to %.0f", n, most)
			}
			c := load.end()
			took := time.Since(begun)
			t.Log(took, c)
			c.allServed(t, clients)
			if took < 1800*time.Millisecond || took > 4*time.Second {
				t.Errorf("%d took %v, expected 2 s", clients, took)
			}
			b.balance(clients)
		})
	}
}

// A rule that takes only some of a listener's connections keeps its own waiting,
// and the others pass.
func TestRateOfRule(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, listenerFor(port)+`
[[rule]]
remote = "127.0.2.0/24"
target = "DIR/b.sock"
rate   = "10/s"
[[rule]]
target = "DIR/a.sock"
`)
	receiversOf(t, b, 0, "a.sock", "b.sock")
	slow := begin(30, from("127.0.2.1", at(port)))
	begun := time.Now()
	quick := rounds(4, 200, from("127.0.1.1", at(port)))
	quick.allServed(t, 200)
	t.Log("others:", quick)
	if quick.p99() > noticeable {
		t.Errorf("others waited: %s", quick)
	}
	c := slow.end()
	t.Log(time.Since(begun), c)
	c.allServed(t, 30)
	if took := time.Since(begun); took < 1500*time.Millisecond {
		t.Errorf("30 passed in %v, the rate is 10/s", took)
	}
	b.balance(230)
}

// With over = "reject" what exceeds a limit is reset at once, and counted.
func TestRateRejects(t *testing.T) {
	for name, limit := range map[string]string{"rate": `rate = "10/m"`, "per_source": `per_source = "10/m"`} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, limited(port, limit+"\nover = \"reject\""))
			receiversOf(t, b, 0, "a.sock")
			c := atOnce(25, from("127.0.0.1", at(port)))
			if c.count(served) != 10 || c.count(reset) != 15 {
				t.Error(c)
			}
			b.balance(25)
			if s := b.status(); s.Total.Rejected != 15 {
				t.Errorf("%+v", s.Total)
			}
			other := client{to: at(port), from: "127.0.3.3"}.visit()
			if want := map[string]string{"rate": reset, "per_source": served}[name]; other.outcome != want {
				t.Errorf("another source was %s", other.outcome)
			}
		})
	}
}

// Sources are told apart by address, and in IPv6 by /64, /56 and /48.
func TestRatePerSource(t *testing.T) {
	ns, port := anyIPv6(t), freePort(t)
	b := bindConfigIn(t, ns, socketDir(t), limited(port, "per_source = { host = \"4/m\", v6_56 = \"6/m\", v6_48 = \"9/m\" }\nover = \"reject\""))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "a.sock")})
	visits := func(n int, from string) (passed int) {
		for range n {
			v := inNamespace(ns, client{to: fmt.Sprintf("[2001:db8:ffff::1]:%d", port), from: from})
			if v.outcome == served {
				passed++
			} else if v.outcome != reset {
				t.Fatalf("%s: %s: %v", from, v.outcome, v.err)
			}
		}
		return passed
	}
	for _, step := range []struct {
		from   string
		passes int
	}{
		{"2001:db8:1:1::1", 4}, {"2001:db8:1:1::2", 0}, // the same /64
		{"2001:db8:1:2::1", 2}, {"2001:db8:1:3::1", 0}, // the same /56
		{"2001:db8:1:100::1", 3}, {"2001:db8:1:200::1", 0}, // the same /48
		{"2001:db8:2::1", 4},
	} {
		if n := visits(6, step.from); n != step.passes {
			t.Errorf("%d of 6 from %s passed, expected %d", n, step.from, step.passes)
		}
	}
}

// nobody is a plain listener that takes connections and closes them: a flood of it
// costs the machine the same, and socketbox nothing.
func nobody(t *testing.T, ns namespace, host string) (address string) {
	t.Helper()
	port := freePort(t)
	address = net.JoinHostPort(host, strconv.Itoa(port))
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}
	err := error(nil)
	if ns.name != "" {
		err = inside(ns.name, listen)
	} else {
		err = listen()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return address
}

// flood lets clients come as fast as they can, and others now and then, for a
// while: first with the flood aimed at nobody, then at socketbox. Nothing of the others is
// lost. It returns the flood and the others.
func flood(t *testing.T, b *box, ns namespace, of, regular func(int) client) (attack, others *crowd) {
	t.Helper()
	const d = 2 * time.Second
	host, _, err := net.SplitHostPort(of(1).to)
	if err != nil {
		t.Fatal(err)
	}
	plain := nobody(t, ns, host)
	beside := func(flood func(int) client) (bad, good *crowd) {
		attack := keep(32, 0, flood)
		time.Sleep(300 * time.Millisecond)
		others := keep(2, 5*time.Millisecond, regular)
		time.Sleep(d)
		good = others.end()
		return attack.end(), good
	}
	_, alone := beside(func(i int) client {
		c := of(i)
		c.to = plain
		return c
	})
	attack, others = beside(of)
	t.Logf("others beside the same flood of a port that is not socketbox's: %s", alone)
	t.Logf("others beside the flood: %s", others)
	t.Logf("the flood: %s", attack)
	t.Logf("memory: dispatcher %s, binder %s", rss(t, b.status().Dispatcher), rss(t, b.binderPID()))
	alone.allServed(t, alone.total())
	others.allServed(t, others.total())
	if others.p99() > max(2*alone.p99(), noticeable) {
		t.Errorf("others waited: %s, else %s", others, alone)
	}
	b.balance(alone.total() + attack.total() + others.total())
	return attack, others
}

// manySources are ten thousand clients who come once or twice.
func manySources(port int) func(int) client {
	return func(i int) client {
		return client{to: at(port), from: fmt.Sprintf("127.9.%d.%d", i/250%40, 1+i%250)}
	}
}

// One source floods a listener with a limit per source: the others don't notice, and
// when it has stopped it is served again within the second that docs promise.
func TestFloodFromOneSource(t *testing.T) {
	for _, over := range []string{"wait", "reject"} {
		t.Run(over, func(t *testing.T) {
			port := freePort(t)
			b := bindConfig(t, limited(port, "per_source = \"500/s\"\nover = \""+over+"\""))
			receiversOf(t, b, 0, "a.sock")
			attack, _ := flood(t, b, here(), from("127.8.0.1", at(port)), manySources(port))
			if attack.count(served) > 500*6 { // a bucket, what waits at the end, and some seconds
				t.Errorf("the flood passed: %s", attack)
			}
			servedAgain(t, from("127.8.0.1", at(port)))
		})
	}
}

// servedAgain fails the test unless a source is as any other a second after its
// flood.
func servedAgain(t *testing.T, of func(int) client) {
	t.Helper()
	time.Sleep(time.Second)
	again := atOnce(20, of)
	again.allServed(t, 20)
	if again.p99() > noticeable {
		t.Errorf("a second after the flood its source still waits: %s", again)
	}
}

// anyIPv6 is a namespace in which a client may have any address of 2001:db8::/32.
func anyIPv6(t *testing.T) namespace {
	t.Helper()
	needRoot(t)
	ns := ipNetns(t)
	ns.ip(t, "-6 route add local 2001:db8::/32 dev lo")
	mustRun(t, "ip", "netns", "exec", ns.name, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind")
	return ns
}

// A flood from all over one /64 is one source.
func TestFloodFromOneNetwork(t *testing.T) {
	ns, port := anyIPv6(t), freePort(t)
	b := bindConfigIn(t, ns, socketDir(t), limited(port, "per_source = \"500/s\""))
	receiversOf(t, b, 0, "a.sock")
	of := func(format string) func(int) client {
		return func(i int) client {
			return client{in: ns.name, to: fmt.Sprintf("[2001:db8:ffff::1]:%d", port), from: fmt.Sprintf(format, i&0xffff)}
		}
	}
	attack, _ := flood(t, b, ns, of("2001:db8:1:1::%x"), of("2001:db8:2:%x::1"))
	if attack.count(served) > 500*6 { // a bucket, what waits at the end, and some seconds
		t.Errorf("the flood passed: %s", attack)
	}
	servedAgain(t, of("2001:db8:1:1:2::%x"))
}

// A flood from as many addresses as there can be: the memory for sources is bounded.
// (TestBucketsBounded has a million, and `make bench` lets a million connect.)
func TestFloodFromManySources(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, limited(port, "per_source = \"5/m\""))
	receiversOf(t, b, 0, "a.sock")
	before := kibibytes(t, rss(t, b.status().Dispatcher))
	attack, _ := flood(t, b, here(), func(i int) client {
		return client{to: at(port), from: fmt.Sprintf("127.%d.%d.%d", 10+i/62500%200, i/250%250, 1+i%250)}
	}, manySources(port))
	grown := kibibytes(t, rss(t, b.status().Dispatcher)) - before
	t.Logf("%d sources took %d KiB", attack.total(), grown)
	if grown > 8192 {
		t.Errorf("%d sources took %d KiB, expected 1 MiB and what the collector leaves", attack.total(), grown)
	}
	attack.allServed(t, attack.total())
}

// kibibytes reads a size such as "4096 kB".
func kibibytes(t *testing.T, size string) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(size, "%d kB", &n); err != nil {
		t.Fatalf("%q: %v", size, err)
	}
	return n
}

// What waits for a rate is delivered when socketbox ends, and outlives a reload and a
// takeover.
func TestRateEndAndReload(t *testing.T) {
	const clients = 10
	port := freePort(t)
	text := listenerFor(port) + "[[rule]]\nremote = \"127.0.2.0/24\"\ntarget = \"DIR/a.sock\"\nrate = \"1/h\"\n"
	b := bindConfig(t, text)
	receiversOf(t, b, 0, "a.sock")
	takenBy(t, "a.sock", client{to: at(port), from: "127.0.2.1"})
	load := begin(clients, from("127.0.2.1", at(port)))
	b.waiting(clients)
	b.hup("configuration reloaded") // its rates begin afresh: one more passes
	b.waiting(clients - 1)
	b = b.takeOver("--config", filepath.Join(filepath.Dir(b.dir), "socketbox.toml"))
	b.waiting(clients - 2)
	b.balanceLater(clients)
	b.signal(15)
	load.end().allServed(t, clients)
	if status := b.wait(5 * time.Second); status != 0 {
		t.Errorf("ended with %d", status)
	}
}

// balanceLater fails the test if accepted connections are missing in the counts
// of an instance that still has some waiting.
func (b *box) balanceLater(least int) {
	b.t.Helper()
	c := b.status().Total
	if c.Accepted < uint64(least) || c.Accepted != c.Delivered+c.Rejected+c.Failed+c.Waiting {
		b.t.Errorf("the counts don't add up: %+v", c)
	}
}
