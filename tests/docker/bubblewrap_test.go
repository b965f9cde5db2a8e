//go:build docker

package docker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ordinary is the number of a user that has no name and no rights.
const ordinary = "61234"

// asOrdinary runs a command as the ordinary user.
func asOrdinary(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("setpriv", append([]string{"--reuid", ordinary, "--regid", ordinary, "--clear-groups", "--no-new-privs", "--"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "XDG_RUNTIME_DIR=" + dir,
		"SOCKETBOX_PRELOAD=" + filepath.Join(*bin, "libsocketbox-preload.so")}
	cmd.Dir = "/"
	return cmd
}

// TestBubblewrap is the same without Docker and without root: binder and
// sandbox belong to an ordinary user.
func TestBubblewrap(t *testing.T) {
	const conf = `
daemon off;
pid /tmp/nginx.pid;
error_log stderr;
worker_processes 2;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server {
    listen 8080;
    listen [::]:8080;
    location / { return 200 "$remote_addr $remote_port $server_addr $server_port\n"; }
  }
}
`
	runtime := "/run/user/" + ordinary // in the test's own /run
	if err := os.MkdirAll("/run/user", 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("install", "-d", "-o", ordinary, "-g", ordinary, "-m", "700", runtime).CombinedOutput(); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	file := filepath.Join(runtime, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, asOrdinary(runtime, filepath.Join(*bin, "socketbox"), "bind", "--listen", ":8080")).says(t, "serving")
	sandbox := start(t, asOrdinary(runtime, filepath.Join(*examples, "bubblewrap"), "8080", "nginx", "-e", "stderr", "-c", file))
	waitFor(t, 20*time.Second, func() error {
		_, _, err := get("", "127.0.0.1:8080")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, sandbox.said())
		}
		return nil
	})
	seen(t, client4, server4+":8080")
	seen(t, client6, "["+server6+"]:8080")
	c := begin(100, 2000, 0, "127.0.0.1:8080", "[::1]:8080")
	c.all.Wait()
	t.Log(c)
	if c.lost.Load() > 0 {
		t.Errorf("requests were lost")
	}

	inside := asOrdinary(runtime, filepath.Join(*examples, "bubblewrap"), "8081", "sh", "-c", "cat /proc/net/dev; id -u")
	out, err := inside.CombinedOutput()
	if err != nil || strings.Count(string(out), ":") != 1 || !strings.HasSuffix(strings.TrimSpace(string(out)), ordinary) {
		t.Errorf("the sandbox is not without network, or not of the ordinary user: %v\n%s", err, out)
	}
}
