package doctor

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/listen"
)

// kernel looks for what binder, dispatcher and launch build on.
func (p *patient) kernel() {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	if errno != 0 {
		p.say(Note, "a kernel of 5.13 or later, booted with landlock in lsm=", "no Landlock (%v): the dispatcher and isolated daemons do without that layer", errno)
	} else {
		p.say(OK, "", "Landlock ABI %d", abi)
	}
	actions := readWord("/proc/sys/kernel/seccomp/actions_avail")
	switch {
	case !strings.Contains(actions, "kill_process"):
		p.say(Problem, "a kernel of 4.14 or later with CONFIG_SECCOMP_FILTER", "no seccomp filters that kill (available: %q): socketbox bind refuses to serve", actions)
	case !strings.Contains(actions, "user_notif"):
		p.say(Note, "a kernel of 5.0 or later", "seccomp can't notify")
	default:
		p.say(OK, "", "seccomp filters, with notification")
	}
	if mount := groupMount(); mount == "" {
		p.say(Note, "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1", "no cgroup v2: there can be no guard")
	} else {
		p.say(OK, "", "cgroup v2 at %s", mount)
	}
	if major, minor, release := kernelVersion(); major < 5 || major == 5 && minor < 9 {
		p.say(Note, "a kernel of 5.9 or later", "kernel %s has no sk_lookup: whole prefixes take AnyIP or TPROXY", release)
	} else {
		p.say(OK, "", "kernel %s, with sk_lookup", release)
	}
}

// groupMount is where cgroup v2 is mounted, "" if it is not.
func groupMount() string {
	for line := range strings.Lines(readFile("/proc/self/mountinfo")) {
		mount, kind, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(kind, "cgroup2 ") && len(fields) > 4 {
			return fields[4]
		}
	}
	return ""
}

func kernelVersion() (major, minor int, release string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return 0, 0, "unknown"
	}
	release = unix.ByteSliceToString(u.Release[:])
	first, rest, _ := strings.Cut(release, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, _ = strconv.Atoi(first)
	minor, _ = strconv.Atoi(strings.TrimRight(second, "-+abcdefghijklmnopqrstuvwxyz"))
	return major, minor, release
}

const (
	// kernelQueue is the kernel's own net.unix.max_dgram_qlen, which socketbox is
	// made for; fewer means a wake-up for each connection.
	kernelQueue = 10
	goodQueue   = 64
)

// sysctls looks at those that matter, in this network namespace.
func (p *patient) sysctls() {
	wanted := p.backlog()
	if n := readNumber("/proc/sys/net/core/somaxconn"); n >= 0 && n < wanted {
		p.say(Warning, "sysctl -w net.core.somaxconn="+strconv.Itoa(wanted)+" in the listeners' namespaces, then restart",
			"net.core.somaxconn is %d: it caps the backlog, in which clients wait, of %d", n, wanted)
	} else if n >= 0 {
		p.say(OK, "", "net.core.somaxconn %d", n)
	}
	const queue = "/proc/sys/net/unix/max_dgram_qlen"
	cure := "sysctl -w net.unix.max_dgram_qlen=512 in the receivers' namespaces, before they start"
	switch n := readNumber(queue); {
	case n < 0:
	case n < kernelQueue:
		p.say(Warning, cure, "net.unix.max_dgram_qlen is %d: a receiver's queue takes that many connections and one more, then each waits for a wake-up", n)
	case n < goodQueue:
		p.say(Note, cure, "net.unix.max_dgram_qlen is %d: a burst beyond it is held, which costs a little", n)
	default:
		p.say(OK, "", "net.unix.max_dgram_qlen %d", n)
	}
	p.lowPorts()
}

// backlog is the largest that a listener asks for.
func (p *patient) backlog() int {
	most := listen.DefaultBacklog
	if p.cfg == nil || len(p.cfg.Listeners) == 0 {
		return most
	}
	most = 0
	for _, l := range p.cfg.Listeners {
		n := l.Backlog
		if n == 0 {
			n = listen.DefaultBacklog
		}
		most = max(most, n)
	}
	return most
}

// lowPorts: an ordinary user may not bind below a limit.
func (p *patient) lowPorts() {
	first := readNumber("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if os.Geteuid() == 0 || first < 0 || p.cfg == nil {
		return
	}
	for _, l := range p.cfg.Listeners {
		if l.Network == listen.TCP && l.Port > 0 && int(l.Port) < first {
			p.say(Problem, "start it as root, or sysctl -w net.ipv4.ip_unprivileged_port_start="+strconv.Itoa(int(l.Port)),
				"listener %s: an ordinary user may not bind port %d, net.ipv4.ip_unprivileged_port_start is %d", l.Name, l.Port, first)
		}
	}
}

// namespaces looks at what keeps ordinary users from user namespaces, which
// socketbox-launch makes for them.
func (p *patient) namespaces() {
	found := false
	for _, c := range []struct {
		file, sysctl string
		bad          func(int) bool
		good         string
	}{
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns", func(n int) bool { return n == 1 }, "0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", func(n int) bool { return n == 0 }, "1"},
		{"/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", func(n int) bool { return n == 0 }, "10000"},
	} {
		if n := readNumber(c.file); n >= 0 && c.bad(n) {
			found = true
			p.say(Note, "start it as root, or sysctl -w "+c.sysctl+"="+c.good, "%s is %d: ordinary users can't make user namespaces, as socketbox-launch -n does for them", c.sysctl, n)
		}
	}
	if !found {
		p.say(OK, "", "ordinary users may make user namespaces")
	}
}

// selinux confines containers by labels that a socket directory must have.
func (p *patient) selinux() {
	if readNumber("/sys/fs/selinux/enforce") == 1 {
		p.say(Note, "mount socket directories with :z (podman run -v DIR:/run/socketbox:z); see denials with ausearch -m avc -ts recent",
			"SELinux is enforcing: a container may connect and send only to sockets with its label")
		return
	}
	p.say(OK, "", "SELinux does not interfere")
}

// proc: binder and dispatcher look at each other there.
func (p *patient) proc() {
	for line := range strings.Lines(readFile("/proc/self/mountinfo")) {
		mount, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if len(fields) < 6 || fields[4] != "/proc" || !strings.HasPrefix(kind, "proc ") {
			continue
		}
		options := fields[5] + "," + kind
		for _, hides := range []string{"hidepid=1", "hidepid=2", "hidepid=4", "hidepid=noaccess", "hidepid=invisible", "hidepid=ptraceable"} {
			if strings.Contains(options, hides) {
				p.say(Problem, "mount -o remount,hidepid=0 /proc", "/proc is mounted with %s: the binder can't verify its dispatcher and does not serve", hides)
				return
			}
		}
	}
	p.say(OK, "", "/proc shows all processes")
}

// user looks whom an instance runs as.
func (p *patient) user() {
	name := ""
	if p.cfg != nil {
		name = p.cfg.User
	}
	a, err := binder.WhoServes(name)
	p.account = a
	if p.status != nil {
		p.account.UID = p.status.UID
		for _, process := range p.status.Processes {
			p.account.GID = process.GID
		}
	}
	switch {
	case err != nil:
		p.blame(Problem, "", err)
	case len(a.Warnings) > 0:
		text, cure, _ := strings.Cut(a.Warnings[0], "; as root: ")
		p.say(Warning, cure, "%s", text)
	default:
		p.say(OK, "", "it runs as %s (uid %d, gid %d)", orElse(a.Name, "you"), p.account.UID, p.account.GID)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func readFile(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(text)
}

func readWord(path string) string { return strings.TrimSpace(readFile(path)) }

// readNumber returns what a file of one number says, -1 if it is not there.
func readNumber(path string) int {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}
