package netns

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// takenBy fails the test unless a client is answered by the receiver of that
// name. It returns how long that took.
func takenBy(t *testing.T, receiver string, c client) time.Duration {
	t.Helper()
	v := c.visit()
	if v.outcome != served || v.receiver != receiver {
		t.Errorf("a client of %s from %q was %s by %q (%v), expected %q", c.to, c.from, v.outcome, v.receiver, v.err, receiver)
	}
	return v.took
}

// becomes waits until clients are answered by the receiver of that name. All
// must be served; it returns how many there were.
func becomes(t *testing.T, receiver string, c client) (clients int) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		v := c.visit()
		clients++
		if v.outcome != served {
			t.Errorf("a client of %s was %s (%v)", c.to, v.outcome, v.err)
		}
		if v.receiver != receiver {
			return fmt.Errorf("clients of %s are still served by %q, not %q", c.to, v.receiver, receiver)
		}
		return nil
	})
	return clients
}

// isReset fails the test unless a client is reset at once.
func isReset(t *testing.T, c client) {
	t.Helper()
	if v := c.visit(); v.outcome != reset || v.took > time.Second {
		t.Errorf("a client of %s from %q was %s after %v (%v), expected an instant reset", c.to, c.from, v.outcome, v.took, v.err)
	}
}

// settled is longer than the binder waits for a better receiver.
const settled = 300 * time.Millisecond

// Which of the receivers that are there takes a connection of either family.
func TestNames(t *testing.T) {
	tests := []struct {
		there      string // names of sockets; N is the port
		ipv4, ipv6 string
	}{
		{"default", "default", "default"},
		{"N default", "N", "N"},
		{"N.ipv4 default", "N.ipv4", "N.ipv4"},
		{"N.ipv6 default", "default", "N.ipv6"},
		{"N.ipv4 N default", "N.ipv4", "N"},
		{"N.ipv4 N.ipv6 N", "N.ipv4", "N.ipv6"},
	}
	for _, tt := range tests {
		t.Run(tt.there, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			b := bind(t, "--listen", fmt.Sprintf(":%d", port))
			for name := range strings.FieldsSeq(tt.there) {
				file := strings.Replace(name, "N", strconv.Itoa(port), 1) + ".sock"
				runReceiver(t, &receiver{Path: filepath.Join(b.dir, file), Name: name})
			}
			time.Sleep(settled)
			takenBy(t, tt.ipv4, client{to: at(port)})
			takenBy(t, tt.ipv6, client{to: fmt.Sprintf("[::1]:%d", port)})
			b.balance(2)
		})
	}
}

// A less specific receiver is used when nothing better has come for 200 ms:
// a daemon binds its sockets one after another.
func TestSettling(t *testing.T) {
	t.Run("nothing better comes", func(t *testing.T) {
		port := freePort(t)
		b := bind(t, "--listen", at(port))
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Name: "default"})
		took := takenBy(t, "default", client{to: at(port)})
		if took < 150*time.Millisecond || took > 2*time.Second {
			t.Errorf("a fresh default.sock was used after %v", took)
		}
		best := time.Hour
		for range 5 {
			best = min(best, takenBy(t, "default", client{to: at(port)}))
		}
		if best > 150*time.Millisecond {
			t.Errorf("once in use, it took %v", best)
		}
	})
	t.Run("a better one comes in time", func(t *testing.T) {
		port := freePort(t)
		b := bind(t, "--listen", at(port))
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Name: "default"})
		c := begin(5, to(at(port)))
		time.Sleep(30 * time.Millisecond)
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("%d.ipv4.sock", port)), Name: "better"})
		c.end().allServed(t, 5)
		if c.crowd.by["better"] != 5 {
			t.Errorf("served by %v", c.crowd.by)
		}
	})
}

// A dead socket file means that its daemon restarts: its clients wait, though
// a less specific receiver lives.
func TestDeadSocketHolds(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	path := filepath.Join(b.dir, fmt.Sprintf("%d.sock", port))
	deadSocket(t, path)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Name: "default"})
	c := begin(5, to(at(port)))
	time.Sleep(2 * settled)
	if n := c.crowd.total(); n != 0 {
		t.Errorf("%d clients did not wait: %s %v", n, c.crowd, c.crowd.by)
	}
	runReceiver(t, &receiver{Path: path, Name: "back"})
	c.end().allServed(t, 5)
	if c.crowd.by["back"] != 5 {
		t.Errorf("served by %v", c.crowd.by)
	}
}

// Clients move to a better receiver as soon as it is there, and back when it
// has gone; none is lost.
func TestBetterReceiverAppears(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Name: "default"})
	takenBy(t, "default", client{to: at(port)})
	load := keep(4, 5*time.Millisecond, to(at(port)))
	time.Sleep(100 * time.Millisecond)
	better := runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("%d.sock", port)), Name: "better"})
	more := becomes(t, "better", client{to: at(port)})
	time.Sleep(100 * time.Millisecond)
	better.stop(t)
	takenBy(t, "default", client{to: at(port)})
	c := load.end()
	t.Log(c, c.by)
	c.allServed(t, c.total())
	if c.by["default"] == 0 || c.by["better"] == 0 {
		t.Errorf("served by %v", c.by)
	}
	b.balance(c.total() + more + 2)
}

// A directory that does not exist is no target: its clients are reset at once,
// until it is there.
func TestMissingDirectory(t *testing.T) {
	for _, target := range []string{"none/", "none/app.sock"} {
		t.Run(target, func(t *testing.T) {
			port := freePort(t)
			parent := publicDir(t)
			b := bind(t, "--listen", at(port), "--target", parent+"/"+target)
			for range 3 {
				isReset(t, client{to: at(port)})
			}
			b.balance(3)
			if failed := b.status().Total.Failed; failed != 3 {
				t.Errorf("failed is %d", failed)
			}
			b.waitLog("no such socket directory")
			if err := os.Mkdir(filepath.Join(parent, "none"), 0o755); err != nil {
				t.Fatal(err)
			}
			file := "none/app.sock"
			if strings.HasSuffix(target, "/") {
				file = fmt.Sprintf("none/%d.sock", port)
			}
			runReceiver(t, &receiver{Path: filepath.Join(parent, file), Name: "app", Group: groupOf(t, b.dir)})
			takenBy(t, "app", client{to: at(port)})
			if err := os.Rename(filepath.Join(parent, "none"), filepath.Join(parent, "away")); err != nil {
				t.Fatal(err)
			}
			eventually(t, 2*time.Second, func() error {
				if v := (client{to: at(port), limit: time.Second}).visit(); v.outcome != reset {
					return fmt.Errorf("the directory has gone, and a client was %s", v.outcome)
				}
				return nil
			})
		})
	}
}

// A socket directory that another one replaces is watched like the first.
func TestReplacedDirectory(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, listenerFor(port)+"[[rule]]\ntarget = \"DIR/app/\"\n")
	app := filepath.Join(b.dir, "app")
	file := fmt.Sprintf("%d.sock", port)
	for _, dir := range []string{app, app + ".next"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		runReceiver(t, &receiver{Path: filepath.Join(dir, "default.sock"), Name: filepath.Base(dir), Group: groupOf(t, b.dir)})
	}
	time.Sleep(settled)
	takenBy(t, "app", client{to: at(port)})
	if err := unix.Renameat2(unix.AT_FDCWD, app, unix.AT_FDCWD, app+".next", unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	clients := becomes(t, "app.next", client{to: at(port)})
	time.Sleep(settled)
	runReceiver(t, &receiver{Path: filepath.Join(app, file), Name: "better", Group: groupOf(t, b.dir)})
	clients += becomes(t, "better", client{to: at(port)})
	b.balance(clients + 1)
}

// A receiver that is put in the place of another by rename(2) takes over; what
// the other one has queued is still served.
func TestReplacedByRename(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, listenerFor(port)+"[[rule]]\ntarget = \"DIR/app.sock\"\n")
	path := filepath.Join(b.dir, "app.sock")
	old := runReceiver(t, &receiver{Path: path, Name: "v0", Take: time.Millisecond})
	takenBy(t, "v0", client{to: at(port)})
	load := keep(16, 2*time.Millisecond, to(at(port)))
	more := 1
	for i := range 5 {
		time.Sleep(50 * time.Millisecond)
		name := fmt.Sprintf("v%d", i+1)
		next := runReceiver(t, &receiver{Path: path + ".next", Name: name, Take: time.Millisecond})
		if err := os.Rename(path+".next", path); err != nil {
			t.Fatal(err)
		}
		more += becomes(t, name, client{to: at(port)})
		old.stop(t)
		old = next
	}
	c := load.end()
	t.Log(c, c.by)
	c.allServed(t, c.total())
	b.balance(c.total() + more)
}

// A target's path made of the address that the client dialled.
func TestTemplates(t *testing.T) {
	t.Run("local", func(t *testing.T) {
		port := freePort(t)
		b := bindConfig(t, fmt.Sprintf("[[listener]]\naddress = \"0.0.0.0:%d\"\n[[rule]]\ntarget = \"DIR/{local}/\"\n", port))
		const sites = 4
		for i := range sites {
			dir := filepath.Join(b.dir, fmt.Sprintf("127.0.0.%d", i+1))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			runReceiver(t, &receiver{Path: filepath.Join(dir, fmt.Sprintf("%d.ipv4.sock", port)), Name: fmt.Sprintf("site%d", i+1), Group: groupOf(t, b.dir)})
		}
		c := rounds(4, 100*sites, func(i int) client { return client{to: fmt.Sprintf("127.0.0.%d:%d", i%sites+1, port)} })
		c.allServed(t, 100*sites)
		for i := range sites {
			takenBy(t, fmt.Sprintf("site%d", i+1), client{to: fmt.Sprintf("127.0.0.%d:%d", i+1, port)})
			if n := c.by[fmt.Sprintf("site%d", i+1)]; n != 100 {
				t.Errorf("site %d had %d clients, not 100", i+1, n)
			}
		}
		isReset(t, client{to: fmt.Sprintf("127.0.0.9:%d", port)})
		b.balance(101*sites + 1)
	})
	t.Run("listener, family, port, remote", func(t *testing.T) {
		port := freePort(t)
		b := bindConfig(t, fmt.Sprintf("[[listener]]\nname = \"web\"\naddress = \"[::]:%d\"\n[[rule]]\ntarget = \"DIR/{listener}.{family}.{port}.{remote}.sock\"\n", port))
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("web.ipv4.%d.127.0.3.1.sock", port)), Name: "four"})
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("web.ipv6.%d.--1.sock", port)), Name: "six"})
		takenBy(t, "four", client{to: at(port), from: "127.0.3.1"})
		takenBy(t, "six", client{to: fmt.Sprintf("[::1]:%d", port)})
		b.balance(2)
	})
}

// The first rule that fits decides: by listener, by prefix, by port and range.
func TestRules(t *testing.T) {
	low := portRange(t, 4)
	text := ""
	for i := range 4 {
		text += fmt.Sprintf("[[listener]]\nname = \"l%d\"\naddress = \"0.0.0.0:%d\"\n", i, low+i)
	}
	text += fmt.Sprintf(`
[[rule]]
remote = ["127.0.7.0/25", "127.0.9.9"]
target = "reject"
[[rule]]
remote = "127.0.7.0/24"
target = "DIR/near.sock"
[[rule]]
listener = "l3"
target = "DIR/third.sock"
[[rule]]
port = ["%d-%d"]
local = "127.0.0.0/30"
target = "DIR/range.sock"
[[rule]]
port = %d
target = "DIR/port.sock"
`, low+1, low+3, low+2)
	b := bindConfig(t, text)
	for _, name := range []string{"near", "third", "range", "port", "default"} {
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, name+".sock"), Name: name})
	}
	time.Sleep(settled)
	tests := []struct {
		port     int // beside the first
		to, from string
		by       string // "": rejected
	}{
		{0, "127.0.0.1", "127.0.7.1", ""},
		{3, "127.0.0.1", "127.0.7.127", ""},
		{1, "127.0.0.1", "127.0.9.9", ""},
		{0, "127.0.0.1", "127.0.9.10", "default"},
		{0, "127.0.0.1", "127.0.7.128", "near"},
		{3, "127.0.0.1", "127.0.7.200", "near"},
		{3, "127.0.0.1", "127.0.8.1", "third"},
		{1, "127.0.0.1", "127.0.8.1", "range"},
		{2, "127.0.0.3", "127.0.8.1", "range"},
		{2, "127.0.0.4", "127.0.8.1", "port"},
		{1, "127.0.0.4", "127.0.8.1", "default"},
		{0, "127.0.0.1", "127.0.8.1", "default"},
	}
	rejected := 0
	for _, tt := range tests {
		c := client{to: fmt.Sprintf("%s:%d", tt.to, low+tt.port), from: tt.from}
		if tt.by == "" {
			rejected++
			isReset(t, c)
		} else {
			takenBy(t, tt.by, c)
		}
	}
	b.balance(len(tests))
	if n := b.status().Total.Rejected; int(n) != rejected {
		t.Errorf("%d rejected, not %d", n, rejected)
	}
}

// A listener in another namespace, whose clients are there; the process and
// the receiver stay where they are.
func TestListenerInNamespace(t *testing.T) {
	ns := ipNetns(t)
	port := freePort(t)
	for _, where := range []string{ns.name, "/run/netns/" + ns.name} {
		b := bindConfig(t, fmt.Sprintf("[[listener]]\naddress = \":%d\"\nnetns = %q\n", port, where))
		runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Name: "app"})
		const clients = 20
		for _, address := range []string{at(port), fmt.Sprintf("[::1]:%d", port)} {
			c := newCrowd()
			for range clients {
				c.add(inNamespace(ns, client{to: address}))
			}
			c.allServed(t, clients)
		}
		if v := (client{to: at(port)}).visit(); v.outcome != refused {
			t.Errorf("here, where nobody listens, a client was %s", v.outcome)
		}
		b.balance(2 * clients)
		b.signal(unix.SIGTERM)
		if status := b.wait(5 * time.Second); status != 0 {
			t.Errorf("exit %d", status)
		}
	}
}

// Unix stream listeners are dispatched too; their path goes when they go.
func TestUnixListener(t *testing.T) {
	path := filepath.Join(publicDir(t), "in.sock")
	b := bind(t, "--listen", "unix:"+path)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Name: "app"})
	const clients = 50
	atOnce(clients, to(path)).allServed(t, clients)
	b.balance(clients)
	if st, err := os.Stat(path); err != nil || st.Mode()&fs.ModeSocket == 0 || st.Mode().Perm() != 0o666 {
		t.Errorf("the listener's path: %v, %v", st.Mode(), err)
	}
	b.signal(unix.SIGTERM)
	if status := b.wait(5 * time.Second); status != 0 {
		t.Errorf("exit %d", status)
	}
	if v := (client{to: path}).visit(); v.outcome == served {
		t.Errorf("after its end a client was %s", v.outcome)
	}
}
