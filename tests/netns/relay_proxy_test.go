package netns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// proxyAware are programs that take the client's address from a PROXY header,
// answer with it, and log it.
var proxyAware = map[string]func(t *testing.T, ns namespace, port int) (log func() string){
	"nginx":   startNginx,
	"haproxy": startHAProxy,
}

func startNginx(t *testing.T, ns namespace, port int) func() string {
	needProgram(t, "nginx")
	dir := publicDir(t)
	conf := fmt.Sprintf(`
daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
	log_format who '$remote_addr $remote_port $proxy_protocol_addr $proxy_protocol_port';
	access_log %[1]s/access.log who;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	server {
		listen 127.0.0.1:%[2]d proxy_protocol;
		set_real_ip_from 127.0.0.1;
		real_ip_header proxy_protocol;
		location / { return 200 "$remote_addr $remote_port"; }
	}
}`, dir, port)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, ns.command("nginx", "-p", dir, "-c", file))
	return func() string { text, _ := os.ReadFile(filepath.Join(dir, "access.log")); return string(text) }
}

func startHAProxy(t *testing.T, ns namespace, port int) func() string {
	needProgram(t, "haproxy")
	conf := fmt.Sprintf(`
global
	maxconn 100
	log stdout format raw local0
defaults
	mode http
	log global
	log-format "%%ci %%cp"
	timeout client 10s
	timeout server 10s
	timeout connect 10s
frontend f
	bind 127.0.0.1:%d accept-proxy
	http-request return status 200 content-type text/plain lf-string "%%[src] %%[src_port]"
`, port)
	file := filepath.Join(publicDir(t), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p := start(t, ns.command("haproxy", "-db", "-f", file))
	return p.log.String
}

// listensIn waits until something listens on a port in ns.
func listensIn(t *testing.T, ns namespace, port int) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		out, err := ns.command("ss", "-ltnH", fmt.Sprintf("sport = :%d", port)).Output()
		if err == nil && len(out) == 0 {
			err = fmt.Errorf("nobody listens on port %d", port)
		}
		return err
	})
}

// nginx and HAProxy in a namespace without a network answer with the client's
// real address, and log it: IPv4 and IPv6, version 1 and 2.
func TestRelayProxyHeader(t *testing.T) {
	for name, startServer := range proxyAware {
		for _, version := range []string{"v1", "v2"} {
			t.Run(name+" "+version, func(t *testing.T) {
				port, ns := freePort(t), ipNetns(t)
				log := startServer(t, ns, port)
				listensIn(t, ns, port)
				b := bind(t, "--listen", fmt.Sprint(":", port))
				relay(t, here(), "--dir", b.dir, "--netns", ns.name, "--to", fmt.Sprint("127.0.0.1:", port), "--send-proxy", version)
				for client, server := range map[string]string{"127.0.4.7": "127.0.0.1", "::1": "[::1]"} {
					local := strconv.Itoa(freePort(t))
					out, err := exec.Command("curl", "-gsS", "--max-time", "10", "--interface", client, "--local-port", local,
						fmt.Sprintf("http://%s:%d/", server, port)).CombinedOutput()
					want := client + " " + local
					if string(out) != want || err != nil {
						t.Errorf("%q, %v; want %q", out, err, want)
					}
					eventually(t, 5*time.Second, func() error {
						if !strings.Contains(log(), want) {
							return fmt.Errorf("%q is not in the log of %s:\n%s", want, name, log())
						}
						return nil
					})
				}
			})
		}
	}
}

// A client of a Unix socket has no address: UNKNOWN, LOCAL.
func TestRelayProxyHeaderOfUnixClient(t *testing.T) {
	for version, want := range map[string]string{
		"v1": "PROXY UNKNOWN\r\n", "v2": "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x0b\x05\x00\x08",
	} {
		port, conns := accepting(t)
		path := filepath.Join(publicDir(t), "front")
		relay(t, here(), "--listen", "unix:"+path, "--to", fmt.Sprint("127.0.0.1:", port), "--send-proxy", version)
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		server := <-conns
		if _, err := io.ReadFull(server, got); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", version, got, err, want)
		}
		server.Close()
		c.Close()
	}
}

// What a trusted proxy says of its client goes on; who is not trusted is no
// proxy, whatever he says; a trusted one that does not begin so is reset.
func TestRelayAcceptsProxyHeader(t *testing.T) {
	port, conns := accepting(t)
	at := freePort(t)
	r := relay(t, here(), "--listen", fmt.Sprint("127.0.0.1:", at), "--to", fmt.Sprint("127.0.0.1:", port),
		"--accept-proxy", "127.0.5.0/24", "--send-proxy", "v1")
	v2 := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24")
	v2 = append(v2, netip.MustParseAddr("2001:db8::7").AsSlice()...)
	v2 = append(v2, netip.MustParseAddr("2001:db8::1").AsSlice()...)
	v2 = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(v2, 4007), 443)
	address := fmt.Sprint("127.0.0.1:", at)
	for _, tt := range []struct {
		from string
		says []string
		want string
	}{
		{"127.0.5.1", []string{"PROXY TCP4 192.0.2.7 198.51.100.1 4007 80\r\nhello"}, "PROXY TCP4 192.0.2.7 198.51.100.1 4007 80\r\nhello"},
		{"127.0.5.1", []string{"PROXY TCP4 192.0.2.7 198.5", "1.100.1 4007 80\r", "\nhel", "lo"}, "PROXY TCP4 192.0.2.7 198.51.100.1 4007 80\r\nhello"},
		{"127.0.5.1", []string{string(v2[:20]), string(v2[20:]) + "hello"}, "PROXY TCP6 2001:db8::7 2001:db8::1 4007 443\r\nhello"},
		{"127.0.6.1", []string{"PROXY TCP4 192.0.2.7 198.51.100.1 4007 80\r\n"}, "PROXY TCP4 127.0.6.1 127.0.0.1 "},
		{"127.0.5.1", []string{"GET / HTTP/1.1\r\n\r\n"}, ""},
		{"127.0.5.1", []string{"PROXY TCP4 192.0.2.7 x\r\n"}, ""},
	} {
		c := dialFrom(t, tt.from, address)
		for _, text := range tt.says {
			c.Write([]byte(text))
			time.Sleep(20 * time.Millisecond) // a packet of its own
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if tt.want == "" {
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == io.EOF {
				t.Errorf("%q from %s: read %d, %v; want a reset", tt.says, tt.from, n, err)
			}
			c.Close()
			continue
		}
		server := <-conns
		got := make([]byte, len(tt.want))
		server.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, []byte(tt.want)) {
			t.Errorf("%q from %s: the destination gets %q, %v; want %q", tt.says, tt.from, got, err, tt.want)
		}
		server.Close()
		c.Close()
	}
	r.waitLog("did not begin with one")
	r.waitLog("client=[2001:db8::7]:4007")
	r.waitLog("via=127.0.5.1:")
}
