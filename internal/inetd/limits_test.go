package inetd

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMaxHoldsTwoHundred: 200 at once over a limit of 8, none is lost and
// never more than 8 run.
func TestMaxHoldsTwoHundred(t *testing.T) {
	t.Parallel()
	d := start(t, "--max", "8", "--", "sh", "-c", "sleep 0.05; echo $PPID")
	stop := make(chan struct{})
	most := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				most <- n
				return
			case <-time.After(3 * time.Millisecond):
				n = max(n, len(children(d.cmd.Process.Pid)))
			}
		}
	}()
	clients := make([]net.Conn, 200)
	sock := d.sender()
	for i := range clients {
		client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
		clients[i] = client
		if err := send(sock, accepted); err != nil {
			t.Fatal(err)
		}
	}
	for i, client := range clients {
		if got := answer(t, client); got != fmt.Sprintln(d.cmd.Process.Pid) {
			t.Fatalf("client %d: got %q", i, got)
		}
	}
	close(stop)
	if n := <-most; n > 8 || n < 2 {
		t.Errorf("%d children at once", n)
	}
}

// children returns the children of a process.
func children(pid int) []string {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	var all []string
	for _, task := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// handOff connects from an address and hands the connection off.
func handOff(t *testing.T, d *instance, network, address, from string) net.Conn {
	t.Helper()
	client, accepted := pair(t, network, address, from)
	if err := send(d.sender(), accepted); err != nil {
		t.Fatal(err)
	}
	return client
}

// served tells whether the client gets a line within a time.
func served(client net.Conn, within time.Duration) bool {
	client.SetReadDeadline(time.Now().Add(within))
	n, _ := client.Read(make([]byte, 100))
	return n > 0
}

// TestMaxPerSource: a source over its limit waits and holds nobody else up.
func TestMaxPerSource(t *testing.T) {
	t.Parallel()
	d := start(t, "--max-per-source", "2", "--", "sh", "-c", "echo $TCPCONNNUM; read line")
	var loud []net.Conn
	for range 20 {
		loud = append(loud, handOff(t, d, "tcp4", "127.0.0.1:0", "127.0.0.1"))
	}
	if !served(loud[0], 5*time.Second) || !served(loud[1], 5*time.Second) {
		t.Fatal("the first two are not served")
	}
	for _, from := range []string{"127.0.0.2", "127.0.0.3"} {
		if !served(handOff(t, d, "tcp4", "127.0.0.1:0", from), 5*time.Second) {
			t.Errorf("%s waits for another source", from)
		}
	}
	if served(loud[2], 100*time.Millisecond) {
		t.Error("a third one of the same source is served")
	}
	for i, client := range loud {
		if i >= 2 && !served(client, 5*time.Second) {
			t.Fatalf("number %d is not served when one of its source has ended", i)
		}
		fmt.Fprintln(client, "bye")
	}
	d.until("held", 0)
	if n := d.count("lost"); n != 0 {
		t.Errorf("%d lost", n)
	}
}

func TestRatePausesAndRecovers(t *testing.T) {
	t.Parallel()
	d := start(t, "--rate", "20/s", "--", "echo", "ok")
	began := time.Now()
	var all sync.WaitGroup
	for range 60 {
		client := d.connect()
		all.Go(func() {
			if text, err := io.ReadAll(client); string(text) != "ok\n" {
				t.Errorf("got %q, %v", text, err)
			}
		})
	}
	all.Wait()
	// 20 at once, then 40 more at 20 a second.
	if took := time.Since(began); took < 1800*time.Millisecond || took > 6*time.Second {
		t.Errorf("60 at 20/s took %v", took)
	}
	time.Sleep(300 * time.Millisecond)
	began = time.Now()
	if got := answer(t, d.connect()); got != "ok\n" || time.Since(began) > time.Second {
		t.Errorf("after the pause: got %q in %v", got, time.Since(began))
	}
}

func TestTimeoutEndsTheWholeGroup(t *testing.T) {
	t.Parallel()
	d := start(t, "--timeout", "200ms", "--kill-after", "200ms", "--", "sh", "-c", `trap "" TERM; sleep 60 & echo $!; wait; sleep 60`)
	client := d.connect()
	began := time.Now()
	var pid int
	if _, err := fmt.Sscan(answer(t, client), &pid); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 350*time.Millisecond || took > 5*time.Second {
		t.Errorf("ended after %v", took)
	}
	d.until("running", 0)
	if n := d.count("timeouts"); n != 1 {
		t.Errorf("%d timeouts", n)
	}
	if err := unix.Kill(pid, 0); err == nil && !zombie(pid) {
		t.Error("a grandchild lives on")
	}
	if got := answer(t, start(t, "--timeout", "5s", "--", "echo", "ok").connect()); got != "ok\n" {
		t.Errorf("a child in time: got %q", got)
	}
}

func zombie(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Contains(string(text), ") Z ")
}

// TestOrphansAreKilledToo: the child ends by TERM, what it has started does
// not.
func TestOrphansAreKilledToo(t *testing.T) {
	t.Parallel()
	d := start(t, "--timeout", "100ms", "--kill-after", "300ms", "--", "sh", "-c", `sh -c 'trap "" TERM; while :; do sleep 1; done' & echo $!; sleep 60`)
	client := d.connect()
	var pid int
	if _, err := fmt.Fscan(client, &pid); err != nil {
		t.Fatal(err)
	}
	d.until("running", 0)
	for deadline := time.Now().Add(5 * time.Second); unix.Kill(pid, 0) == nil && !zombie(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the orphan lives on")
		}
	}
}

// TestUserLimitsNice: what the children have of their own.
func TestUserLimitsNice(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatal("only root may choose another user")
		}
		t.Skip("only root may choose another user")
	}
	d := start(t, "--user", "54321:54322", "--rlimit", "nofile=33:44", "--rlimit", "core=0", "--nice", "9", "--chdir", "/proc", "--",
		"sh", "-c", "id -u; id -g; id -G; ulimit -Sn; ulimit -Hn; ulimit -c; nice; pwd")
	if got, want := answer(t, d.connect()), "54321\n54322\n54322\n33\n44\n0\n9\n/proc\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestOutOfProcesses: when the machine can't make another process, the
// connection waits and is served after all.
func TestOutOfProcesses(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatal("only root may choose another user")
		}
		t.Skip("only root may choose another user")
	}
	t.Parallel()
	d := start(t, "--user", "54399:54399", "--rlimit", "nproc=2", "--max", "10", "--", "sleep", "0.2")
	var clients []net.Conn
	for range 8 {
		clients = append(clients, d.connect())
	}
	for _, client := range clients {
		if got := answer(t, client); got != "" {
			t.Errorf("got %q", got)
		}
	}
	if d.count("failed") == 0 || d.count("lost") != 0 || d.count("started") != 8 {
		t.Errorf("failed %d, lost %d, started %d", d.count("failed"), d.count("lost"), d.count("started"))
	}
	d.expect("can't start a child now")
}

// TestProgramGone: a program that is not there any more can't be waited for;
// the client is told by a reset.
func TestProgramGone(t *testing.T) {
	path := t.TempDir() + "/program"
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho ok\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := start(t, "--", path)
	if got := answer(t, d.connect()); got != "ok\n" {
		t.Fatalf("got %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	client := d.connect()
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(client); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the client sees %v", err)
	}
	d.expect("warning: can't start a child, connection reset .*no such file")
	d.until("running", 0)
	d.until("lost", 1)
}

// TestFewDescriptors: with hardly any descriptors, what can't be held waits
// in the socket, and nothing is lost.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	d := prepare(t)
	script := fmt.Sprintf("ulimit -n 24; exec %s --socket %s --max-per-source 1 -- sh -c 'echo ok; sleep 0.01'", program, d.path)
	d.cmd = exec.Command("sh", "-c", script)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.run().expect("receiving")
	clients := make([]net.Conn, 60)
	sock := d.sender()
	for i := range clients {
		client, accepted := pair(t, "tcp4", "127.0.0.1:0", "")
		clients[i] = client
		if err := send(sock, accepted); err != nil {
			t.Fatal(err)
		}
	}
	for i, client := range clients {
		if got := answer(t, client); got != "ok\n" {
			t.Fatalf("client %d: got %q", i, got)
		}
	}
	if n := d.count("bad") + d.count("lost"); n != 0 {
		t.Errorf("%d were lost", n)
	}
	d.expect("too many connections wait")
}
