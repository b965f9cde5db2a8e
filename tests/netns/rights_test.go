package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Ordinary users of this machine; they need no entry in its user database.
const (
	appUser    = 12345
	otherUser  = 12346
	intruderID = 12347
)

// The main socket directory and what is beside it have the rights of the
// design.
func TestMainDirectory(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	dir := socketDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil { // is mended in place
		t.Fatal(err)
	}
	var before unix.Stat_t
	if err := unix.Stat(dir, &before); err != nil {
		t.Fatal(err)
	}
	b := bindIn(t, here(), dir, "--listen", at(port))
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	gid := socketboxGroup(t, b)
	if st.Ino != before.Ino || st.Mode&0o7777 != 0o3771 || st.Uid != 0 || int(st.Gid) != gid {
		t.Errorf("main directory: inode %d (was %d), mode %04o, owner %d:%d (group of the binder: %d)",
			st.Ino, before.Ino, st.Mode&0o7777, st.Uid, st.Gid, gid)
	}
	if err := unix.Stat(dir+".control", &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o660 || st.Uid != 0 || int(st.Gid) != gid {
		t.Errorf("control socket: mode %04o, owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	}
}

// socketboxGroup is the group that the binder runs with.
func socketboxGroup(t *testing.T, b *box) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.binderPID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "Gid:"); ok {
			var gid int
			fmt.Sscan(v, &gid)
			return gid
		}
	}
	t.Fatal("the binder has no group")
	return 0
}

// ownDirectory makes the socket directory of a daemon that runs as uid.
func ownDirectory(t *testing.T, b *box, name string, uid int) string {
	t.Helper()
	dir := filepath.Join(b.dir, name)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.Chown(dir, uid, socketboxGroup(t, b))
	}
	if err == nil {
		err = unix.Chmod(dir, 0o2750)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A receiver that is not root serves from a directory of its own, whatever
// its umask, by its path and through a bind mount elsewhere.
func TestReceiverOfAnotherUser(t *testing.T) {
	needRoot(t)
	const clients = 200
	port := freePort(t)
	b := bindConfig(t, fmt.Sprintf(`
[[listener]]
address = "127.0.0.1:%d"
[[rule]]
remote = "127.0.1.0/24"
target = "DIR/app/"
[[rule]]
remote = "127.0.2.0/24"
target = "DIR/shop/"
`, port))
	app, shop := ownDirectory(t, b, "app", appUser), ownDirectory(t, b, "shop", otherUser)
	file := fmt.Sprintf("%d.sock", port)

	byPath := &receiver{Path: filepath.Join(app, file), Name: "app"}
	startReceiver(t, wrapped("unshare", "-n", "--"), appUser, byPath)
	mount := t.TempDir()
	mountScript := fmt.Sprintf("mount --bind %s %s && exec \"$@\"", shop, mount)
	if err := openTo(mount); err != nil {
		t.Fatal(err)
	}
	byMount := &receiver{Path: filepath.Join(mount, file), Name: "shop"}
	startReceiver(t, wrapped("unshare", "-nm", "--", "sh", "-c", mountScript, "sh"), otherUser, byMount)

	for local, name := range map[string]string{"127.0.1.1": "app", "127.0.2.1": "shop"} {
		c := rounds(8, clients, from(local, at(port)))
		c.allServed(t, clients)
		if c.by[name] != clients {
			t.Errorf("clients from %s were served by %v", local, c.by)
		}
	}
	b.balance(2 * clients)
	for _, path := range []string{filepath.Join(app, file), filepath.Join(shop, file)} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != 0o660 || int(st.Gid) != socketboxGroup(t, b) {
			t.Errorf("%s: mode %04o, group %d", path, st.Mode&0o7777, st.Gid)
		}
	}
	if strings.Contains(b.log.String(), "can't use socket") {
		t.Errorf("the binder complains:\n%s", b.log)
	}
}

// wrapped is a way to run a command: behind a prefix.
func wrapped(prefix ...string) namespace { return namespace{exec: prefix} }

// openTo lets other users pass through a test's temporary directory.
func openTo(dir string) error {
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// A directory or socket that the binder may not use is named with what is
// wrong and the command that mends it; clients wait, and after that command
// they are served.
func TestWrongGroup(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	b := bindConfig(t, listenerFor(port)+"[[rule]]\ntarget = \"DIR/app/\"\n")
	app := ownDirectory(t, b, "app", appUser)
	if err := unix.Chown(app, appUser, appUser); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(app, fmt.Sprintf("%d.ipv4.sock", port))
	startReceiver(t, here(), appUser, &receiver{Path: path, Name: "app"})
	c := begin(5, to(at(port)))
	gid := socketboxGroup(t, b)
	b.waitLog("directory " + app + " (owner")
	b.waitLog(fmt.Sprintf("chgrp %d %s && chmod 2750 %s", gid, app, app))
	if err := unix.Chmod(app, 0o755); err != nil {
		t.Fatal(err)
	}
	b.waitLog("socket file " + path + " (owner")
	b.waitLog(fmt.Sprintf("chgrp %d %s && chmod 0660 %s", gid, path, path))
	if n := c.crowd.total(); n != 0 {
		t.Errorf("%d clients did not wait: %s", n, c.crowd)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		t.Fatal(err)
	}
	c.end().allServed(t, 5)
	if p99 := c.crowd.p99(); p99 > 3*time.Second {
		t.Errorf("served only after %v", p99)
	}
}

// intrusion is what a stranger tries with a socket directory.
type intrusion struct {
	name string
	try  func(dir string) error
}

var intrusions = []intrusion{
	{"list", func(dir string) error {
		_, err := os.ReadDir(dir)
		return err
	}},
	{"receive on a free name", func(dir string) error { return bindAt(filepath.Join(dir, "free.sock")) }},
	{"receive on a taken name", func(dir string) error { return bindAt(filepath.Join(dir, "taken.sock")) }},
	{"make a file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "81.sock"), nil, 0o600) }},
	{"unlink", func(dir string) error { return unix.Unlink(filepath.Join(dir, "taken.sock")) }},
	{"rename", func(dir string) error {
		return unix.Rename(filepath.Join(dir, "taken.sock"), filepath.Join(dir, "away.sock"))
	}},
	{"send", func(dir string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("no socket: %v", err)
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "taken.sock")})
	}},
	{"change rights", func(dir string) error {
		if err := unix.Chmod(filepath.Join(dir, "taken.sock"), 0o666); !errors.Is(err, unix.EPERM) {
			return err
		}
		return unix.EACCES // that is how chmod(2) says it
	}},
}

func bindAt(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("no socket: %v", err)
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
}

// intrude tries everything; its output has a line for what was not refused
// with EACCES.
func (s *standin) intrude() error {
	for _, i := range intrusions {
		err := i.try(s.Dir)
		// A taken name is found out before the right to make it is looked at.
		if i.name == "receive on a taken name" && errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if !errors.Is(err, unix.EACCES) {
			fmt.Printf("%s: %v\n", i.name, err)
		}
	}
	return nil
}

// Another user can neither list the directories nor take over, send to or
// remove what is in them. Those who may, can.
func TestStrangers(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "taken.sock")})
	app := ownDirectory(t, b, "app", appUser)
	startReceiver(t, here(), appUser, &receiver{Path: filepath.Join(app, "taken.sock")})
	for _, dir := range []string{b.dir, app} {
		out, status := outcome(t, standinCommand(t, here(), intruderID, standin{Act: "intrude", Dir: dir}))
		if status != 0 || out != "" {
			t.Errorf("in %s a stranger could, or failed otherwise (exit %d):\n%s", dir, status, out)
		}
	}
	// The socketbox group, which the binder has: in a daemon's directory it may
	// look and send; in the main one it may receive too, and not remove what is
	// another's.
	group := groupOf(t, b.dir)
	for dir, words := range map[string]string{
		app:   "list: <nil>|send: <nil>|-receive|-unlink|-rename|-make",
		b.dir: "list: <nil>|send: <nil>|receive on a free name: <nil>|unlink: operation not permitted|rename: operation not permitted",
	} {
		out, _ := outcome(t, standinCommand(t, here(), group, standin{Act: "intrude", Dir: dir}))
		for word := range strings.SplitSeq(words, "|") {
			word, not := strings.CutPrefix(word, "-")
			if strings.Contains(out, word) == not {
				t.Errorf("what gid %d could in %s, or was refused otherwise than by EACCES (expected %q):\n%s", group, dir, words, out)
			}
		}
	}
}

// Sockets in the main directory are safe from each other's users: it is
// sticky, and a receiver does not replace one that lives.
func TestTakenName(t *testing.T) {
	port := freePort(t)
	b := bind(t, "--listen", at(port))
	path := filepath.Join(b.dir, fmt.Sprintf("%d.ipv4.sock", port))
	runReceiver(t, &receiver{Path: path, Name: "first"})
	takenBy(t, "first", client{to: at(port)})
	second := start(t, standinCommand(t, here(), 0, standin{Act: "receive", Receiver: &receiver{Path: path, Name: "second"}}))
	if status := second.wait(5 * time.Second); status != 1 || !strings.Contains(second.log.String(), "address already in use") {
		t.Errorf("a second receiver on the same path: exit %d, %s", status, second.log)
	}
	takenBy(t, "first", client{to: at(port)})
	if st, err := os.Lstat(path); err != nil || st.Mode()&fs.ModeSocket == 0 {
		t.Errorf("the first receiver's socket file: %v, %v", st, err)
	}
}
