package binder

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"socketbox/internal/privsep"
)

// account is whom the binder becomes; "the socketbox group" is its group.
type account struct {
	name     string
	uid, gid int
	keep     bool // this process stays who it is
}

// makeUser is the command that makes the user that socketbox looks for.
const makeUser = "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin socketbox"

// identify decides whom to become: the configured user; by default socketbox
// if that user exists, else nobody. Not root: nobody else.
func identify(name string, h *handover) (privsep.Identity, account, error) {
	uid := os.Geteuid()
	if uid != 0 {
		h.Warnings = append(h.Warnings, notRootWarning(name, uid))
		h.Verify = privsep.Expectation{Seccomp: true}
		return privsep.Identity{UID: uid, GID: os.Getegid(), Keep: true}, account{"", uid, os.Getegid(), true}, nil
	}
	explicit := name != ""
	a, err := findAccount(name, h)
	if err != nil {
		return privsep.Identity{}, account{}, err
	}
	if a.uid == 0 || a.gid == 0 {
		return privsep.Identity{}, account{}, withHint(fmt.Errorf("user %s: socketbox does not serve as root", a.name), "as root: "+makeUser)
	}
	if !mapped("/proc/self/uid_map", a.uid) || !mapped("/proc/self/gid_map", a.gid) {
		if explicit {
			return privsep.Identity{}, account{}, fmt.Errorf("user %s: uid %d, gid %d have no mapping in this user namespace", a.name, a.uid, a.gid)
		}
		h.Warnings = append(h.Warnings, "this user namespace maps no other user: staying uid 0 of it, without any capability")
		h.Verify = privsep.Expectation{Bounding: true, Seccomp: true}
		return privsep.Identity{Keep: true}, account{keep: true}, nil
	}
	h.Verify = privsep.Expectation{NonRoot: true, Bounding: true, Seccomp: true}
	return privsep.Identity{UID: a.uid, GID: a.gid}, a, nil
}

func notRootWarning(name string, uid int) string {
	if name != "" {
		return fmt.Sprintf("not root: user %s is not used, staying uid %d", name, uid)
	}
	return fmt.Sprintf("not root: staying uid %d; ports below net.ipv4.ip_unprivileged_port_start can't be bound, the bounding set can't be dropped", uid)
}

func findAccount(name string, h *handover) (account, error) {
	candidates := []string{name}
	if name == "" {
		candidates = []string{"socketbox", "nobody"}
	}
	var err error
	for _, candidate := range candidates {
		var u *user.User
		if u, err = lookup(candidate); err != nil {
			continue
		}
		if name == "" && candidate == "nobody" {
			h.Warnings = append(h.Warnings, "no user socketbox: using nobody, which other programs share; as root: "+makeUser)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return account{name: u.Username, uid: uid, gid: gid}, nil
	}
	var unknown user.UnknownUserError
	var unknownID user.UnknownUserIdError
	if errors.As(err, &unknown) || errors.As(err, &unknownID) {
		return account{}, withHint(fmt.Errorf("user %s does not exist", candidates[len(candidates)-1]), "as root: "+makeUser)
	}
	return account{}, fmt.Errorf("look up user %s: %w", candidates[len(candidates)-1], err)
}

func lookup(name string) (*user.User, error) {
	if _, err := strconv.Atoi(name); err == nil {
		return user.LookupId(name)
	}
	return user.Lookup(name)
}

// mapped says whether id exists in this process's user namespace
// (user_namespaces(7)). Without the file there is no namespace to ask.
func mapped(path string, id int) bool {
	f, err := os.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			continue
		}
		first, _ := strconv.ParseUint(fields[0], 10, 32)
		count, _ := strconv.ParseUint(fields[2], 10, 32)
		if uint64(id) >= first && uint64(id) < first+count {
			return true
		}
	}
	return false
}
