package inetd

import (
	"fmt"
	"os/user"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/receive"
)

// User is whom the children run as. The zero value is ourselves.
type User struct {
	Credential *spawn.Credential
	Name       string // "" for a number without a name
	Home       string
}

// ParseUser reads "USER", "USER:GROUP" or ":GROUP", names or numbers. A user
// without a group has the groups that the user database gives.
func ParseUser(text string) (User, error) {
	name, group, hasGroup := strings.Cut(text, ":")
	u, err := lookUpUser(name)
	if err != nil {
		return User{}, err
	}
	if !hasGroup {
		if u.Name == "" {
			return User{}, &handoff.HintError{Err: fmt.Errorf("user %q: no such user, so its group is unknown", text), Text: "give a group as well: --user " + text + ":GROUP"}
		}
		return u, nil
	}
	gid, err := receive.ParseGroup(group)
	if err != nil {
		return User{}, err
	}
	u.Credential.GID = uint32(gid)
	u.Credential.Groups = nil
	return u, nil
}

// lookUpUser finds a user by name or number, and "" as ourselves. A number
// without a name is a User without a name and without a group.
func lookUpUser(name string) (User, error) {
	if name == "" {
		return User{Credential: &spawn.Credential{UID: uint32(unix.Geteuid())}}, nil
	}
	entry, err := user.Lookup(name)
	number, isNumber := receive.ParseID(name)
	if err != nil && isNumber {
		if entry, err = user.LookupId(name); err != nil {
			return User{Credential: &spawn.Credential{UID: number}}, nil
		}
	}
	if err != nil {
		return User{}, fmt.Errorf("user %q: no such user", name)
	}
	uid, _ := receive.ParseID(entry.Uid)
	gid, ok := receive.ParseID(entry.Gid)
	if !ok {
		return User{}, fmt.Errorf("user %q: group %q in the user database is no number", name, entry.Gid)
	}
	u := User{Name: entry.Username, Home: entry.HomeDir, Credential: &spawn.Credential{UID: uid, GID: gid}}
	groups, err := entry.GroupIds()
	if err != nil {
		return User{}, fmt.Errorf("groups of user %q: %w", name, err)
	}
	for _, g := range groups {
		if id, ok := receive.ParseID(g); ok {
			u.Credential.Groups = append(u.Credential.Groups, id)
		}
	}
	return u, nil
}

// environ returns the variables that name the user, if it has a name.
func (u User) environ() map[string]string {
	if u.Name == "" {
		return nil
	}
	return map[string]string{"USER": u.Name, "LOGNAME": u.Name, "HOME": u.Home}
}

// credential returns what a child has to change to, nil for nothing, and
// tells early what would fail for each child.
func (u User) credential() (*spawn.Credential, error) {
	c := u.Credential
	switch {
	case c == nil || unix.Geteuid() == 0:
		return c, nil
	case int(c.UID) == unix.Geteuid() && int(c.GID) == unix.Getegid():
		return nil, nil // already so, and setgroups(2) would be refused
	}
	return nil, &handoff.HintError{Err: fmt.Errorf("run children as uid %d, gid %d: %w", c.UID, c.GID, unix.EPERM),
		Text: "only root may choose another user for them; start socketbox-inetd as root, or as that user"}
}
