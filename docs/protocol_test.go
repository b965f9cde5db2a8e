package docs_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPythonExamples runs the receiver and the sender of protocol.md: the
// receiver takes connections from socketbox bind, from the sender, and
// survives what is no hand-off.
func TestPythonExamples(t *testing.T) {
	python := needPython(t)
	var receiver, sender string
	for place, text := range blocks(t, "python") {
		switch {
		case !strings.HasPrefix(place, "docs/protocol.md:"):
		case strings.Contains(text, "recv_fds"):
			receiver = script(t, "receiver.py", text)
		case strings.Contains(text, "send_fds"):
			sender = script(t, "sender.py", text)
		}
	}
	if receiver == "" || sender == "" {
		t.Fatal("docs/protocol.md has no receiver or no sender in Python")
	}
	port, port2 := freePort(t), freePort(t)
	box := filepath.Join(bin, "box")
	address := "127.0.0.1:" + port
	start(t, filepath.Join(bin, "socketbox"), "bind", "--listen", address, "--dir", box)
	waitFor(t, func() bool { return exists(box + ".control") })
	path := filepath.Join(box, port+".sock")
	start(t, python, receiver, path)
	waitFor(t, func() bool { return exists(path) })

	greets(t, address, "by "+address)
	junk(t, path)
	greets(t, address, "by "+address)

	start(t, python, sender, path, port2)
	waitFor(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port2)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	greets(t, "127.0.0.1:"+port2, "by a plain sender")
}

// greets connects and expects to be told its own address, and the listener.
func greets(t *testing.T, address, by string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	own := c.LocalAddr().(*net.TCPAddr)
	if want := fmt.Sprintf("hello ('%s', %d), %s\n", own.IP, own.Port, by); string(got) != want {
		t.Errorf("%s: got %q, want %q", address, got, want)
	}
}

// junk sends datagrams that are no hand-off: without a descriptor, and too
// long.
func junk(t *testing.T, path string) {
	t.Helper()
	c, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, payload := range []string{"x", strings.Repeat("x", 200)} {
		if _, err := c.Write([]byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
}

// needPython returns the interpreter. Where NETNS=require is set, nothing is
// skipped.
func needPython(t *testing.T) string {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("NETNS") == "require" {
			t.Fatal(err)
		}
		if os.Getenv("NETNS") == "require" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return python
}

func script(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs a program until the test is over.
func start(t *testing.T, args ...string) {
	t.Helper()
	var said strings.Builder
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", args[0], said.String())
		}
	})
}

func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	for range 200 {
		if ready() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("waited for ten seconds")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// freePort returns a port that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
