package preload

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func library() string { return filepath.Join(daemons, "libsocketbox-preload.so") }

// A library for foreign processes runs where they run: it asks for no symbol
// of a glibc newer than 2.17 (2012), and shows none but those it wraps.
func TestSymbols(t *testing.T) {
	out, err := exec.Command("objdump", "-T", library()).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`GLIBC_2\.(\d+)\S*\)?\s+(\S+)`).FindAllStringSubmatch(string(out), -1) {
		if minor, _ := strconv.Atoi(m[1]); minor > 17 {
			t.Errorf("%s is of glibc 2.%s", m[2], m[1])
		}
	}
	text, err := os.ReadFile("../../preload/preload.map")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range regexp.MustCompile(`(?m)^\t\t(\w+);`).FindAllStringSubmatch(string(text), -1) {
		want = append(want, m[1])
	}
	out, err = exec.Command("nm", "-D", "--defined-only", "-P", library()).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		got = append(got, strings.Fields(line)[0])
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("exported: %v\nwrapped:  %v", got, want)
	}
}

func TestMusl(t *testing.T) {
	needProgram(t, "musl-gcc")
	dir := t.TempDir()
	out, err := exec.Command("make", "-s", "-C", "../../preload", "OUT="+dir, "musl").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program := filepath.Join(dir, "plain")
	if out, err := exec.Command("musl-gcc", "-std=gnu11", "-O1", "-o", program, "testdata/plain.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The environment is set by env, of glibc: it must not load this library.
	b := bind(t)
	p := start(t, exec.Command("unshare", "-n", "--", "env", "SOCKETBOX_DIR="+b.dir,
		"/lib/ld-musl-x86_64.so.1", "--preload", filepath.Join(dir, "musl", "libsocketbox-preload.so"), program, "6", fmt.Sprint(b.port), "2"))
	p.waitLog("ready")
	b.mustAsk("4", true)
	b.mustAsk("6", true)
	p.wait(0)
}

func TestMalformedVariables(t *testing.T) {
	for _, v := range []string{
		"SOCKETBOX_PORTS=", "SOCKETBOX_PORTS=0", "SOCKETBOX_PORTS=80,", "SOCKETBOX_PORTS=65536", "SOCKETBOX_PORTS=90-80",
		"SOCKETBOX_PORTS=80=", "SOCKETBOX_PORTS=http", "SOCKETBOX_PORTS=80 ,81", "SOCKETBOX_BIND=", "SOCKETBOX_BIND=1.2.3",
		"SOCKETBOX_BIND=1.2.3.4/33", "SOCKETBOX_BIND=::/129", "SOCKETBOX_DIR=run/x", "SOCKETBOX_DIR=", "SOCKETBOX_V6=no",
		"SOCKETBOX_HANDOFF=x", "SOCKETBOX_WAIT=", "SOCKETBOX_WAIT=3", "SOCKETBOX_WAIT=1h", "SOCKETBOX_WAIT=61m", "SOCKETBOX_DEBUG=yes", "SOCKETBOX_FROM=root", "SOCKETBOX_FROM=-1",
	} {
		cmd := exec.Command("/bin/true")
		cmd.Env = []string{"LD_PRELOAD=" + library(), v}
		out, err := cmd.CombinedOutput()
		exit, ok := err.(*exec.ExitError)
		if !ok || exit.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), v+": want") {
			t.Errorf("%s: %v, %q", v, err, out)
		}
	}
	for _, v := range []string{
		"SOCKETBOX_PORTS=all", "SOCKETBOX_PORTS=80,443=8443,8000-8010", "SOCKETBOX_BIND=0.0.0.0,::,192.0.2.0/24,2001:db8::/32",
		"SOCKETBOX_V6=map", "SOCKETBOX_HANDOFF=auto", "SOCKETBOX_HANDOFF=connection", "SOCKETBOX_HANDOFF=listener", "SOCKETBOX_WAIT=0", "SOCKETBOX_WAIT=500ms", "SOCKETBOX_WAIT=60m", "SOCKETBOX_DEBUG=0", "SOCKETBOX_FROM=0",
	} {
		cmd := exec.Command("/bin/true")
		cmd.Env = []string{"LD_PRELOAD=" + library(), v}
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v, %q", v, err, out)
		}
	}
}

// What the variables do not name is bound in the daemon's own namespace.
func TestWhichBindsAreAnswered(t *testing.T) {
	for _, c := range []struct {
		env  string
		ours bool
	}{
		{"SOCKETBOX_PORTS=%d", true},
		{"SOCKETBOX_PORTS=1,2-65535", true},
		{"SOCKETBOX_PORTS=1", false},
		{"SOCKETBOX_BIND=0.0.0.0", true},
		{"SOCKETBOX_BIND=0.0.0.0/0", true},
		{"SOCKETBOX_BIND=::,127.0.0.1", false},
	} {
		b := bind(t)
		b.small(plain(), []string{strings.ReplaceAll(c.env, "%d", fmt.Sprint(b.port))}, "plain", "4", fmt.Sprint(b.port), "1")
		_, err := os.Stat(b.path(".ipv4.sock"))
		if (err == nil) != c.ours {
			t.Errorf("%s: answered: %v", c.env, err == nil)
		}
	}
	b := bind(t)
	p := b.small(plain(), []string{fmt.Sprintf("SOCKETBOX_PORTS=80=%d", b.port)}, "plain", "4", "80", "1")
	b.mustAsk("4", false)
	p.wait(0)
}

func TestNoDirectory(t *testing.T) {
	b := bind(t)
	dir := filepath.Join(t.TempDir(), "none")
	p := b.daemon(plain(), []string{"SOCKETBOX_DIR=" + dir}, filepath.Join(daemons, "many"), "80", "1")
	p.wait(1)
	if said := p.log.String(); !strings.Contains(said, "bind "+dir+"/80.sock as uid 0: no such file or directory; hint:") {
		t.Errorf("it says:\n%s", said)
	}
}

// accept on a receiving socket costs four system calls; close of a connection
// that is shown in another family one more than close.
func TestSystemCallsPerAccept(t *testing.T) {
	needProgram(t, "strace")
	const count = 100
	for family, want := range map[string]map[string]int{
		"4": {"recvmsg": 1, "getsockopt": 1, "getpeername": 1, "fcntl": 1, "close": 1},
		"6": {"recvmsg": 1, "getsockopt": 1, "getpeername": 1, "fcntl": 1, "close": 1, "getpid": 1},
	} {
		b := bind(t)
		log := filepath.Join(t.TempDir(), "strace")
		s := plain()
		s.prefix = []string{"strace", "-f", "-o", log}
		p := b.small(s, nil, "bare", family, fmt.Sprint(b.port), fmt.Sprint(count))
		for range count {
			c := b.dial("4")
			io.ReadAll(c)
			c.Close()
		}
		p.wait(0)
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(text), `"ready\n"`)
		calls := map[string]int{}
		for _, m := range regexp.MustCompile(`(?m)^\d+ +(\w+)\(`).FindAllStringSubmatch(after, -1) {
			calls[m[1]]++
		}
		delete(calls, "exit_group")
		for name, n := range calls {
			if per := float64(n) / count; per > float64(want[name])+0.1 {
				t.Errorf("AF_INET%s: %s: %.2f calls per connection, not %d", family, name, per, want[name])
			}
		}
		if calls["recvmsg"] < count {
			t.Errorf("AF_INET%s: only %d calls of recvmsg", family, calls["recvmsg"])
		}
	}
}
