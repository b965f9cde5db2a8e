package netns

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketbox returns a command of the program in ns, as uid unless that is 0.
func socketbox(t *testing.T, ns namespace, uid int, args ...string) *exec.Cmd {
	t.Helper()
	program := filepath.Join(programs, "socketbox")
	if uid != 0 {
		program = publicCopy(t, program)
	}
	return ns.command(asUser(uid, append([]string{program}, args...)...)...)
}

// outcome runs a command and returns its output and exit status.
func outcome(t *testing.T, cmd *exec.Cmd) (string, int) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatalf("%s: %v", cmd, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// expect runs a command and fails the test unless it ends with status and its
// output has all of words.
func expect(t *testing.T, cmd *exec.Cmd, status int, words ...string) {
	t.Helper()
	out, got := outcome(t, cmd)
	if got != status {
		t.Errorf("%s: exit %d, expected %d:\n%s", cmd, got, status, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("%s: does not say %q:\n%s", cmd, w, out)
		}
	}
}

// hup has the binder reload and waits until the log has text once more.
func (b *box) hup(text string) {
	b.t.Helper()
	before := strings.Count(b.log.String(), text)
	b.signal(unix.SIGHUP)
	eventually(b.t, 5*time.Second, func() error {
		if strings.Count(b.log.String(), text) > before {
			return nil
		}
		return fmt.Errorf("after HUP the log does not say %q:\n%s", text, b.log)
	})
}

// listeners is a configuration with a listener on 127.0.0.1 for each port.
func listeners(ports ...int) string {
	text := ""
	for _, p := range ports {
		text += fmt.Sprintf("[[listener]]\nname = \"p%d\"\naddress = \"127.0.0.1:%d\"\nhandoff = \"connection\"\n", p, p)
	}
	return text
}

// HUP under load, ten times, with a listener that goes and comes: nothing is
// lost on the one that stays, and on the other one nobody who was let in.
func TestReloadUnderLoad(t *testing.T) {
	const reloads = 10
	stays, moves := freePort(t), freePort(t)
	b := bindConfig(t, listeners(stays))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock"), Take: 100 * time.Microsecond})
	takenBy(t, "default.sock", client{to: at(stays)})
	fixed := keep(16, time.Millisecond, to(at(stays)))
	other := keep(4, time.Millisecond, to(at(moves)))
	dispatcher := b.status().Dispatcher
	for range reloads {
		putConfig(t, b.dir, listeners(stays, moves))
		b.hup("configuration reloaded")
		time.Sleep(60 * time.Millisecond)
		putConfig(t, b.dir, listeners(stays))
		b.hup("configuration reloaded")
		time.Sleep(20 * time.Millisecond)
	}
	c := fixed.end()
	t.Log("the listener that stays:", c)
	c.allServed(t, c.total())
	o := other.end()
	t.Log("the other one:", o)
	// A handshake that ends between the last accept and the close is reset by
	// the kernel.
	if o.count(served, refused)+o.count(reset) != o.total() || o.count(reset) > 4*reloads || o.count(served) == 0 {
		t.Errorf("the other listener: %s", o)
	}
	s := b.status()
	if n := int(s.Total.Accepted); n != c.total()+1 || len(s.Listeners) != 1 {
		t.Errorf("after %d reloads the listener that stays has accepted %d, not %d", reloads, n, c.total()+1)
	}
	if s.Dispatcher != dispatcher {
		t.Errorf("the dispatcher was replaced")
	}
}

// Those on hold when the configuration changes go where it says now.
func TestReloadMovesWhoWaits(t *testing.T) {
	const clients = 20
	port := freePort(t)
	b := bindConfig(t, twoTargets(port, ""))
	c := begin(clients, from("127.0.1.1", at(port)))
	b.waiting(clients)
	putConfig(t, b.dir, listenerFor(port)+"[[rule]]\ntarget = \"DIR/new.sock\"\n")
	b.hup("configuration reloaded")
	b.waiting(clients)
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "new.sock")})
	c.end().allServed(t, clients)
	b.balance(clients)
}

// Those on hold whose listener a reload removes are still served, by what the
// rules say of them now, and do not harm the others.
func TestReloadRemovesListener(t *testing.T) {
	const clients = 10
	stays, goes := freePort(t), freePort(t)
	rule := "[[rule]]\ntarget = \"%s\"\n"
	byName := fmt.Sprintf(rule, "DIR/{listener}.sock")
	b := bindConfig(t, listeners(stays, goes)+byName)
	dispatcher := b.status().Dispatcher
	first := begin(clients, to(at(stays)))
	second := begin(clients, to(at(goes)))
	eventually(t, 5*time.Second, func() error {
		if s := b.status(); s.Listeners[0].Waiting == 0 || s.Listeners[1].Waiting == 0 {
			return fmt.Errorf("not both wait: %+v", s.Listeners)
		}
		return nil
	})
	time.Sleep(100 * time.Millisecond) // the others are in the backlogs
	putConfig(t, b.dir, listeners(stays)+byName)
	b.hup("no longer listening")
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, fmt.Sprintf("p%d.sock", stays)), Name: "stays"})
	first.end().allServed(t, clients)
	if n := second.crowd.total(); n != 0 {
		t.Errorf("%d clients of the listener that was removed have ended: %s", n, second.crowd)
	}
	putConfig(t, b.dir, listeners(stays)+fmt.Sprintf(rule, "DIR/all.sock"))
	b.hup("configuration reloaded")
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "all.sock"), Name: "all"})
	second.end().allServed(t, clients)
	takenBy(t, "all", client{to: at(stays)})
	if now := b.status().Dispatcher; now != dispatcher {
		t.Errorf("the dispatcher was replaced")
	}
}

// A file with errors changes nothing; the log names each with its place.
func TestReloadBroken(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, listeners(port))
	file := filepath.Join(filepath.Dir(b.dir), "socketbox.toml")
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock")})
	tests := []struct{ text, place string }{
		{listeners(port) + "[[rule]]\ntarget = \"nobody\"\n", ":6:10: "},
		{listeners(port) + "\n  colour = 1\n", ":6:3: "},
		{"[[listener]\n", ":1:"},
	}
	for _, tt := range tests {
		putConfig(t, b.dir, tt.text)
		b.hup(file + tt.place)
		expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, file), 1, file+tt.place)
		takenBy(t, "default.sock", client{to: at(port)})
	}
	putConfig(t, b.dir, listeners(port)+fmt.Sprintf("[[listener]]\naddress = \"192.0.2.1:%d\"\n", port))
	b.hup(fmt.Sprintf("192.0.2.1:%d", port))
	expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, file), 1, fmt.Sprintf("192.0.2.1:%d", port))
	takenBy(t, "default.sock", client{to: at(port)})
	if s := b.status(); len(s.Listeners) != 1 {
		t.Errorf("%d listeners", len(s.Listeners))
	}
	for _, key := range []string{"dir = \"/run/elsewhere\"", "user = \"daemon\"", "guard = \"off\""} {
		putConfig(t, b.dir, key+"\n"+listeners(port))
		name, _, _ := strings.Cut(key, " ")
		if name == "dir" {
			continue // --dir is in force
		}
		expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, file), 1, name+" changes", "restart")
	}
	putConfig(t, b.dir, listeners(port))
	expect(t, socketbox(t, here(), 0, "reload", "--dir", b.dir, file), 0, "reloaded")
	takenBy(t, "default.sock", client{to: at(port)})
}

// A new `dir` needs a restart, and the answer says so.
func TestReloadRefusesNewDir(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	file := putConfig(t, dir, "dir = \"DIR\"\n"+listeners(port))
	b := &box{process: start(t, socketbox(t, here(), 0, "bind", "--config", file)), dir: dir}
	b.waitLog("serving")
	putConfig(t, dir, "dir = \"DIR.new\"\n"+listeners(port))
	expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, file), 1, "dir changes", "restart")
	putConfig(t, dir, "dir = \"DIR\"\n"+listeners(port))
	expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, file), 0, "reloaded")
}

// `socketbox reload` by root brings a listener that the instance may not bind:
// it has no capability. Nobody else may do that.
func TestReloadByRoot(t *testing.T) {
	ns := ipNetns(t)
	dir := socketDir(t)
	file := putConfig(t, dir, listeners(8080))
	b := bindIn(t, ns, dir, "--config", file)
	runReceiver(t, &receiver{Path: filepath.Join(dir, "default.sock")})
	reload := func(uid int) *exec.Cmd { return socketbox(t, ns, uid, "reload", "--dir", dir, file) }

	putConfig(t, dir, listeners(8080, 90))
	b.hup("permission denied")
	if v := inNamespace(ns, client{to: at(90)}); v.outcome != refused {
		t.Errorf("after a HUP that must fail a client of port 90 was %s", v.outcome)
	}
	expect(t, reload(0), 0, "reloaded")
	for _, port := range []int{90, 8080} {
		if v := inNamespace(ns, client{to: at(port)}); v.outcome != served {
			t.Errorf("a client of port %d was %s (%v)", port, v.outcome, v.err)
		}
	}
	// What root has brought stays over a HUP of the same configuration.
	b.hup("configuration reloaded")
	if v := inNamespace(ns, client{to: at(90)}); v.outcome != served {
		t.Errorf("after HUP a client of port 90 was %s (%v)", v.outcome, v.err)
	}
	putConfig(t, dir, listeners(8080))
	b.hup("no longer listening")
	if v := inNamespace(ns, client{to: at(90)}); v.outcome != refused {
		t.Errorf("after its listener was removed a client was %s", v.outcome)
	}
	t.Run("ordinary user", func(t *testing.T) {
		needRoot(t)
		putConfig(t, dir, listeners(8080, 8081))
		expect(t, reload(12345), 1, "permission denied", "root")
		group := groupOf(t, dir)
		// The socketbox group may ask for the status, and change nothing.
		expect(t, socketbox(t, ns, group, "status", "--dir", dir), 0, "127.0.0.1:8080")
		expect(t, reload(group), 1, "may not change", "root")
		if n := len(b.status().Listeners); n != 1 {
			t.Errorf("%d listeners", n)
		}
	})
	if s := b.status(); s.Restarts != 0 {
		t.Errorf("%d dispatchers died", s.Restarts)
	}
}

// A configuration that root alone may read is said at start to be out of HUP's
// reach; `socketbox reload` by root takes it.
func TestReloadSecretConfig(t *testing.T) {
	needRoot(t)
	first, second := freePort(t), freePort(t)
	dir := socketDir(t)
	file := putConfig(t, dir, listeners(first))
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	b := bindIn(t, here(), dir, "--config", file)
	if log := b.log.String(); !strings.Contains(log, "can't read "+file) || !strings.Contains(log, "HUP can't reload it") {
		t.Errorf("no warning at start:\n%s", log)
	}
	runReceiver(t, &receiver{Path: filepath.Join(dir, "default.sock")})
	putConfig(t, dir, listeners(first, second))
	b.hup("permission denied")
	takenBy(t, "default.sock", client{to: at(first)})
	if v := (client{to: at(second)}).visit(); v.outcome != refused {
		t.Errorf("after a HUP that must fail a client was %s", v.outcome)
	}
	expect(t, socketbox(t, here(), 0, "reload", "--dir", dir, file), 0, "reloaded")
	takenBy(t, "default.sock", client{to: at(first)})
	takenBy(t, "default.sock", client{to: at(second)})
}

// What the service manager is told, and when.
func TestNotify(t *testing.T) {
	port := freePort(t)
	dir := socketDir(t)
	file := putConfig(t, dir, listeners(port))
	manager := newManager(t, filepath.Join(filepath.Dir(dir), "notify"))
	cmd := socketbox(t, here(), 0, "bind", "--dir", dir, "--config", file)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.path)
	b := &box{process: start(t, cmd), dir: dir}
	manager.hears(t, "READY=1", "STATUS=serving 1 listeners, 0 rules")
	if v := (client{to: at(port), limit: time.Second}).visit(); v.outcome != late {
		t.Errorf("at READY a client was %s", v.outcome) // nobody receives yet: it waits
	}
	before := monotonicMicros()
	b.signal(unix.SIGHUP)
	said := manager.hears(t, "RELOADING=1", "MONOTONIC_USEC=")
	_, stamp, _ := strings.Cut(said, "MONOTONIC_USEC=")
	stamp, _, _ = strings.Cut(stamp, "\n")
	if n, err := strconv.ParseInt(stamp, 10, 64); err != nil || n < before || n > monotonicMicros() {
		t.Errorf("MONOTONIC_USEC=%s (%v), it was %d at the signal", stamp, err, before)
	}
	manager.hears(t, "READY=1", "STATUS=serving 1 listeners, 0 rules")
	// A reload that fails ends as well, else the manager would wait for ever.
	putConfig(t, dir, "broken")
	b.signal(unix.SIGHUP)
	manager.hears(t, "RELOADING=1", "MONOTONIC_USEC=")
	manager.hears(t, "READY=1")
	b.signal(unix.SIGTERM)
	manager.hears(t, "STOPPING=1", "STATUS=")
}

func monotonicMicros() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano() / 1000
}

// manager stands in for a service manager's notification socket.
type manager struct {
	path  string
	conn  *net.UnixConn
	store map[string]*os.File // descriptors that it was given to keep, by FDNAME
}

func newManager(t *testing.T, path string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		err = os.Chmod(path, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path, conn, map[string]*os.File{}}
	t.Cleanup(func() {
		conn.Close()
		for _, f := range m.store {
			f.Close()
		}
	})
	return m
}

// hears waits for the next message that is not about stored descriptors and
// fails the test unless it has all words.
func (m *manager) hears(t *testing.T, words ...string) string {
	t.Helper()
	said := ""
	for stored := true; stored; {
		said, stored = m.receive(t, words)
	}
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("the service manager was told %q, expected %q", said, w)
		}
	}
	return said
}

// receive reads one message; stored says that it was about the store.
func (m *manager) receive(t *testing.T, words []string) (said string, stored bool) {
	t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 256)
	m.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatalf("the service manager waits for %q: %v", words, err)
	}
	said = string(buf[:n])
	_, name, _ := strings.Cut(said, "FDNAME=")
	switch {
	case strings.HasPrefix(said, "FDSTORE=1\n"):
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			t.Fatalf("%q brings %d control messages (%v)", said, len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%q brings %d descriptors (%v)", said, len(fds), err)
		}
		unix.CloseOnExec(fds[0])
		if again := m.store[name]; again != nil {
			again.Close()
		}
		m.store[name] = os.NewFile(uintptr(fds[0]), name)
		return said, true
	case strings.HasPrefix(said, "FDSTOREREMOVE=1\n"):
		if f := m.store[name]; f != nil {
			f.Close()
			delete(m.store, name)
		}
		return said, true
	}
	return said, false
}

// passTo has cmd get what is stored, as sd_listen_fds(3) has it.
func (m *manager) passTo(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	if len(m.store) == 0 {
		return cmd
	}
	var names []string
	for name, f := range m.store {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Args = append([]string{"/bin/sh", "-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return cmd
}

// Sockets that come by LISTEN_FDS are served, with or without a configuration
// that describes them.
func TestListenFDs(t *testing.T) {
	for _, kind := range []string{"alone", "configured"} {
		t.Run(kind, func(t *testing.T) {
			var plain net.ListenConfig
			plain.SetMultipathTCP(false)
			web, err := plain.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer web.Close()
			address := web.Addr().String()
			file, err := web.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			dir := socketDir(t)
			args := "bind --dir " + dir
			name := "web"
			if kind == "configured" {
				name = "named-in-file"
				args += " --config " + putConfig(t, dir, fmt.Sprintf("[[listener]]\nname = %q\naddress = %q\n", name, address))
			}
			cmd := exec.Command("sh", "-c", "export LISTEN_PID=$$; exec "+filepath.Join(programs, "socketbox")+" "+args)
			cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
			cmd.ExtraFiles = []*os.File{file}
			b := &box{process: start(t, cmd), dir: dir}
			b.waitLog("serving")
			// The file's other copies are closed: what is served is the
			// binder's alone.
			file.Close()
			web.Close()
			runReceiver(t, &receiver{Path: filepath.Join(dir, "default.sock")})
			atOnce(20, to(address)).allServed(t, 20)
			if s := b.status(); len(s.Listeners) != 1 || s.Listeners[0].Name != name || s.Listeners[0].Address != address {
				t.Errorf("listeners: %+v", s.Listeners)
			}
			b.balance(20)
		})
	}
	t.Run("of another process", func(t *testing.T) {
		cmd := socketbox(t, here(), 0, "bind", "--dir", socketDir(t))
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_PID=1")
		expect(t, cmd, 1, "nothing to listen on")
	})
}

// Everything that can't be bound is reported, each with its address, and
// nothing stays bound.
func TestBindErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port, dir := freePort(t), socketDir(t)
	addresses := []string{
		at(port),
		fmt.Sprintf("192.0.2.1:%d", port),
		taken.Addr().String(),
		fmt.Sprintf("[2001:db8::1]:%d", port),
		"unix:/nowhere/in.sock",
	}
	args := []string{"bind", "--dir", dir}
	for _, a := range addresses {
		args = append(args, "--listen", a)
	}
	out, status := outcome(t, socketbox(t, here(), 0, args...))
	if status != 1 {
		t.Errorf("exit %d", status)
	}
	for i, a := range addresses {
		lines := 0
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "socketbox: error: ") && strings.Contains(line, strings.TrimPrefix(a, "unix:")) {
				lines++
			}
		}
		if want := min(i, 1); lines != want {
			t.Errorf("%d error lines about %s, not %d:\n%s", lines, a, want, out)
		}
	}
	if !strings.Contains(out, "hint: ") {
		t.Errorf("no hint:\n%s", out)
	}
	if !isFree(port) {
		t.Errorf("port %d stays bound", port)
	}
	if _, err := os.Lstat(dir + ".control"); err == nil {
		t.Errorf("a control socket is left")
	}
}

// A second instance on the same port fails and says where; the first one does
// not notice. On another port both live side by side.
func TestTwoInstances(t *testing.T) {
	port, other := freePort(t), freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock")})
	takenBy(t, "default.sock", client{to: at(port)})
	for _, dir := range []string{b.dir, socketDir(t)} {
		expect(t, socketbox(t, here(), 0, "bind", "--dir", dir, "--listen", at(port)), 1,
			"socketbox: error: bind "+at(port)+": address already in use", "hint: ")
		takenBy(t, "default.sock", client{to: at(port)})
	}
	second := bindIn(t, here(), b.dir, "--listen", at(other))
	takenBy(t, "default.sock", client{to: at(other)})
	takenBy(t, "default.sock", client{to: at(port)})
	if pid := b.status().PID; pid != b.pid() {
		t.Errorf("status speaks of %d, not of the first instance %d", pid, b.pid())
	}
	second.signal(unix.SIGTERM)
	if status := second.wait(5 * time.Second); status != 0 {
		t.Errorf("exit %d", status)
	}
	takenBy(t, "default.sock", client{to: at(port)})
}
