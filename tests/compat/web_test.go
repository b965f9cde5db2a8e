//go:build compat

package compat

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

var web = []*daemon{
	nginx("nginx, `listen 80`", "4", "listen 0.0.0.0:%d;"),
	nginx("nginx, `listen [::]:80 ipv6only=off`", "46", "listen [::]:%d ipv6only=off;"),
	nginx("nginx, `listen 80; listen [::]:80`", "46", "listen %d; listen [::]:%d;"),
	nginx("nginx, both with `reuseport deferred`", "46", "listen %d reuseport deferred; listen [::]:%d reuseport deferred;"),
	nginxUpgrade(),
	apache("Apache event, `Listen 80`", "event", "Listen %d"),
	apache("Apache prefork, two `Listen`s", "prefork", "Listen 0.0.0.0:%d\nListen [::]:%d"),
}

var proxies = []*daemon{{
	name: "HAProxy, master-worker, 2 threads", packages: "haproxy", listens: "46",
	remark: "the page is made by a rule with `src` in an IPv4 net",
	reload: syscall.SIGUSR2, reloaded: "Reloading HAProxy\n", ask: askHTTP, report: reportHTTP,
	prepare: func(i *instance) ([]string, error) {
		return []string{"haproxy", "-W", "-f", i.file("haproxy.cfg", fmt.Sprintf(`
global
  nbthread 2
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 30s
frontend web
  bind 0.0.0.0:%d
  bind [::]:%d v6only
  acl near src 127.80.80.0/24
  http-request return status 200 content-type text/plain lf-string "%%[src] %%[src_port] %%[dst] %%[dst_port] near" if near
  http-request return status 200 content-type text/plain lf-string "%%[src] %%[src_port] %%[dst] %%[dst_port] far"
`, i.port, i.port))}, nil
	},
}}

// ports puts the port into every %d.
func ports(format string, port int) string {
	return strings.ReplaceAll(format, "%d", strconv.Itoa(port))
}

func nginx(name, listens, lines string) *daemon {
	return &daemon{
		name: name + ", 2 workers", packages: "nginx-light nginx-core nginx-full nginx-extras nginx", listens: listens,
		reload: syscall.SIGHUP, reloaded: "(SIGHUP) received", ask: askHTTP, report: reportHTTP,
		prepare: func(i *instance) ([]string, error) {
			conf := `
daemon off;
user www-data;
worker_processes 2;
pid DIR/nginx.pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path DIR/body;
  proxy_temp_path DIR/proxy;
  fastcgi_temp_path DIR/fastcgi;
  uwsgi_temp_path DIR/uwsgi;
  scgi_temp_path DIR/scgi;
  server {
    LISTEN
    location / { return 200 "$remote_addr $remote_port $server_addr $server_port"; }
    location /worker { return 200 $pid; }
  }
}
`
			conf = strings.ReplaceAll(conf, "DIR", i.dir)
			conf = strings.ReplaceAll(conf, "LISTEN", ports(lines, i.port))
			return []string{"nginx", "-e", "stderr", "-c", i.file("nginx.conf", conf)}, nil
		},
		special: nginxIsWell,
	}
}

// nginxUpgrade is nginx whose binary is replaced while it runs.
func nginxUpgrade() *daemon {
	d := nginx("nginx, binary upgrade by USR2", "46", "listen %d; listen [::]:%d;")
	d.remark = "nginx clears its environment: the upgrade needs `env LD_PRELOAD; env SOCKETBOX_DIR; env SOCKETBOX_PORTS;`; reload: three upgrades"
	d.reload, d.reloaded, d.upgrade = 0, "using inherited sockets from", upgradeNginx
	configure := d.prepare
	d.prepare = func(i *instance) ([]string, error) {
		command, err := configure(i)
		if err != nil {
			return nil, err
		}
		path := command[len(command)-1]
		conf, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		text := strings.Replace(string(conf), "daemon off;", "daemon on;", 1)
		for name := range strings.FieldsSeq(imported) {
			text = "env " + name + ";\n" + text
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, err
		}
		// The first master ends; the namespace's first process must not.
		return []string{"sh", "-c", `"$@"; while :; do sleep 60; done`, "sh", "/usr/sbin/nginx", "-e", "stderr", "-c", path}, nil
	}
	return d
}

// upgradeNginx does what nginx's manual says: a new master beside the old one,
// then the old workers end, then the old master.
func upgradeNginx(i *instance) error {
	first, err := i.first()
	if err != nil {
		return err
	}
	const script = `
old=$(cat $0)
kill -USR2 $old
n=0
until new=$(cat $0) && [ $new != $old ]; do
	n=$((n + 1))
	[ $n -lt 100 ]
	sleep 0.05
done 2>/dev/null
sleep 0.3
kill -WINCH $old
sleep 0.3
kill -QUIT $old
`
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(first), "-p", "-m", "sh", "-ec", script, filepath.Join(i.dir, "nginx.pid")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("upgrade: %w: %s", err, out)
	}
	return nil
}

// nginxIsWell checks that both workers serve and that nginx logged no alert.
func nginxIsWell(i *instance) error {
	var workers sync.Map
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for n := range 20 {
				visit(dialer(""), i.address(n), func(c net.Conn) error {
					worker, err := get(c, "/worker")
					workers.Store(worker, err)
					return err
				})
			}
		})
	}
	all.Wait()
	count := 0
	workers.Range(func(worker, err any) bool {
		if err == nil {
			count++
		}
		return true
	})
	if count != 2 {
		return fmt.Errorf("%d of 2 workers served", count)
	}
	for _, bad := range []string{"[alert]", "[crit]", "[emerg]"} {
		if strings.Contains(i.log.String(), bad) {
			return fmt.Errorf("its log has an %s", bad)
		}
	}
	return nil
}

func apache(name, mpm, lines string) *daemon {
	return &daemon{
		name: name, packages: "apache2-bin", listens: "46",
		reload: syscall.SIGUSR1, reloaded: "raceful restart", logFile: "error.log", ask: askHTTP,
		prepare: func(i *instance) ([]string, error) {
			i.file("www/index.html", "it works")
			conf := `
ServerName compat.test
ServerRoot DIR
PidFile DIR/apache.pid
LoadModule mpm_MPM_module /usr/lib/apache2/modules/mod_mpm_MPM.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
User www-data
Group www-data
LISTEN
ErrorLog DIR/error.log
LogFormat "%a %{remote}p %A %{local}p" told
CustomLog DIR/told.log told
DocumentRoot DIR/www
DirectoryIndex index.html
ListenBacklog 511
`
			conf = strings.ReplaceAll(conf, "DIR", i.dir)
			conf = strings.ReplaceAll(conf, "MPM", mpm)
			conf = strings.ReplaceAll(conf, "LISTEN", ports(lines, i.port))
			return []string{"apache2", "-DFOREGROUND", "-f", i.file("apache.conf", conf)}, nil
		},
		report: func(i *instance, d *net.Dialer, to string) (*sight, error) {
			s, err := visit(d, net.JoinHostPort(to, strconv.Itoa(i.port)), askHTTP)
			if err != nil {
				return nil, err
			}
			port := strconv.Itoa(int(s.trueClient.Port()))
			line, err := logged(filepath.Join(i.dir, "told.log"), " "+port+" ")
			if err != nil {
				return nil, err
			}
			return s, s.fields(line)
		},
	}
}

// logged waits for a line with text in it and returns the last one.
func logged(path, text string) (line string, err error) {
	err = within(5*time.Second, func() error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			if strings.Contains(l, text) {
				line = strings.TrimSpace(l)
			}
		}
		if line == "" {
			return fmt.Errorf("no line with %q in its log", text)
		}
		return nil
	})
	return line, err
}

func setDeadline(c net.Conn) { c.SetDeadline(time.Now().Add(patience)) }
