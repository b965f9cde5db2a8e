package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/config"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
	"socketbox/internal/sockdiag"
)

// configuration looks at the file: good, readable, in force.
func (p *patient) configuration() {
	switch {
	case errors.Is(p.cfgErr, fs.ErrNotExist):
		p.say(Note, "examples: socketbox bind --help, socketbox.toml(5)", "there is no %s: listeners come from flags, or from a service manager", p.Config)
		return
	case p.cfgErr != nil:
		p.blame(Problem, "mend it, and try it with socketbox check "+p.Config, p.cfgErr)
		return
	}
	good := true
	for _, l := range p.cfg.Listeners {
		good = p.namespaceOf(l.Description) && good
	}
	if os.Geteuid() == 0 {
		if err := binder.MayAccess(p.Config, p.account.UID, p.account.GID, 4); err != nil {
			p.say(Warning, "chmod o+r "+p.Config+", or never mind: `socketbox reload` as root can", "the binder can't read %s, so HUP can't reload it: %v", p.Config, err)
			good = false
		}
	}
	if p.status != nil && p.status.Config != "" {
		good = p.inForce() && good
	}
	if good {
		p.say(OK, "", "%s: %d listeners, %d rules", p.Config, len(p.cfg.Listeners), len(p.cfg.Rules))
	}
}

// namespaceOf: the network namespace of a listener must be there.
func (p *patient) namespaceOf(d listen.Description) bool {
	if d.NetNS == "" {
		return true
	}
	path := d.NetNS
	cure := "see which there are: lsns -t net"
	if !strings.HasPrefix(path, "/") {
		path = "/run/netns/" + d.NetNS
		cure = "ip netns add " + d.NetNS
	}
	if _, err := os.Stat(path); err != nil {
		p.say(Problem, cure, "listener %s: no network namespace %s: %v", d.Name, d.NetNS, err)
		return false
	}
	return true
}

// inForce compares the file with what the instance serves by.
func (p *patient) inForce() bool {
	path, err := filepath.Abs(p.Config)
	if err != nil || p.status.Config != path {
		p.say(Note, "socketbox doctor --config "+p.status.Config, "the running instance uses %s, not %s", p.status.Config, p.Config)
		return true
	}
	diff, err := binder.Compare(p.dir, path)
	if err != nil {
		return true
	}
	if diff.Empty() {
		return true
	}
	p.say(Warning, "socketbox reload --diff", "%s has changed and is not in force: %d rules and %d targets differ, %d listeners come, %d go",
		path, len(diff.Rules), len(diff.Targets), len(diff.Listeners.Added), len(diff.Listeners.Dropped))
	return false
}

// instance looks at the processes that run.
func (p *patient) instance() {
	if p.status == nil {
		if _, err := binder.FetchStatus(p.dir); err != nil {
			p.say(Warning, "systemctl start socketbox, or socketbox bind", "no instance answers for %s: %v", p.dir, err)
		}
		return
	}
	s := p.status
	good := true
	complain := func(level Level, cure, format string, args ...any) {
		p.say(level, cure, format, args...)
		good = false
	}
	for _, process := range s.Processes {
		if process.Problem != "" {
			complain(Problem, "report it; meanwhile systemctl restart socketbox", "%s %d: %s", process.Role, process.PID, process.Problem)
		}
	}
	if s.Dispatcher == 0 {
		complain(Problem, "the log says why: journalctl -u socketbox", "there is no dispatcher at the moment")
	}
	if s.Restarts > 0 {
		complain(Warning, "the log has the reason: journalctl -u socketbox | grep 'dispatcher ended'", "%d dispatchers have died and were replaced; what they held was lost", s.Restarts)
	}
	if s.Reloads.Error != "" {
		complain(Warning, "mend the file, then socketbox reload --diff", "the last reload failed, the configuration before is in force: %s", s.Reloads.Error)
	}
	for _, t := range s.Targets {
		if t.Waiting > 0 && t.State != "live" {
			complain(Problem, "start its receiver; socketbox status names the path", "%d clients wait for target %s, where nobody receives", t.Waiting, t.Name)
		}
	}
	if good {
		p.say(OK, "", "binder %d and dispatcher %d, confined, %d listeners", s.PID, s.Dispatcher, len(s.Listeners))
	}
}

// wantedFiles is the limit of descriptors that socketbox asks for.
const wantedFiles = 65536

// limits looks at how many descriptors binder and dispatcher may have.
func (p *patient) limits() {
	pid := "self"
	if p.status != nil {
		pid = strconv.Itoa(p.status.PID)
	}
	for line := range strings.Lines(readFile("/proc/" + pid + "/limits")) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err == nil && n < wantedFiles && !(pid == "self" && unix.Geteuid() == 0) { // root raises it
			p.say(Warning, "LimitNOFILE=524288 in the unit, or ulimit -Hn before the start", "at most %d descriptors: each connection on hold is one, half of them may be", n)
			return
		}
		p.say(OK, "", "at most %s descriptors", fields[1])
	}
}

// leftovers looks for what dead instances have left, and removes it if told to.
func (p *patient) leftovers() {
	dead := binder.DeadControlSockets(p.dir, p.Fix)
	for _, path := range dead {
		p.say(Warning, "rm "+path+", or socketbox doctor --fix", "%s belongs to an instance that has died", path).Fixed = p.Fix
	}
	if len(dead)+p.deadGroups() == 0 {
		p.say(OK, "", "no leftovers of dead instances")
	}
}

// deadGroups looks for guards whose binder has died, and returns how many there
// are.
func (p *patient) deadGroups() int {
	groups, err := privsep.GuardGroups()
	if err != nil {
		p.say(Note, "run it as root", "can't look for control groups of dead instances: %v", err)
	}
	var removed []string
	if p.Fix {
		if removed, err = privsep.RemoveDeadGuards(); err != nil {
			p.blame(Warning, "rmdir it", err)
		}
	}
	dead := 0
	for _, g := range groups {
		if g.Alive {
			continue
		}
		dead++
		p.say(Warning, "socketbox doctor --fix", "control group %s belongs to an instance that has died", g.Path).Fixed = slices.Contains(removed, g.Path)
	}
	return dead
}

// guard looks whether what is passed on can be turned around.
func (p *patient) guard() {
	if p.status == nil {
		return
	}
	s := p.status
	if !s.GuardState.On {
		if s.Guard == config.GuardOff {
			p.say(Note, "guard = \"auto\" and a restart", "there is no guard, as configured: whoever is passed a socket can reach what its namespace reaches")
			return
		}
		p.say(Warning, "start it as root, with cgroup v2 and Linux 5.10", "there is no guard (%s): whoever is passed a socket can reach what its namespace reaches", s.GuardState.Reason)
		return
	}
	good := true
	for _, l := range s.Listeners {
		if !l.Guarded {
			good = false
			p.say(Warning, "let socketbox bind it itself", "listener %s is not guarded: another program bound it", l.Name)
		}
	}
	if good {
		p.say(OK, "", "all listeners are guarded")
	}
}

// ports: is a port that no instance has yet taken by somebody else?
func (p *patient) ports() {
	if p.status != nil || p.cfg == nil || p.cfgErr != nil {
		return
	}
	fd, err := sockdiag.Open()
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for _, l := range p.cfg.Listeners {
		if l.Network != listen.TCP || l.Port == 0 || l.NetNS != "" {
			continue
		}
		sockdiag.Dump(fd, sockdiag.Query{States: sockdiag.Listening, LocalPort: l.Port}, func(s *sockdiag.Socket) error {
			if !overlaps(l.Description, s) {
				return nil
			}
			p.say(Problem, fmt.Sprintf("ss -ltnp 'sport = :%d' names it; stop it, or give the listener another address", l.Port),
				"listener %s: another program (uid %d) listens on %s", l.Name, s.UID, s.Local)
			return nil
		})
	}
}

// overlaps says whether a socket that listens keeps a listener from its address.
func overlaps(d listen.Description, s *sockdiag.Socket) bool {
	theirs, ours := s.Local.Addr().Unmap(), d.Address.Unmap()
	switch {
	case theirs == ours:
		return true
	case theirs.IsUnspecified():
		return theirs.Is4() == ours.Is4() || theirs.Is6()
	case ours.IsUnspecified():
		return d.Both || theirs.Is4() == ours.Is4()
	}
	return false
}
