package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

//	client ──TCP──► socketbox bind          socketbox-launch -n -- daemon
//	                this namespace    ────►  a namespace with only lo

// ordinaryID is the number of a user that has no name and no rights.
const ordinaryID = "61234"

// asRoot and asOrdinary are who runs binder, launcher and daemon.
var (
	asRoot     []string
	asOrdinary = []string{"setpriv", "--reuid", ordinaryID, "--regid", ordinaryID, "--clear-groups", "--"}
)

// eachUser runs a test as root and as an ordinary user.
func eachUser(t *testing.T, test func(t *testing.T, as []string)) {
	t.Run("root", func(t *testing.T) { test(t, asRoot) })
	t.Run("ordinary", func(t *testing.T) {
		needRoot(t)
		test(t, asOrdinary)
	})
}

// launched returns the command of a launcher; args are flags, "--" and the
// daemon.
func launched(as []string, dir string, args ...string) *exec.Cmd {
	all := append(append([]string{}, as...), filepath.Join(programs, "socketbox-launch"), "--dir", dir)
	all = append(all, args...)
	return exec.Command(all[0], all[1:]...)
}

// launch starts a launcher. It gets TERM at the end of the test: what it has
// started then ends, too.
func launch(t *testing.T, as []string, dir string, args ...string) *process {
	t.Helper()
	p := start(t, launched(as, dir, args...))
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			t.Errorf("%s does not end:\n%s", p.cmd, p.log)
		}
	})
	return p
}

// bindAs starts `socketbox bind` on one port of both families as a user.
func bindAs(t *testing.T, as []string, port int, args ...string) *box {
	t.Helper()
	dir := socketDir(t)
	if len(as) > 0 {
		if err := os.Chown(filepath.Dir(dir), 61234, 61234); err != nil {
			t.Fatal(err)
		}
	}
	all := append(append([]string{}, as...), filepath.Join(programs, "socketbox"), "bind", "--dir", dir, "--listen", fmt.Sprintf(":%d", port))
	all = append(all, args...)
	b := &box{process: start(t, exec.Command(all[0], all[1:]...)), dir: dir}
	b.waitLog("serving")
	return b
}

// fetch gets / from the port of a host, over a connection of its own, and
// returns the body and the client's own address.
func fetch(host string, port int) (body, own string, err error) {
	var conn net.Conn
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return conn, err
		},
	}}
	answer, err := client.Get("http://" + net.JoinHostPort(host, fmt.Sprint(port)) + "/")
	if err != nil {
		return "", "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", answer.Status)
	}
	return string(text), conn.LocalAddr().String(), err
}

var loopbacks = []string{"127.0.0.1", "::1"}

// answers waits until both families are served. truth: the body must name the
// client's address.
func answers(t *testing.T, p *process, port int, truth bool) {
	t.Helper()
	for _, host := range loopbacks {
		eventually(t, 15*time.Second, func() error {
			body, own, err := fetch(host, port)
			if err == nil && truth && !strings.Contains(body, own) {
				err = fmt.Errorf("the daemon says %q to %s", body, own)
			}
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", host, err, p.log)
			}
			return nil
		})
	}
}

// nginxConf is of an nginx with two workers that answers with the client's
// address. Its directory must be its user's.
func nginxConf(t *testing.T, as []string, port int) (file string) {
	t.Helper()
	dir := filepath.Dir(socketDir(t))
	conf := fmt.Sprintf(`
daemon off;
pid %[1]s/pid;
error_log stderr;
worker_processes 2;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  server {
    listen %[2]d;
    listen [::]:%[2]d;
    set $host_of $remote_addr;
    if ($remote_addr ~ :) { set $host_of [$remote_addr]; }
    location / { return 200 "$host_of:$remote_port\n"; }
  }
}
`, dir, port)
	file = filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if len(as) > 0 {
		if err := os.Chown(dir, 61234, 61234); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func TestLaunchNginx(t *testing.T) {
	needProgram(t, "nginx")
	eachUser(t, func(t *testing.T, as []string) {
		port := freePort(t)
		b := bindAs(t, as, port)
		p := launch(t, as, b.dir, "-n", "--", "nginx", "-e", "stderr", "-c", nginxConf(t, as, port))
		answers(t, p, port, true)
		p.signal(syscall.SIGTERM)
		if status := p.wait(10 * time.Second); status != 0 {
			t.Errorf("nginx ended by TERM: the launcher exits with %d", status)
		}
	})
}

func TestLaunchPython(t *testing.T) {
	eachUser(t, func(t *testing.T, as []string) {
		port := freePort(t)
		b := bindAs(t, as, port)
		p := launch(t, as, b.dir, "-n", "--ports", fmt.Sprintf("8000=%d", port), "--chdir", "/usr/share/misc", "--", "/usr/bin/python3", "-m", "http.server", "8000")
		answers(t, p, port, false)
	})
}

// TestLaunchFirst starts the daemon before there is a socket directory.
func TestLaunchFirst(t *testing.T) {
	port, dir := freePort(t), socketDir(t)
	p := launch(t, asRoot, dir, "-n", "--chdir", "/usr/share/misc", "--", "/usr/bin/python3", "-m", "http.server", fmt.Sprint(port))
	p.waitLog("waiting for the socket directory")
	bindIn(t, here(), dir, "--listen", fmt.Sprintf(":%d", port))
	answers(t, p, port, false)
}
