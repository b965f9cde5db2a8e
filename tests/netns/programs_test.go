package netns

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// isolated are the two usual ways to a network namespace with nothing but lo.
var isolated = []struct {
	name string
	make func(*testing.T) namespace
}{
	{"ip netns add", ipNetns},
	{"unshare -n", func(*testing.T) namespace { return unshared() }},
}

// dialled are the addresses of a two-family listener that clients dial, and
// where those clients come from.
var dialled = []struct{ name, server, client string }{
	{"IPv4", "127.0.0.1", "127.82.7.1"},
	{"IPv6", "::1", "::1"},
}

// OpenSSH's server in an isolated namespace serves OpenSSH's client.
func TestSSH(t *testing.T) {
	needRoot(t)
	server, keys := sshServer(t)
	for _, isolation := range isolated {
		t.Run(isolation.name, func(t *testing.T) {
			port := freePort(t)
			b := bind(t, "--listen", fmt.Sprint(":", port))
			inetd(t, isolation.make(t), b.dir, append([]string{"--port", strconv.Itoa(port), "--"}, server...)...)
			for _, d := range dialled {
				t.Run(d.name, func(t *testing.T) {
					ssh := func(command string) *exec.Cmd { return sshClient(t, keys, d.server, d.client, port, command) }
					checkSSHSession(t, ssh, d.server, d.client, port)
					checkSSHStream(t, ssh)
				})
			}
		})
	}
}

// checkSSHSession looks around where ssh's command runs.
func checkSSHSession(t *testing.T, ssh func(string) *exec.Cmd, server, client string, port int) {
	t.Helper()
	ip := needProgram(t, "ip")
	out, err := ssh(`echo "$SSH_CONNECTION"; readlink /proc/self/ns/net; ` + ip + ` -o addr`).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh: %v\n%s", err, out)
	}
	connection, rest, _ := strings.Cut(string(out), "\n")
	where, addresses, _ := strings.Cut(rest, "\n")
	f := strings.Fields(connection)
	if len(f) != 4 || f[0] != client || f[1] == "0" || f[2] != server || f[3] != strconv.Itoa(port) {
		t.Errorf("SSH_CONNECTION %q, the client is %s, the server %s port %d", connection, client, server, port)
	}
	if own, _ := os.Readlink("/proc/self/ns/net"); where == own || !strings.HasPrefix(where, "net:[") {
		t.Errorf("the command ran in %q, the client is in %q", where, own)
	}
	if names := interfaces(addresses); !slices.Equal(names, []string{"lo"}) {
		t.Errorf("interfaces where the command ran: %v", names)
	}
}

// interfaces are the names in the output of ip -o addr.
func interfaces(addresses string) []string {
	var names []string
	for line := range strings.Lines(addresses) {
		if f := strings.Fields(line); len(f) > 1 && !slices.Contains(names, f[1]) {
			names = append(names, f[1])
		}
	}
	return names
}

// checkSSHStream sends some megabytes there and back.
func checkSSHStream(t *testing.T, ssh func(string) *exec.Cmd) {
	t.Helper()
	data := make([]byte, 4<<20)
	rand.Read(data)
	cmd := ssh("cat")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, data) {
		t.Errorf("%d bytes through ssh: %d came back, %v", len(data), len(out), err)
	}
}

// sshServer returns the command line of an sshd of the test's own, and where
// the keys for it are.
func sshServer(t *testing.T) (command []string, keys string) {
	t.Helper()
	sshd := needProgram(t, "sshd")
	privilegeSeparationDirectory(t)
	keys = t.TempDir()
	for _, name := range []string{"host", "client"} {
		mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(keys, name))
	}
	pam := "no"
	if rootLocked(t) {
		pam = "yes" // sshd by itself lets nobody with a locked password in
	}
	config := fmt.Sprintf(`HostKey %[1]s/host
AuthorizedKeysFile %[1]s/client.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM %[2]s
StrictModes no
PrintMotd no
PidFile none
`, keys, pam)
	file := filepath.Join(keys, "sshd_config")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{sshd, "-i", "-e", "-f", file}, keys
}

// privilegeSeparationDirectory makes the directory that sshd insists on and
// that otherwise its service makes.
func privilegeSeparationDirectory(t *testing.T) {
	t.Helper()
	const dir = "/run/sshd"
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		t.Cleanup(func() { os.Remove(dir) })
	case !errors.Is(err, fs.ErrExist):
		t.Fatal(err)
	}
}

func rootLocked(t *testing.T) bool {
	t.Helper()
	shadow, err := os.ReadFile("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(shadow)) {
		if f := strings.Split(line, ":"); f[0] == "root" && len(f) > 1 {
			return strings.HasPrefix(f[1], "!")
		}
	}
	return false
}

// sshClient returns an ssh command that knows nothing of this machine's keys
// and agents.
func sshClient(t *testing.T, keys, server, client string, port int, command string) *exec.Cmd {
	t.Helper()
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(needProgram(t, "ssh"), "-F", "/dev/null", "-i", filepath.Join(keys, "client"), "-b", client,
		"-p", strconv.Itoa(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "ConnectTimeout=20", root.Username+"@"+server, command)
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = time.Second
	return cmd
}

// busybox's web server in an isolated namespace serves curl.
func TestHTTPD(t *testing.T) {
	const size = 50 << 20
	www := newSite(t, size)
	for _, isolation := range isolated {
		t.Run(isolation.name, func(t *testing.T) {
			port := freePort(t)
			b := bind(t, "--listen", fmt.Sprint(":", port))
			inetd(t, isolation.make(t), b.dir, append([]string{"--port", strconv.Itoa(port), "--"}, www.server()...)...)
			for _, d := range dialled {
				t.Run(d.name, func(t *testing.T) {
					begun := time.Now()
					www.fetchFile(t, here(), d.client, d.server, port)
					took := time.Since(begun)
					t.Logf("%d MB in %v, %.0f MB/s", size>>20, took.Round(time.Millisecond), size/1e6/took.Seconds())
					if names := www.fetchPage(t, here(), d.client, d.server, port); !slices.Equal(names, []string{"lo"}) {
						t.Errorf("interfaces where the server runs: %v", names)
					}
				})
			}
		})
	}
}

// site is what busybox httpd serves: one large file, and a page that tells
// the client's address and the server's interfaces.
type site struct {
	dir string
	sum [sha256.Size]byte // of the file
}

func newSite(t *testing.T, size int) *site {
	t.Helper()
	needProgram(t, "busybox")
	needProgram(t, "curl")
	s := &site{dir: t.TempDir()}
	data := make([]byte, size)
	rand.Read(data)
	s.sum = sha256.Sum256(data)
	page := "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$REMOTE_ADDR $TCPREMOTEPORT\"\n" +
		needProgram(t, "ip") + " -o addr\n"
	err := os.WriteFile(filepath.Join(s.dir, "file"), data, 0o644)
	err = errors.Join(err, os.WriteFile(filepath.Join(s.dir, "httpd.conf"), nil, 0o644))
	err = errors.Join(err, os.Mkdir(filepath.Join(s.dir, "cgi-bin"), 0o755))
	err = errors.Join(err, os.WriteFile(filepath.Join(s.dir, "cgi-bin", "page"), []byte(page), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// server returns the command line of the web server.
func (s *site) server() []string {
	return []string{"busybox", "httpd", "-i", "-c", filepath.Join(s.dir, "httpd.conf"), "-h", s.dir}
}

// curl runs curl in ns from the address client and writes to out what comes;
// it returns curl's own address and port.
func (s *site) curl(t *testing.T, ns namespace, client, server string, port int, path string, out io.Writer) string {
	t.Helper()
	if strings.Contains(server, ":") {
		server = "[" + server + "]"
	}
	cmd := ns.command("curl", "-q", "-sS", "--fail", "--noproxy", "*", "--max-time", "30", "--interface", client,
		"-w", "%{stderr}%{local_ip} %{local_port}", fmt.Sprintf("http://%s:%d/%s", server, port, path))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &said)
	}
	return said.String()
}

// fetchFile fetches the file and fails the test unless all of it comes as it
// is.
func (s *site) fetchFile(t *testing.T, ns namespace, client, server string, port int) {
	t.Helper()
	hash := sha256.New()
	s.curl(t, ns, client, server, port, "file", hash)
	if got := [sha256.Size]byte(hash.Sum(nil)); got != s.sum {
		t.Errorf("what came from %s has the hash %x, not %x", server, got, s.sum)
	}
}

// fetchPage fails the test unless the server saw its client's own address,
// and returns the interfaces that the server has.
func (s *site) fetchPage(t *testing.T, ns namespace, client, server string, port int) []string {
	t.Helper()
	var page bytes.Buffer
	own := s.curl(t, ns, client, server, port, "cgi-bin/page", &page)
	seen, addresses, _ := strings.Cut(page.String(), "\n")
	// busybox puts the address into brackets if it is one of IPv6.
	if strings.NewReplacer("[", "", "]", "").Replace(seen) != own || !strings.HasPrefix(own, client+" ") {
		t.Errorf("the server saw %q, its client was %q", seen, own)
	}
	return interfaces(addresses)
}

// compiled compiles testdata/NAME.c and returns the program's path, which
// every user may execute.
func compiled(t *testing.T, name string) string {
	t.Helper()
	program := filepath.Join(publicDir(t), name)
	mustRun(t, needProgram(t, "cc"), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, filepath.Join("testdata", name+".c"))
	return program
}
