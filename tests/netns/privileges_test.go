package netns

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"socketbox/internal/handoff"
)

// TestPrivileges looks at every thread of every process of an instance that
// root started on a port below 1024.
func TestPrivileges(t *testing.T) {
	needRoot(t)
	b := bind(t, "--listen", "127.0.0.1:81")
	st := b.status()
	for name, pid := range map[string]int{"binder": st.PID, "dispatcher": st.Dispatcher} {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || strings.TrimRight(string(title), "\x00") != "socketbox: "+name {
			t.Errorf("title of the %s: %q, %v", name, title, err)
		}
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatalf("%s %d: no threads: %v", name, pid, err)
		}
		for _, task := range tasks {
			checkThread(t, name, task)
		}
	}
	if got := schedulingPolicy(t, st.Dispatcher); got != "3" {
		t.Errorf("scheduling policy of the dispatcher: %s, not 3 (SCHED_BATCH)", got)
	}
	if st.PID != b.pid() {
		t.Errorf("the binder is process %d, started was %d", st.PID, b.pid())
	}
}

func checkThread(t *testing.T, name, task string) {
	t.Helper()
	text, err := os.ReadFile(task)
	if err != nil {
		return // ended meanwhile
	}
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Groups": "",
	}
	for _, line := range strings.Split(string(text), "\n") {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if w, ok := want[key]; ok {
			if value != w {
				t.Errorf("%s, %s: %s is %q, not %q", name, task, key, value, w)
			}
			delete(want, key)
		}
		if key == "Uid" || key == "Gid" {
			for _, id := range strings.Fields(value) {
				if id == "0" {
					t.Errorf("%s, %s: %s is %s", name, task, key, value)
				}
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("%s: no lines for %v", task, want)
	}
}

// schedulingPolicy reads field 41 of /proc/PID/stat (proc(5)).
func schedulingPolicy(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return fields[38]
}

// TestSoak runs an instance under light load for longer than the runtime's
// forced collection (two minutes) and its look at the cgroup's CPU limit (a
// second), so that a system call which only those make shows in the filter.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than two minutes")
	}
	t.Parallel()
	port := freePort(t)
	b := bind(t, "--listen", fmt.Sprintf("127.0.0.1:%d", port))
	receive(t, filepath.Join(b.dir, strconv.Itoa(port)+".sock"))
	before := b.status()
	const soak = 130 * time.Second
	served := 0
	for end := time.Now().Add(soak); time.Now().Before(end); served++ {
		if answer, err := ask(port); err != nil || answer != "x" {
			t.Fatalf("connection %d: %q, %v", served, answer, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	after := b.status()
	if after.Dispatcher != before.Dispatcher || after.Restarts != 0 {
		t.Errorf("the dispatcher was replaced: %d, %d restarts", after.Dispatcher, after.Restarts)
	}
	if after.Total.Delivered != uint64(served) || after.Total.Failed != 0 {
		t.Errorf("%d served, counted %+v", served, after.Total)
	}
	t.Logf("%d connections in %v, dispatcher %d alive", served, soak, after.Dispatcher)
}

// receive answers every connection handed to path with one byte, until the
// test ends.
func receive(t *testing.T, path string) {
	t.Helper()
	r, err := handoff.Listen(path, handoff.Options{Group: -1, From: -1})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := r.Recv()
			if err != nil {
				return
			}
			f := os.NewFile(uintptr(c.FD), "connection")
			f.Write([]byte("x"))
			f.Close()
		}
	}()
	t.Cleanup(func() {
		r.Shutdown()
		<-done
		r.Close()
	})
}

// ask connects to port and returns what comes until the end of file.
func ask(port int) (string, error) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	var b [16]byte
	n, err := c.Read(b[:])
	return string(b[:n]), err
}
