package receive

import (
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"strconv"

	"socketbox/internal/handoff"
)

// Rights are the flags that concern the receiving socket itself, as they were
// typed.
type Rights struct {
	Mode  string // octal
	Group string // name or number; "": the directory decides
	From  string // name or number; "": whoever may connect
}

// Parse reads them. An error names its flag.
func (r Rights) Parse() (o handoff.Options, err error) {
	o = handoff.Options{Group: -1, From: -1}
	mode, err := strconv.ParseUint(r.Mode, 8, 32)
	if err != nil || mode == 0 || mode > 0o777 {
		return o, fmt.Errorf("--mode %q: want an octal number, as 0660", r.Mode)
	}
	o.Mode = fs.FileMode(mode)
	if r.Group != "" {
		if o.Group, err = ParseGroup(r.Group); err != nil {
			return o, fmt.Errorf("--group: %w", err)
		}
	}
	if r.From != "" {
		if o.From, err = ParseUID(r.From); err != nil {
			return o, fmt.Errorf("--from: %w", err)
		}
	}
	return o, nil
}

// ParseGroup reads the name or number of a group.
func ParseGroup(text string) (int, error) {
	if text == "" {
		return 0, errors.New("the group's name is empty")
	}
	if entry, err := user.LookupGroup(text); err == nil {
		text = entry.Gid
	}
	if id, ok := ParseID(text); ok {
		return int(id), nil
	}
	return 0, fmt.Errorf("group %q: no such group", text)
}

// ParseUID reads the name or number of a user.
func ParseUID(text string) (int, error) {
	if entry, err := user.Lookup(text); err == nil {
		text = entry.Uid
	}
	if id, ok := ParseID(text); ok {
		return int(id), nil
	}
	return 0, fmt.Errorf("user %q: no such user", text)
}

// ParseID reads a uid or gid; the highest one means "unchanged" to the kernel.
func ParseID(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}
