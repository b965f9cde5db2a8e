//go:build compat

package compat

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

var logins = []*daemon{{
	name: "OpenSSH sshd, standalone", packages: "openssh-server", listens: "46",
	remark: "load and reload: the banner; addresses: SSH_CONNECTION of a real session",
	reload: syscall.SIGHUP, reloaded: "Received SIGHUP",
	// The privilege separation directory, for this namespace alone.
	prelude: "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd",
	prepare: func(i *instance) ([]string, error) {
		key, host := filepath.Join(i.dir, "key"), filepath.Join(i.dir, "host")
		for _, path := range []string{key, host} {
			if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput(); err != nil {
				return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
			}
		}
		public, err := os.ReadFile(key + ".pub")
		if err != nil {
			return nil, err
		}
		keys := i.file("authorized", string(public))
		return []string{"/usr/sbin/sshd", "-D", "-e", "-f", i.file("sshd_config", fmt.Sprintf(`
Port %d
ListenAddress 0.0.0.0
ListenAddress ::
HostKey %s
PidFile none
UsePAM no
StrictModes no
AuthorizedKeysFile %s
PermitRootLogin prohibit-password
MaxStartups 1000
UseDNS no
`, i.port, host, keys))}, nil
	},
	ask: func(c net.Conn) error {
		r := bufio.NewReader(c)
		banner, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(banner, "SSH-2.0-OpenSSH") {
			return fmt.Errorf("banner %q", banner)
		}
		// The key exchange that follows shows that a child serves it.
		if _, err := io.WriteString(c, "SSH-2.0-compat\r\n"); err != nil {
			return err
		}
		_, err = r.ReadByte()
		return err
	},
	report: func(i *instance, d *net.Dialer, to string) (*sight, error) {
		from := d.LocalAddr.(*net.TCPAddr).IP.String()
		session := exec.Command("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10", "-o", "IdentitiesOnly=yes", "-i", filepath.Join(i.dir, "key"), "-b", from, "-p", strconv.Itoa(i.port),
			"root@"+to, "echo $SSH_CONNECTION; tail -n +3 /proc/net/dev | wc -l")
		out, err := session.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("ssh: %w: %s", err, out)
		}
		line, interfaces, _ := strings.Cut(string(out), "\n")
		if i.preload && strings.TrimSpace(interfaces) != "1" {
			return nil, fmt.Errorf("the session has %q interfaces: it is not in the daemon's namespace", interfaces)
		}
		s := &sight{
			trueClient: netip.AddrPortFrom(netip.MustParseAddr(from), 0), // ssh's port is its own
			trueServer: netip.AddrPortFrom(netip.MustParseAddr(to), uint16(i.port)),
		}
		return s, s.fields(line)
	},
}}
