package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
)

// directories looks at every socket directory as the binder sees it.
func (p *patient) directories() {
	if !p.mainDirectory() {
		return
	}
	good := true
	for _, dir := range p.socketDirectories() {
		good = p.directory(dir) && good
	}
	if good {
		p.say(OK, "", "the binder may pass every socket directory that is configured")
	}
}

func (p *patient) mainDirectory() bool {
	var st unix.Stat_t
	err := unix.Lstat(p.dir, &st)
	private := os.Geteuid() != 0
	switch {
	case p.dir == "":
		p.say(Problem, "name it with --dir or SOCKETBOX_DIR", "no main socket directory: XDG_RUNTIME_DIR is not set")
	case err != nil:
		p.say(Warning, "socketbox bind makes it, or systemd-tmpfiles --create socketbox.conf", "main socket directory %s: %v", p.dir, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		p.say(Problem, "ls -ld "+p.dir, "main socket directory %s is no directory", p.dir)
	case st.Mode&0o002 != 0:
		p.say(Problem, "chmod 3771 "+p.dir, "main socket directory %s (mode %04o): everybody may write to it, and take any name", p.dir, st.Mode&0o7777)
	case !private && (st.Uid != 0 || int(st.Gid) != p.account.GID || st.Mode&0o7777 != 0o3771):
		p.say(Problem, fmt.Sprintf("chown 0:%d %s && chmod 3771 %s", p.account.GID, p.dir, p.dir),
			"main socket directory %s: owner %d:%d, mode %04o; it should be 0:%d, mode 3771", p.dir, st.Uid, st.Gid, st.Mode&0o7777, p.account.GID)
	default:
		return true
	}
	return false
}

// socketDirectories are the directories of the configured targets; where a path
// has words, those that are there.
func (p *patient) socketDirectories() []string {
	seen := map[string]bool{p.dir: true}
	all := []string{p.dir}
	for _, path := range p.targets() {
		dir := strings.TrimSuffix(path, "/")
		if dir == path {
			dir = filepath.Dir(path)
		}
		if !seen[dir] {
			seen[dir] = true
			all = append(all, dir)
		}
	}
	return all
}

// maxFound bounds how many tenants' directories are looked at.
const maxFound = 1000

var words = regexp.MustCompile(`\{[a-z]+\}`)

// targets are the paths of the configured targets, with a slash at the end of
// directories; words stand for whatever is there.
func (p *patient) targets() []string {
	if p.cfg == nil {
		return nil
	}
	var all []string
	for _, t := range p.cfg.Targets {
		for _, s := range t.Sockets {
			path := s.String()
			if !words.MatchString(path) {
				all = append(all, path)
				continue
			}
			found, _ := filepath.Glob(words.ReplaceAllString(strings.TrimSuffix(path, "/"), "*"))
			for _, f := range found[:min(len(found), maxFound)] {
				if s.IsDir() {
					f += "/"
				}
				all = append(all, f)
			}
		}
	}
	return all
}

func (p *patient) directory(dir string) bool {
	if _, err := os.Stat(dir); err != nil {
		cure := "mkdir -p " + dir
		if name, below := strings.CutPrefix(dir, p.dir+"/"); below {
			cure = "socketbox dir create " + name + " --owner USER"
		}
		p.say(Problem, cure, "no socket directory %s: its clients are reset at once", dir)
		return false
	}
	if os.Geteuid() != 0 {
		return true // it is its own
	}
	if err := binder.MayAccess(dir, p.account.UID, p.account.GID, 1); err != nil {
		p.blame(Problem, "", err)
		return false
	}
	return true
}

// receivers looks whether somebody receives at each path, and may be reached.
func (p *patient) receivers() {
	live, good := 0, true
	look := func(path string) bool {
		state, detail := binder.Probe(path)
		switch state {
		case "live":
			live++
			if err := p.reachable(path); err != nil {
				p.blame(Problem, "", err)
				good = false
			}
		case "dead":
			p.say(Warning, "start its daemon; if it is not to come back: rm "+path, "nobody receives on %s: its clients are held, then reset", path)
			good = false
		case "denied":
			p.say(Problem, "run the doctor as root to see more", "%s: %s", path, detail)
			good = false
		default:
			return false
		}
		return true
	}
	for _, target := range p.targets() {
		paths := []string{target}
		if strings.HasSuffix(target, "/") {
			paths, _ = filepath.Glob(target + "*.sock")
		}
		any := false
		for _, path := range paths {
			any = look(path) || any
		}
		if _, err := os.Stat(filepath.Dir(target)); !any && err == nil {
			p.say(Warning, "start a receiver there; in a directory it is named after the port, as 80.sock", "nobody has ever received at %s", target)
			good = false
		}
	}
	main, _ := filepath.Glob(p.dir + "/*.sock")
	for _, path := range main {
		look(path)
	}
	if good {
		p.say(OK, "", "%d receivers, all live", live)
	}
}

// reachable: may the binder send to this socket?
func (p *patient) reachable(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return binder.MayAccess(path, p.account.UID, p.account.GID, 2)
}
