package netns

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
)

// A daemon that runs only while clients come: by preload and by notify, as root
// and as an ordinary user. The clients that start it, and those that come while
// it ends, are served.
func TestLaunchOnDemand(t *testing.T) {
	programs := map[string][]string{
		"preload": {"/usr/bin/python3", "-m", "http.server", "--bind", "::", "--directory", publicDir(t)},
		"notify":  {web(t)},
	}
	listenAt := map[string]func(int) string{
		"preload": func(port int) string { return fmt.Sprint(port) },
		"notify":  func(port int) string { return fmt.Sprint(":", port) },
	}
	for via, daemon := range programs {
		t.Run(via, func(t *testing.T) {
			eachUser(t, func(t *testing.T, as []string) {
				port := freePort(t)
				b := bindAs(t, as, port)
				args := append([]string{"-n", "--ports", fmt.Sprint(port), "--via", via, "--on-demand", "--idle", "400ms", "--"}, daemon...)
				p := launch(t, as, b.dir, append(args, listenAt[via](port))...)
				p.waitLog("waiting for the first client")
				time.Sleep(100 * time.Millisecond)
				if strings.Contains(p.log.String(), "info: started") {
					t.Fatalf("it runs without a client:\n%s", p.log)
				}
				for start := 1; start <= 3; start++ {
					answers(t, p, port, false)
					if n := strings.Count(p.log.String(), "info: started"); n != start {
						t.Fatalf("%d starts, expected %d:\n%s", n, start, p.log)
					}
					eventually(t, 10*time.Second, func() error {
						if n := strings.Count(p.log.String(), "waiting for the first client"); n != start+1 {
							return fmt.Errorf("it does not end:\n%s", p.log)
						}
						return nil
					})
				}
				// Clients that come all the time keep it, and none of them is lost when it is killed.
				served := 0
				for begin := time.Now(); time.Since(begin) < time.Second; time.Sleep(20 * time.Millisecond) {
					if _, _, err := fetch("127.0.0.1", port); err != nil {
						t.Error(err)
					}
					served++
				}
				if n := strings.Count(p.log.String(), "info: started"); n != 4 {
					t.Errorf("%d clients in a second, and %d starts", served, n)
				}
			})
		})
	}
}

func TestLaunchOnDemandRefused(t *testing.T) {
	b := bindConfig(t, listeners(freePort(t)))
	_, port, _ := strings.Cut(b.status().Listeners[0].Address, ":")
	for args, says := range map[string]string{
		"--on-demand":                       "no port is named",
		"--ports 80 --idle 1m":              "--idle goes with --on-demand",
		"--on-demand --ports " + port:       "it must be lent",
		"--on-demand --ports 80 --via none": "which --via none leaves out",
	} {
		cmd := launched(asRoot, b.dir, append(strings.Fields(args), "--wait", "100ms", "--", "/bin/true")...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), says) {
			t.Errorf("%s: %v, %s", args, err, out)
		}
	}
}

// mortal accepts, answers and closes as often as it is told, and then kills itself
// between two accepts: it has nothing in its hands then.
const mortal = `
import os, signal, socket, sys
s = socket.socket(socket.AF_INET6)
s.bind(("::", int(sys.argv[1])))
s.listen(100)
for n in range(int(sys.argv[2])):
    c, a = s.accept()
    c.sendall(b"python %s:%d\n" % (a[0].removeprefix("::ffff:").encode(), a[1]))
    c.close()
os.kill(os.getpid(), signal.SIGKILL)
`

// kill -9 of the daemon between two accepts, again and again under load: clients
// wait for the next start, in the listener's backlog where that is lent, in the
// receiving socket and on hold where connections are handed off; none is lost.
func TestLaunchRestartLosesNothing(t *testing.T) {
	const kills, each = 6, 40
	for _, state := range []binder.State{binder.Lent, binder.Connection} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			text := fmt.Sprintf("[[listener]]\naddress = \":%d\"\n", port)
			if state == binder.Connection {
				text += "handoff = \"connection\"\n"
			}
			b := bindConfig(t, text)
			p := launch(t, asRoot, b.dir, "-n", "--restart", "always", "--rlimit", "nofile=100", "--", "/usr/bin/python3", "-c", mortal, fmt.Sprint(port), fmt.Sprint(each))
			c := rounds(8, kills*each, to(at(port)))
			t.Log(c)
			c.allServed(t, kills*each)
			eventually(t, 5*time.Second, func() error {
				if n := strings.Count(p.log.String(), "status=137"); n < kills {
					return fmt.Errorf("it was killed %d times:\n%s", n, p.log)
				}
				return nil
			})
			b.is(0, state)
			p.signal(unix.SIGTERM)
			p.wait(10 * time.Second)
			if _, err := os.Lstat(filepath.Join(b.dir, portName(port, "sock"))); err == nil {
				t.Error("the receiving socket is still there")
			}
		})
	}
}

// What waits for a daemon that is not started again is reset, and said.
func TestLaunchEndsWhatWaits(t *testing.T) {
	port := freePort(t)
	b := bindConfig(t, listeners(port))
	p := launch(t, asRoot, b.dir, "-n", "--restart", "always", "--", "/usr/bin/python3", "-c",
		strings.Replace(mortal, "s.listen(100)", "s.listen(100); print('deaf', flush=True); import time; time.sleep(60)", 1), fmt.Sprint(port), "1")
	p.waitLog("deaf")
	waiting := begin(3, to(at(port)))
	eventually(t, 5*time.Second, func() error {
		if s := b.status().Total; s.Delivered < 3 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	p.signal(unix.SIGTERM)
	p.wait(10 * time.Second)
	if c := waiting.end(); c.count(reset) != 3 {
		t.Errorf("%s, expected 3 resets", c)
	}
	p.waitLog("connections=3")
}

// What the daemon says of its readiness reaches the service manager from the
// supervisor; what it says of processes and descriptors does not, nor does what
// others say.
func TestLaunchPassesReadiness(t *testing.T) {
	eachUser(t, func(t *testing.T, as []string) {
		dir := publicDir(t)
		manager := newManager(t, filepath.Join(dir, "manager"))
		if err := os.Chmod(manager.path, 0o666); err != nil {
			t.Fatal(err)
		}
		cmd := launched(as, "/nonexistent", "-n", "--via", "none", "--", "sh", "-c",
			`printf "$NOTIFY_SOCKET" > "$0/told"; sleep 0.3; systemd-notify --ready --status="all is well" MAINPID=1; exec sleep 60`, dir)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.path)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		p := start(t, cmd)
		var told string
		eventually(t, 10*time.Second, func() error {
			text, err := os.ReadFile(filepath.Join(dir, "told"))
			if told = string(text); err == nil && told == "" {
				err = fmt.Errorf("nothing told")
			}
			return err
		})
		stranger, err := net.Dial("unixgram", told)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(stranger, "STATUS=from a stranger")
		stranger.Close()
		if said := manager.hears(t, "READY=1"); strings.Contains(said, "MAINPID") || !strings.Contains(said, "STATUS=all is well") || strings.Contains(said, "stranger") {
			t.Errorf("the manager was told %q", said)
		}
		p.signal(unix.SIGTERM)
		p.wait(10 * time.Second)
		if _, err := os.Lstat(told); err == nil {
			t.Errorf("%s is still there", told)
		}
	})
}
