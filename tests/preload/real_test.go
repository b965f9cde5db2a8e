package preload

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestPython(t *testing.T) {
	needProgram(t, "/usr/bin/python3")
	for _, c := range []struct{ address, ending, sees string }{
		{"0.0.0.0", ".ipv4.sock", "127.0.0.1 - -"},
		{"::", ".sock", "::ffff:127.0.0.1 - -"},
	} {
		b := bind(t)
		p := b.daemon(plain(), nil, "/usr/bin/python3", "-u", "-m", "http.server", "--bind", c.address, "--directory", t.TempDir(), fmt.Sprint(b.port))
		p.waitLog("Serving HTTP on " + c.address + " port " + fmt.Sprint(b.port))
		if body, err := get(b, "127.0.0.1"); err != nil || !strings.Contains(body, "Directory listing") {
			t.Errorf("%q, %v", body, err)
		}
		p.waitLog(c.sees)
		if c.address == "::" {
			if _, err := get(b, "[::1]"); err != nil {
				t.Error(err)
			}
			p.waitLog("::1 - -")
		}
	}
}

// A new connection for each request.
var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(b *box, host string) (string, error) {
	r, err := client.Get(fmt.Sprintf("http://%s:%d/", host, b.port))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

// Protected mode lets in nobody but clients on a loopback address.
func TestRedis(t *testing.T) {
	needProgram(t, "redis-server", "redis-cli")
	b := bind(t)
	p := b.daemon(plain(), nil, "redis-server", "--port", fmt.Sprint(b.port), "--save", "", "--dir", t.TempDir(), "--bind", "0.0.0.0", "::", "--protected-mode", "yes")
	p.waitLog("Ready to accept")
	for host, want := range map[string]string{"127.0.0.1": "addr=127.0.0.1:", "::1": "addr=[::1]:"} {
		out, err := exec.Command("redis-cli", "-h", host, "-p", fmt.Sprint(b.port), "client", "list").CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", host, err, out)
		}
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.wait(0)
	for _, ending := range []string{".ipv4.sock", ".ipv6.sock"} {
		gone(t, b.path(ending))
	}
}

const nginxConf = `daemon off; pid DIR/pid; worker_processes 2; error_log stderr warn; USER
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	server { LISTEN location / { return 200 "$remote_addr $server_addr $server_port"; } }
}
`

func nginx(t *testing.T, listen string) (*box, *process) { return nginxAt(t, bind(t), listen) }

func nginxAt(t *testing.T, b *box, listen string) (*box, *process) {
	needProgram(t, "nginx")
	dir := t.TempDir()
	// In a namespace with one user only nginx must not believe to be root.
	user, s := "user nobody nogroup;", plain()
	if os.Getenv(insideMark) != "" {
		user, s.prefix = "", []string{"unshare", "-U", "--"}
	}
	text := strings.NewReplacer("DIR", dir, "LISTEN", listen, "PORT", fmt.Sprint(b.port), "USER", user).Replace(nginxConf)
	text = strings.ReplaceAll(text, "PORT", fmt.Sprint(b.port))
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := b.daemon(s, nil, "nginx", "-c", conf)
	eventually(t, func() error {
		pid, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err == nil && len(pid) == 0 {
			err = fmt.Errorf("no pid yet")
		}
		return err
	})
	return b, p
}

func TestNginx(t *testing.T) {
	for name, c := range map[string]struct{ listen, seen4, seen6 string }{
		"both": {"listen PORT; listen [::]:PORT;", "127.0.0.1 127.0.0.1 PORT", "::1 ::1 PORT"},
		"dual": {"listen [::]:PORT ipv6only=off;", "::ffff:127.0.0.1 ::ffff:127.0.0.1 PORT", "::1 ::1 PORT"},
		"reuseport": {"listen PORT reuseport deferred so_keepalive=on rcvbuf=64k; listen [::]:PORT reuseport;",
			"127.0.0.1 127.0.0.1 PORT", "::1 ::1 PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			b, p := nginx(t, c.listen)
			for host, want := range map[string]string{"127.0.0.1": c.seen4, "[::1]": c.seen6} {
				body, err := get(b, host)
				if want = strings.ReplaceAll(want, "PORT", fmt.Sprint(b.port)); err != nil || body != want {
					t.Errorf("%s: %q, %v; want %q", host, body, err, want)
				}
			}
			reloads(t, b, p)
			p.cmd.Process.Signal(syscall.SIGQUIT)
			p.wait(0)
			for _, ending := range []string{".sock", ".ipv4.sock", ".ipv6.sock"} {
				gone(t, b.path(ending))
			}
			if strings.Contains(p.log.String(), "alert") || strings.Contains(p.log.String(), "emerg") {
				t.Error(p.log)
			}
		})
	}
}

// reloads fails the test if any request is lost while nginx reloads.
func reloads(t *testing.T, b *box, p *process) {
	t.Helper()
	var wait sync.WaitGroup
	var failed atomic.Int32
	for i := range 10 {
		wait.Go(func() {
			for range 100 {
				if _, err := get(b, []string{"127.0.0.1", "[::1]"}[i%2]); err != nil {
					failed.Add(1)
					t.Log(err)
				}
			}
		})
	}
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		p.cmd.Process.Signal(syscall.SIGHUP)
	}
	wait.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of 1000 requests were lost", n)
	}
}
