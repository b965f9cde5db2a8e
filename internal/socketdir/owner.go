package socketdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"socketbox/internal/handoff"
	"socketbox/internal/receive"
)

// Owner is whom a socket directory is for.
type Owner struct {
	UID  int
	Text string // as tmpfiles.d(5) takes it: a name, or the number
}

// subuid is where the users' subordinate ids are (subuid(5)).
const subuid = "/etc/subuid"

// ParseOwner reads a user's name or number, or "podman:USER:UID": the user with
// that number in a rootless container of USER, which is USER itself for 0 and
// else one of the ids that /etc/subuid gives USER.
func ParseOwner(text string) (Owner, error) {
	rest, ok := strings.CutPrefix(text, "podman:")
	if !ok {
		uid, err := receive.ParseUID(text)
		return Owner{uid, text}, err
	}
	name, inside, ok := strings.Cut(rest, ":")
	id, valid := receive.ParseID(inside)
	if !ok || !valid || name == "" {
		return Owner{}, fmt.Errorf("owner %q: expected podman:USER:UID, as podman:shop:33", text)
	}
	uid, err := receive.ParseUID(name)
	if err != nil {
		return Owner{}, err
	}
	if id == 0 {
		return Owner{uid, strconv.Itoa(uid)}, nil
	}
	lines, err := os.ReadFile(subuid)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Owner{}, fmt.Errorf("owner %q: %w", text, err)
	}
	outside, err := subordinate(string(lines), names(name, uid), id)
	if err != nil {
		return Owner{}, &handoff.HintError{
			Err:  fmt.Errorf("owner %q: %w", text, err),
			Text: fmt.Sprintf("see what the user has: grep %s %s; give more: usermod --add-subuids FIRST-LAST %s", name, subuid, name),
		}
	}
	return Owner{int(outside), strconv.FormatUint(uint64(outside), 10)}, nil
}

// names are the spellings of a user in /etc/subuid.
func names(name string, uid int) []string {
	all := []string{name, strconv.Itoa(uid)}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		all = append(all, u.Username)
	}
	return all
}

// subordinate returns the id outside of the one that is inside (from 1 on) in
// a user namespace with the user's ranges one after another, as podman makes
// it.
func subordinate(lines string, names []string, inside uint32) (uint32, error) {
	left, has := uint64(inside-1), uint64(0)
	for line := range strings.Lines(lines) {
		words := strings.Split(strings.TrimSpace(line), ":")
		if len(words) != 3 || !contains(names, words[0]) {
			continue
		}
		first, err1 := strconv.ParseUint(words[1], 10, 32)
		count, err2 := strconv.ParseUint(words[2], 10, 32)
		if err1 != nil || err2 != nil || first+count > 1<<32-1 {
			continue // newuidmap does not take it either
		}
		if left < count {
			return uint32(first + left), nil
		}
		left -= count
		has += count
	}
	return 0, fmt.Errorf("%s gives %s %d ids, which does not reach uid %d of a container", subuid, names[0], has, inside)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
