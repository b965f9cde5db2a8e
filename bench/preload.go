package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Clients of the preload table.
const preloadClients = 100

// Names of the variants; ratios refer to the first.
const (
	nginxNative     = "nginx, its own listener"
	nginxConnection = "nginx, connection hand-off"
	nginxBorrowed   = "nginx, listener lent, preload"
	nginxNotified   = "nginx, listener lent, notify"
)

// preloadTable measures nginx on a listener of its own beside the same nginx
// under the preload library.
func (b *bench) preloadTable() error {
	program, err := exec.LookPath("/usr/sbin/nginx")
	if err != nil {
		return fmt.Errorf("%w\nhint: apt-get install nginx-light", err)
	}
	group := b.preloadVariants(program)
	if err := b.measureRounds("preload", group); err != nil {
		return err
	}
	b.title("nginx as it is, and served by socketbox", "Two workers; a new connection and one short request each. CPU is that of nginx's workers and, with hand-offs, of binder and dispatcher, in µs per connection; latencies in µs.")
	b.head("variant", "clients", "conn/s", "of native", "CPU µs", "of native", "p50", "p99", "lost")
	for _, v := range group {
		b.inetdRow(v, group[0])
	}
	return nil
}

func (b *bench) preloadVariants(program string) []*variant {
	starters := []struct {
		name  string
		start func() (*server, error)
	}{
		{nginxNative, func() (*server, error) { return b.startNginx(program, (*server).native) }},
		{nginxConnection, func() (*server, error) { return b.startNginx(program, (*server).handedOff) }},
		{nginxBorrowed, func() (*server, error) { return b.startNginx(program, lentBy("auto")) }},
		{nginxNotified, func() (*server, error) { return b.startNginx(program, (*server).notified) }},
	}
	if b.reference {
		starters = starters[:1]
	}
	var group []*variant
	for _, s := range starters {
		group = append(group, &variant{name: s.name, clients: preloadClients, measure: func() (sample, error) {
			return b.sampleServer(s.start, own, loadSpec{clients: preloadClients, count: b.count, limit: b.limit})
		}})
	}
	return group
}

// nginxConf has everything that nginx writes in its own folder.
const nginxConf = `daemon off; worker_processes 2; pid DIR/pid; error_log stderr error;
events { worker_connections 1024; }
http {
	access_log off; keepalive_timeout 0;
	client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	server { listen 127.0.0.1:PORT; location / { return 200 "hello\n"; } }
}
`

const httpRequest = "GET / HTTP/1.0\r\n\r\n"

// startNginx starts nginx as with does it, waits until it serves, and notes
// its workers.
func (b *bench) startNginx(program string, with func(s *server, b *bench, command []string) (*process, error)) (_ *server, err error) {
	s := &server{request: httpRequest, resident: map[string]int{}}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.port, err = freePorts(1); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	path, err := b.writeConfig("nginx.conf", strings.NewReplacer("DIR", dir, "PORT", strconv.Itoa(s.port)).Replace(nginxConf))
	if err != nil {
		return nil, err
	}
	master, err := with(s, b, []string{program, "-c", path})
	if err != nil {
		return nil, err
	}
	if err := s.awaitServed(b, s.port); err != nil {
		return nil, err
	}
	var workers []int
	if err := s.await(b, "wait for nginx's two workers", func() bool {
		workers = childrenTitled(master.pid, "nginx: worker process")
		return len(workers) == 2
	}); err != nil {
		return nil, err
	}
	s.measured = append(s.measured, workers...)
	return s, nil
}

func (s *server) native(b *bench, command []string) (*process, error) {
	return s.add(b, command[0], command[1:]...)
}

// lending starts `socketbox bind`, which lends the port's listener to whoever
// comes, and returns its socket directory. What it uses of the processor is
// nothing, which the table shows.
func (s *server) lending(b *bench, flags ...string) (string, error) {
	dir, err := b.socketDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "main")
	if _, err := s.add(b, b.program("socketbox"), append([]string{"bind", "--dir", dir, "--listen", fmt.Sprintf("127.0.0.1:%d", s.port)}, flags...)...); err != nil {
		return "", err
	}
	return dir, s.awaitFile(b, filepath.Join(dir, fmt.Sprintf("%d.listener", s.port)))
}

// borrowing starts a server under the preload library where its listener is lent.
func (s *server) borrowing(b *bench, command []string, flags ...string) (*process, error) {
	dir, err := s.lending(b, flags...)
	if err != nil {
		return nil, err
	}
	return s.add(b, "env", append([]string{"SOCKETBOX_DIR=" + dir, "SOCKETBOX_HANDOFF=listener", "LD_PRELOAD=" + b.program("libsocketbox-preload.so")}, command...)...)
}

// notified starts nginx as a static program is started: in an empty network
// namespace, with a seccomp filter that has bind(2) answered.
func (s *server) notified(b *bench, command []string) (*process, error) {
	dir, err := s.lending(b)
	if err != nil {
		return nil, err
	}
	launch, err := s.add(b, b.program("socketbox-launch"), append([]string{"-n", "--dir", dir, "--via", "notify", "--"}, command...)...)
	if err != nil {
		return nil, err
	}
	var master []int
	if err := s.await(b, "wait for nginx", func() bool {
		master = descendantsTitled(launch.pid, "nginx: master process "+strings.Join(command, " "))
		return len(master) == 1
	}); err != nil {
		return nil, err
	}
	return &process{name: "nginx", pid: master[0]}, nil
}

// handedOff starts nginx under the preload library, in a socket directory that
// is a target's, and `socketbox bind`, which makes that a connection hand-off.
func (s *server) handedOff(b *bench, command []string) (*process, error) {
	dir, err := b.socketDir()
	if err != nil {
		return nil, err
	}
	master, err := s.add(b, "env", append([]string{
		"SOCKETBOX_DIR=" + dir, "SOCKETBOX_PORTS=" + strconv.Itoa(s.port), "LD_PRELOAD=" + b.program("libsocketbox-preload.so"),
	}, command...)...)
	if err != nil {
		return nil, err
	}
	if err := s.awaitFile(b, filepath.Join(dir, fmt.Sprintf("%d.ipv4.sock", s.port))); err != nil {
		return nil, err
	}
	if err := s.addBinder(b, s.port, "--listen", fmt.Sprintf("127.0.0.1:%d", s.port), "--target", dir+"/"); err != nil {
		return nil, err
	}
	s.measured, s.extra = append(s.measured, s.extra...), nil
	return master, nil
}
