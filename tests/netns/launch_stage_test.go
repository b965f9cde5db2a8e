package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// output runs a launcher to its end and returns what it wrote to standard
// output and error, and its exit status.
func output(t *testing.T, as []string, args ...string) (out, log string, status int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := launched(as, "/nonexistent", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(30*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	var exit *exec.ExitError
	if !limit.Stop() || err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// look is a shell command that prints what the daemon is, a line each.
const look = `id -u; id -g; id -G
grep -E "^(CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs)" /proc/self/status | tr -d "\t"
cat /proc/sys/net/unix/max_dgram_qlen; grep -c : /proc/net/dev; cat /sys/class/net/lo/operstate 2>/dev/null | head -c 0
pwd; ulimit -n; echo "$WORD"`

func TestLaunchMakesThePlace(t *testing.T) {
	const none = "0000000000000000"
	for _, c := range []struct {
		name     string
		as       []string
		args     []string
		want     []string // lines that must be there
		realRoot bool
	}{
		{"root", asRoot, []string{"-n"}, []string{"0", "4096", "1", "NoNewPrivs:0"}, false},
		{"another user", asRoot, []string{"-n", "--user", "nobody"}, []string{"65534", "CapPrm:" + none, "CapEff:" + none}, true},
		{"another user and group", asRoot, []string{"-n", "--user", "61234:61235"}, []string{"61234", "61235"}, true},
		{"no capability", asRoot, []string{"-n", "--drop-caps"}, []string{"CapEff:" + none, "CapBnd:" + none}, false},
		{"one capability", asRoot, []string{"-n", "--user", "nobody", "--drop-caps", "--keep-cap", "net_raw"},
			[]string{"65534", "CapEff:0000000000002000", "CapBnd:0000000000002000", "CapAmb:0000000000002000"}, true},
		{"settings", asRoot, []string{"-n", "--no-new-privs", "--chdir", "/usr", "--rlimit", "nofile=77", "-e", "WORD=a b"},
			[]string{"NoNewPrivs:1", "/usr", "77", "a b"}, false},
		{"ordinary", asOrdinary, []string{"-n"}, []string{ordinaryID, "4096", "1", "CapEff:" + none, "CapAmb:" + none, "NoNewPrivs:0"}, true},
		{"ordinary as root", asOrdinary, []string{"-n", "--map-root"}, []string{"0", "4096", "1"}, true},
		{"ordinary with one capability", asOrdinary, []string{"-n", "--keep-cap", "net_bind_service"}, []string{ordinaryID, "CapEff:0000000000000400"}, true},
		{"root in a user namespace", asRoot, []string{"-n", "-U"}, []string{"0", "4096"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.realRoot {
				needRoot(t)
			}
			out, log, status := output(t, c.as, append(append([]string{"--via", "none"}, c.args...), "--", "sh", "-c", look)...)
			if status != 0 {
				t.Fatalf("status %d\n%s", status, log)
			}
			lines := "\n" + out
			for _, want := range c.want {
				if !strings.Contains(lines, "\n"+want+"\n") {
					t.Errorf("no line %q in\n%s%s", want, out, log)
				}
			}
		})
	}
}

// TestLaunchEnters an existing namespace, by name and by path.
func TestLaunchEnters(t *testing.T) {
	ns := ipNetns(t)
	want, err := ns.command("readlink", "/proc/self/ns/net").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ns.name, "/run/netns/" + ns.name} {
		out, log, status := output(t, asRoot, "--via", "none", "--netns", name, "--", "readlink", "/proc/self/ns/net")
		if status != 0 || out != string(want) {
			t.Errorf("--netns %s: status %d, %q, want %q\n%s", name, status, out, want, log)
		}
	}
}

// TestLaunchSubordinateIDs maps what newuidmap lets an ordinary user have.
func TestLaunchSubordinateIDs(t *testing.T) {
	needRoot(t)
	needProgram(t, "newuidmap")
	// Files of the machine are left alone: the launcher sees others in a mount
	// namespace of its own.
	script := fmt.Sprintf(`mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work && mount -t overlay -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work etc /etc &&
echo %[1]s:200000:1000 > /etc/subuid && cp /etc/subuid /etc/subgid && echo someone:x:%[1]s:%[1]s::/: >> /etc/passwd &&
exec setpriv --reuid %[1]s --regid %[1]s --clear-groups -- "$@"`, ordinaryID)
	as := []string{"unshare", "-m", "--", "sh", "-c", script, "sh"}
	out, log, status := output(t, as, "-U", "--map-root", "--via", "none", "--", "cat", "/proc/self/uid_map")
	if fields := strings.Fields(out); status != 0 || strings.Join(fields, " ") != "0 61234 1 1 200000 1000" {
		t.Errorf("status %d, map %q\n%s", status, out, log)
	}
	out, log, status = output(t, as, "-n", "--user", "33", "--via", "none", "--", "id", "-u")
	if status != 0 || out != "33\n" {
		t.Errorf("as one of them: status %d, %q\n%s", status, out, log)
	}
	_, log, status = output(t, as, "-U", "--uid-map", "0:1:5", "--via", "none", "--", "true")
	if status != 125 || !strings.Contains(log, "newuidmap") || !strings.Contains(log, "hint: ") {
		t.Errorf("ids of others: status %d\n%s", status, log)
	}
}

func TestLaunchExitStatus(t *testing.T) {
	for _, c := range []struct {
		want int
		args []string
		say  string
	}{
		{0, []string{"--", "true"}, ""},
		{7, []string{"--", "sh", "-c", "exit 7"}, ""},
		{128 + 9, []string{"--", "sh", "-c", "kill -9 $$"}, ""},
		{2, []string{"--nonsense"}, "hint: socketbox-launch --help"},
		{2, []string{"--ports", "80-", "--", "true"}, "want PORT, PORT=OUTSIDE or FIRST-LAST"},
		{2, []string{"--keep-cap", "everything", "--", "true"}, "no such name"},
		{2, nil, "no command to run"},
		{125, []string{"--netns", "sbxt-not-there", "--", "true"}, "hint: see which there are: ip netns list"},
		{125, []string{"--chdir", "/nonexistent", "--", "true"}, "chdir /nonexistent: no such file"},
		{125, []string{"--via", "preload", "--preload", "/nonexistent.so", "--", "true"}, "the preload library: stat /nonexistent.so"},
		{126, []string{"--", "/etc/passwd"}, "permission denied"},
		{127, []string{"--", "sbxt-not-there"}, "not found"},
	} {
		args := c.args
		if len(args) > 0 && args[0] != "--via" {
			args = append([]string{"--via", "none"}, args...)
		}
		_, log, status := output(t, asRoot, args...)
		if status != c.want || !strings.Contains(log, c.say) {
			t.Errorf("%v: status %d, want %d and %q\n%s", args, status, c.want, c.say, log)
		}
	}
}

// TestLaunchSignals: signals reach the daemon, what it leaves behind is
// reaped, and the launcher ends when the last process has.
func TestLaunchSignals(t *testing.T) {
	p := launch(t, asRoot, "/nonexistent", "--via", "none", "--", "sh", "-c",
		`trap 'echo got hup' HUP; trap 'echo got usr1' USR1; trap 'echo got term; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	p.waitLog("ready")
	p.signal(syscall.SIGHUP)
	p.waitLog("got hup")
	p.signal(syscall.SIGUSR1)
	p.waitLog("got usr1")
	p.signal(syscall.SIGTERM)
	if status := p.wait(5 * time.Second); status != 3 || !strings.Contains(p.log.String(), "got term") {
		t.Errorf("status %d\n%s", status, p.log)
	}
}

func TestLaunchReapsAsProcess1(t *testing.T) {
	args := []string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"}
	cmd := launched(args, "/nonexistent", "--via", "none", "--", "sh", "-c",
		`(sleep 0.2 & (sleep 0.1 &) ) ; sleep 0.5; echo $$; cat /proc/[0-9]*/stat | grep -c " Z "; exit 5`)
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 5 || !strings.HasSuffix(string(out), "\n0\n") {
		t.Errorf("%v, %q", err, out)
	}
}

func TestLaunchBackground(t *testing.T) {
	// A daemon that goes to the background ends well and leaves a process.
	p := launch(t, asRoot, "/nonexistent", "--via", "none", "--", "sh", "-c",
		`sh -c 'trap "echo bye; exit 4" TERM; echo up; while :; do sleep 0.05; done' & exit 0`)
	p.waitLog("up")
	time.Sleep(100 * time.Millisecond)
	p.signal(syscall.SIGTERM)
	if status := p.wait(5 * time.Second); status != 4 || !strings.Contains(p.log.String(), "bye") {
		t.Errorf("status %d\n%s", status, p.log)
	}
	// One that fails takes along what it leaves.
	p = launch(t, asRoot, "/nonexistent", "--via", "none", "--kill-after", "200ms", "--", "sh", "-c",
		`sh -c 'trap "" TERM; echo up; while :; do sleep 0.05; done' & sleep 0.2; exit 6`)
	if status := p.wait(5 * time.Second); status != 6 {
		t.Errorf("status %d\n%s", status, p.log)
	}
	// A second TERM ends one that does not end.
	p = launch(t, asRoot, "/nonexistent", "--via", "none", "--", "sh", "-c", `trap "" TERM; echo up; while :; do sleep 0.05; done`)
	p.waitLog("up")
	p.signal(syscall.SIGTERM)
	time.Sleep(50 * time.Millisecond)
	p.signal(syscall.SIGTERM)
	if status := p.wait(5 * time.Second); status != 128+9 {
		t.Errorf("status %d\n%s", status, p.log)
	}
}

func TestLaunchRestarts(t *testing.T) {
	for when, want := range map[string]int{"no": 1, "on-failure": 2, "always": 3} {
		dir := t.TempDir()
		p := launch(t, asRoot, "/nonexistent", "--via", "none", "--restart", when, "--", "sh", "-c",
			fmt.Sprintf(`echo x >> %[1]s/starts; case $(wc -l < %[1]s/starts) in 1) exit 1;; 2) exit 0;; *) echo third; sleep 60;; esac`, dir))
		if when == "always" {
			p.waitLog("third")
			p.signal(syscall.SIGTERM)
		}
		p.wait(10 * time.Second)
		if starts := strings.Count(p.log.String(), "info: started"); starts != want {
			t.Errorf("--restart %s: %d starts, want %d\n%s", when, starts, want, p.log)
		}
	}
}
