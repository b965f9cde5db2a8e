//go:build amd64 || arm64

package spawn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ways are the three ways to start a child; all must do the same.
var ways = []string{"clone3", "clone", "fork"}

// newSpawner returns a Spawner that starts children in the given way.
func newSpawner(t *testing.T, way string, c Command, base ...string) *Spawner {
	t.Helper()
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &Spawner{nullFD: null}
	t.Cleanup(s.Close)
	if way == "fork" {
		f, err := newForker(c, base, null)
		if err != nil {
			t.Fatal(err)
		}
		s.how = f
		return s
	}
	k, err := newClonerOf(way == "clone", c, base, null)
	if err != nil {
		t.Fatal(err)
	}
	s.how = k
	return s
}

// run starts one child on a socket pair and returns what it wrote and how it
// ended.
func run(t *testing.T, s *Spawner, vars ...string) (string, unix.WaitStatus, error) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(pair[0]), "socket")
	defer ours.Close()
	var block []byte
	for _, v := range vars {
		block = append(append(block, v...), 0)
	}
	pid, l, err := s.Start(pair[1], block)
	if err != nil {
		unix.Close(pair[1])
		return "", 0, err
	}
	for deadline := time.Now().Add(5 * time.Second); !l.Gone(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("the child never left our memory")
		}
	}
	unix.Close(pair[1])
	err = l.Err()
	l.Release()
	text, readErr := io.ReadAll(ours)
	if readErr != nil {
		t.Fatal(readErr)
	}
	var status unix.WaitStatus
	if _, waitErr := unix.Wait4(pid, &status, 0, nil); waitErr != nil {
		t.Fatal(waitErr)
	}
	return string(text), status, err
}

func shell(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}}
}

func each(t *testing.T, test func(t *testing.T, way string)) {
	for _, way := range ways {
		t.Run(way, func(t *testing.T) { test(t, way) })
	}
}

func TestEnvironmentIsBaseAndVars(t *testing.T) {
	each(t, func(t *testing.T, way string) {
		c := Command{Path: "/usr/bin/env", Args: []string{"env"}}
		s := newSpawner(t, way, c, "A=base", "PATH=/bin:/usr/bin")
		for _, address := range []string{"192.0.2.1", "2001:db8::1"} { // twice: the memory is used again
			text, _, err := run(t, s, "REMOTE_ADDR="+address, "EMPTY=")
			want := "A=base\nPATH=/bin:/usr/bin\nREMOTE_ADDR=" + address + "\nEMPTY=\n"
			if err != nil || text != want {
				t.Errorf("got %q, %v; want %q", text, err, want)
			}
		}
	})
}

func TestDescriptorsAndSession(t *testing.T) {
	unix.CloseRange(3, 1<<16, unix.CLOSE_RANGE_CLOEXEC) // what the test was started with
	leak, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	each(t, func(t *testing.T, way string) {
		script := `echo $$; cut -d' ' -f5,6 /proc/$$/stat; ls /proc/$$/fd; test -S /proc/$$/fd/0 && echo socket; test -S /proc/$$/fd/2 && echo error; true`
		for _, stderr := range []Stderr{StderrInherit, StderrSocket, StderrNull} {
			c := shell(script)
			c.Stderr = stderr
			text, status, err := run(t, newSpawner(t, way, c, "PATH=/bin:/usr/bin"))
			if err != nil || status != 0 {
				t.Fatalf("%v, status %v", err, status)
			}
			lines := strings.Split(strings.TrimSpace(text), "\n")
			pid := lines[0]
			want := []string{pid, pid + " " + pid, "0", "1", "2", "socket"}
			if stderr == StderrSocket {
				want = append(want, "error")
			}
			if strings.Join(lines, ",") != strings.Join(want, ",") {
				t.Errorf("stderr %d: got %q, want %q", stderr, lines, want)
			}
		}
	})
}

// statusLine returns a line of the child's /proc/self/status.
func statusLine(t *testing.T, text, name string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in %q", name, text)
	return ""
}

func TestSignalsAreAtTheirDefaults(t *testing.T) {
	signal.Ignore(unix.SIGUSR2, unix.SIGTTOU)
	defer signal.Reset(unix.SIGUSR2, unix.SIGTTOU)
	for _, way := range ways[:2] { // ForkExec passes on what is ignored
		t.Run(way, func(t *testing.T) {
			s := newSpawner(t, way, Command{Path: "/bin/cat", Args: []string{"cat", "/proc/self/status"}})
			text, _, err := run(t, s)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"SigIgn", "SigBlk"} {
				if got := statusLine(t, text, name); got != "0000000000000000" {
					t.Errorf("%s is %s", name, got)
				}
			}
		})
	}
}

func TestUserGroupsDirNiceLimits(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("NETNS") == "require" {
			t.Fatal("only root may become another user")
		}
		t.Skip("only root may become another user")
	}
	each(t, func(t *testing.T, way string) {
		nice := 7
		c := shell("cat /proc/self/status; pwd; nice; ulimit -n; ulimit -Hn; ulimit -c; umask")
		c.User = &Credential{UID: 54321, GID: 54322, Groups: []uint32{54323, 54324}}
		c.Dir = "/proc"
		if way != "fork" {
			c.Nice = &nice
			c.Limits = []Limit{{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 100, Max: 200}}, {unix.RLIMIT_CORE, unix.Rlimit{Cur: 0, Max: 0}}}
		}
		text, status, err := run(t, newSpawner(t, way, c, "PATH=/bin:/usr/bin"))
		if err != nil || status != 0 {
			t.Fatalf("%v, status %v, %s", err, status, text)
		}
		for name, want := range map[string]string{
			"Uid": "54321\t54321\t54321\t54321", "Gid": "54322\t54322\t54322\t54322",
			"Groups": "54323 54324", "CapEff": "0000000000000000", "CapPrm": "0000000000000000",
		} {
			if got := statusLine(t, text, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		tail := text[strings.LastIndex(text, "/proc"):]
		if !strings.HasPrefix(tail, "/proc\n7\n100\n200\n0\n") && way != "fork" {
			t.Errorf("directory, nice value and limits are %q", tail)
		}
	})
}

func TestOriginalFileLimit(t *testing.T) {
	// The limit that this test was started with is only known to a child that
	// Go itself starts; but originalFileLimit has changed that by now in any
	// test before. So ask a fresh copy.
	if os.Getenv("SPAWN_TEST") == "limit" {
		for _, way := range ways[:2] {
			text, _, err := run(t, newSpawner(t, way, shell("ulimit -Sn"), "PATH=/bin"))
			fmt.Printf("%s: %s %v\n", way, strings.TrimSpace(text), err)
		}
		var ours unix.Rlimit
		unix.Getrlimit(unix.RLIMIT_NOFILE, &ours)
		fmt.Println("ours is raised:", ours.Cur == ours.Max)
		return
	}
	c := Command{Path: "/bin/sh", Args: []string{"sh", "-c", `ulimit -Sn 321; SPAWN_TEST=limit exec "$0" -test.run '^TestOriginalFileLimit$' -test.v`, executable(t)}}
	text, _, err := run(t, newSpawner(t, "fork", c, os.Environ()...))
	for _, want := range []string{"clone3: 321 <nil>", "clone: 321 <nil>", "ours is raised: true"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v, want %q in %s", err, want, text)
		}
	}
}

func executable(t *testing.T) string {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFailuresAreTold(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "no-interpreter")
	if err := os.WriteFile(script, []byte("#!/does/not/exist\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	noise := filepath.Join(dir, "noise")
	if err := os.WriteFile(noise, []byte("\x7fELF nothing of the kind"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		c    Command
		want error
		step string
	}{
		{"absent", Command{Path: "/does/not/exist", Args: []string{"x"}}, unix.ENOENT, "execute"},
		{"no interpreter", Command{Path: script, Args: []string{"x"}}, unix.ENOENT, "execute"},
		{"not a program", Command{Path: noise, Args: []string{"x"}}, unix.ENOEXEC, "execute"},
		{"a directory", Command{Path: dir, Args: []string{"x"}}, unix.EACCES, "execute"},
		{"absent directory", Command{Path: "/bin/true", Args: []string{"x"}, Dir: "/does/not/exist"}, unix.ENOENT, "chdir"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, way string) {
				s := newSpawner(t, way, tt.c)
				for range 2 {
					_, status, err := run(t, s)
					var step *StepError
					if !errors.As(err, &step) || !errors.Is(err, tt.want) || step.Transient() {
						t.Fatalf("got %v", err)
					}
					if way == "fork" {
						continue
					}
					if step.Step != tt.step || !status.Exited() || status.ExitStatus() != 127 {
						t.Errorf("step %q, status %v", step.Step, status)
					}
				}
			})
		})
	}
}

// TestManyUnderGarbageCollection is for what the tables of children must
// stand: memory that the collector may not touch while a child reads it.
func TestManyUnderGarbageCollection(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	for _, way := range ways[:2] {
		t.Run(way, func(t *testing.T) {
			s := newSpawner(t, way, Command{Path: "/bin/true", Args: []string{"true"}}, "A=B")
			type running struct {
				l    Launch
				fd   int
				done bool
			}
			children := map[int]running{}
			var garbage [][]byte
			for i := range 600 {
				pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				unix.Close(pair[0])
				pid, l, err := s.Start(pair[1], fmt.Appendf(nil, "N=%d\x00", i))
				if err != nil {
					t.Fatal(err)
				}
				children[pid] = running{l, pair[1], false}
				garbage = append(garbage[max(0, len(garbage)-50):], bytes.Repeat([]byte{0xff}, 4096))
				for len(children) > 8 || i == 599 && len(children) > 0 {
					for pid, c := range children {
						var status unix.WaitStatus
						if got, _ := unix.Wait4(pid, &status, unix.WNOHANG, nil); got == pid {
							if !c.l.Gone() || c.l.Err() != nil || status != 0 {
								t.Fatalf("child %d: gone %v, %v, status %v", pid, c.l.Gone(), c.l.Err(), status)
							}
							c.l.Release()
							unix.Close(c.fd)
							delete(children, pid)
						}
					}
					runtime.Gosched()
				}
			}
			runtime.KeepAlive(garbage)
		})
	}
}

func TestForkerRefusesWhatItCannotSet(t *testing.T) {
	nice := 1
	for _, c := range []Command{{Nice: &nice}, {Limits: []Limit{{Resource: unix.RLIMIT_CPU}}}} {
		if _, err := newForker(c, nil, -1); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

// TestRehearsal: what would fail for each child fails in New.
func TestRehearsal(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notExecutable, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := shell("true")
	tests := []struct {
		name   string
		change func(*Command)
		step   string
	}{
		{"fine", func(*Command) {}, ""},
		{"fine with the socket as standard error", func(c *Command) { c.Stderr = StderrSocket }, ""},
		{"fine without", func(c *Command) { c.Stderr = StderrNull }, ""},
		{"directory", func(c *Command) { c.Dir = "/does/not/exist" }, "chdir"},
		{"program", func(c *Command) { c.Path = notExecutable }, "execute"},
		{"limit", func(c *Command) {
			c.Limits = []Limit{{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 1 << 62, Max: 1 << 62}}}
		}, "setrlimit"},
	}
	for _, tt := range tests {
		c := c
		tt.change(&c)
		s, err := New(c, nil)
		var step *StepError
		if errors.As(err, &step); (step == nil) != (tt.step == "") || step != nil && step.Step != tt.step {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if s != nil {
			s.Close()
		}
	}
}

func TestChosenWayIsTheFastOne(t *testing.T) {
	s, err := New(shell("true"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if k, ok := s.how.(*cloner); !ok {
		t.Errorf("children are started by %T", s.how)
	} else if k.plain {
		t.Log("clone3 is refused here")
	}
}

func BenchmarkStart(b *testing.B) {
	for _, way := range ways {
		b.Run(way, func(b *testing.B) {
			t := &testing.T{}
			s := newSpawner(t, way, Command{Path: "/bin/true", Args: []string{"true"}}, os.Environ()...)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				pid, l, err := s.Start(pair[0], []byte("A=B\x00"))
				if err != nil {
					b.Fatal(err)
				}
				unix.Wait4(pid, nil, 0, nil)
				l.Release()
			}
		})
	}
}
