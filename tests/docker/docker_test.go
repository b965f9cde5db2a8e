//go:build docker

package docker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// engine is a Docker daemon of the test's own.
type engine struct {
	t    *testing.T
	host string
}

// startEngine starts dockerd without bridge and packet filter rules, which the
// machine may not have.
func startEngine(t *testing.T) *engine {
	t.Helper()
	dir := temporary(t)
	e := &engine{t: t, host: "unix://" + dir + "/docker.sock"}
	start(t, exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "-H", e.host,
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs", "--cgroup-parent=/"+cgroupParent))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("docker logs web:\n%s", e.try("logs", "--tail", "40", "web"))
		}
		e.try("rm", "-f", "web")
	})
	waitFor(t, 60*time.Second, func() error {
		out, err := e.command("version").CombinedOutput()
		if err != nil {
			return fmt.Errorf("docker version: %w: %s", err, out)
		}
		return nil
	})
	return e
}

func (e *engine) command(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.host, "DOCKER_BUILDKIT=0")
	return cmd
}

func (e *engine) try(args ...string) string {
	out, _ := e.command(args...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

func (e *engine) must(args ...string) string {
	e.t.Helper()
	out, err := e.command(args...).CombinedOutput()
	if err != nil {
		e.t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

var sharedObject = regexp.MustCompile(`/\S+`)

// image makes the image NAME from this machine's nginx, curl and busybox,
// with the libraries that ldd names.
func (e *engine) image(name string) {
	e.t.Helper()
	root := filepath.Join(temporary(e.t), "root")
	must := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			e.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	must("mkdir", "-p", root+"/bin", root+"/etc/nginx", root+"/var/lib/nginx", root+"/var/log/nginx", root+"/run", root+"/usr/sbin", root+"/tmp")
	// The library is not copied, but it brings libraries of libc as well.
	programs := map[string]string{"nginx": "/usr/sbin/nginx", "curl": "/bin/curl", "busybox": "/bin/busybox", filepath.Join(*bin, "libsocketbox-preload.so"): ""}
	for program, inside := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			e.t.Fatal(err)
		}
		if inside != "" {
			must("cp", "-L", path, root+inside)
		}
		libraries, err := exec.Command("ldd", path).Output()
		if err != nil {
			continue // a static program
		}
		for _, library := range sharedObject.FindAllString(string(libraries), -1) {
			must("mkdir", "-p", root+filepath.Dir(library))
			must("cp", "-L", library, root+library)
		}
	}
	for _, tool := range []string{"sh", "test", "cat", "kill", "pidof"} {
		must("ln", "-s", "busybox", root+"/bin/"+tool)
	}
	for file, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
		"group":  "root:x:0:\nnogroup:x:65534:\nnobody:x:65533:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", file), []byte(text), 0o644); err != nil {
			e.t.Fatal(err)
		}
	}
	tar := filepath.Join(filepath.Dir(root), "root.tar")
	must("tar", "-C", root, "-cf", tar, ".")
	e.must("import", "--change", `CMD ["/usr/sbin/nginx", "-g", "daemon off;"]`, tar, name)
}

// bind starts `socketbox bind` on port 80 of the test's namespace, with the
// container's socket directory as docs/examples/README.md makes it.
func bind(t *testing.T) {
	t.Helper()
	p := start(t, exec.Command(filepath.Join(*bin, "socketbox"), "bind", "--user", "nobody", "--listen", ":80", "--target", "/run/socketbox/web/"))
	p.says(t, "serving")
	info, err := os.Stat("/run/socketbox")
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid)
	if out, err := exec.Command("install", "-d", "-o", "root", "-g", group, "-m", "2750", "/run/socketbox/web").CombinedOutput(); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
}

// TestDocker is the headline use: nginx in a container without any network.
func TestDocker(t *testing.T) {
	e := startEngine(t)
	image, args := runArgs(t)
	e.image(image)
	bind(t)
	e.must(append(append([]string{"run", "-d", "--name", "web"}, args...), image)...)
	waitFor(t, 30*time.Second, func() error {
		_, _, err := get("", "127.0.0.1:80")
		return err
	})

	t.Run("real addresses", func(t *testing.T) {
		seen(t, client4, server4+":80")
		seen(t, client6, "["+server6+"]:80")
	})
	t.Run("no network inside", func(t *testing.T) {
		interfaces := e.must("exec", "web", "cat", "/proc/net/dev")
		if n := strings.Count(interfaces, ":"); n != 1 || !strings.Contains(interfaces, "lo:") {
			t.Errorf("interfaces inside:\n%s", interfaces)
		}
	})
	t.Run("load", func(t *testing.T) {
		c := begin(100, 2000, 0, "127.0.0.1:80", "[::1]:80")
		c.all.Wait()
		t.Log(c)
		if c.lost.Load() > 0 {
			t.Errorf("requests were lost")
		}
	})
	t.Run("restart under load", func(t *testing.T) { restart(t, e) })
	t.Run("crash", func(t *testing.T) { crash(t, e) })
	t.Run("health", func(t *testing.T) { health(t, e) })
}

// restart restarts the container twice while clients come: they are served,
// those that come in between after a wait.
func restart(t *testing.T, e *engine) {
	c := begin(8, 20_000, 2*time.Millisecond, "127.0.0.1:80", "[::1]:80")
	for range 2 {
		time.Sleep(500 * time.Millisecond)
		e.must("restart", "web")
	}
	time.Sleep(time.Second)
	c.end()
	t.Log(c)
	// Known: what waits in the receiving sockets when nginx closes the last
	// copy of its listeners is reset, as a TCP backlog is. The library counts.
	reset := 0
	for _, m := range waiting.FindAllStringSubmatch(e.must("logs", "web"), -1) {
		n, _ := strconv.Atoi(m[1])
		reset += n
	}
	if lost := int(c.lost.Load()); lost > reset {
		t.Errorf("%d requests were lost, of which the library told %d", lost, reset)
	}
	if reset > 2*2*queue {
		t.Errorf("%d connections were reset by two restarts of two listeners", reset)
	}
}

var waiting = regexp.MustCompile(`closed with (\d+) connections waiting: reset`)

// queue is how many datagrams wait in a receiving socket: one more than
// net.unix.max_dgram_qlen.
const queue = 11

// crash kills the container, which leaves its socket files: clients that come
// then are served when it is back.
func crash(t *testing.T, e *engine) {
	e.must("kill", "web")
	c := begin(5, 5, 0, "127.0.0.1:80", "[::1]:80")
	time.Sleep(500 * time.Millisecond)
	if n := c.served.Load() + c.lost.Load(); n != 0 {
		t.Errorf("%d clients did not wait for the container: %s", n, c)
	}
	e.must("start", "web")
	c.all.Wait()
	t.Log(c)
	if c.served.Load() != 5 {
		t.Errorf("%s", c)
	}
}

// health checks that the recipe says healthy of a container that serves, and
// unhealthy of one whose nginx hangs.
func health(t *testing.T, e *engine) {
	is := func(want string) {
		t.Helper()
		waitFor(t, 40*time.Second, func() error {
			got := e.must("inspect", "--format", "{{.State.Health.Status}}", "web")
			if got != want {
				return fmt.Errorf("it is %s, not %s: %s", got, want, e.try("inspect", "--format", "{{json .State.Health.Log}}", "web"))
			}
			return nil
		})
	}
	is("healthy")
	e.must("exec", "web", "sh", "-c", "kill -STOP $(pidof nginx)")
	is("unhealthy")
	// What the check must not be: the file is there, whatever nginx does.
	e.must("exec", "web", "test", "-S", "/run/socketbox/web/80.ipv4.sock")
	e.must("exec", "web", "sh", "-c", "kill -CONT $(pidof nginx)")
	is("healthy")
}
