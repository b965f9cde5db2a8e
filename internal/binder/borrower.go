package binder

import (
	"bytes"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Borrower is a process that a listener was lent to.
type Borrower struct {
	PID   int       `json:"pid"` // 0: in a process namespace that the binder can't see
	UID   int       `json:"uid"`
	Name  string    `json:"name"` // of the program, as it calls itself
	Since time.Time `json:"since"`
	Path  string    `json:"path"` // that it asked at

	Start  uint64 `json:"start"` // of the process, in clock ticks since boot
	gid    int
	groups []uint32
}

// maxBorrowers is how many borrowers of a listener are remembered, for status
// only: a daemon that restarts is a new one each time.
const maxBorrowers = 8

// borrowerAt asks the kernel who is at the other end of conn.
func borrowerAt(conn int, path string) (Borrower, error) {
	cred, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Borrower{}, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	b := Borrower{PID: int(cred.Pid), UID: int(cred.Uid), gid: int(cred.Gid), Since: time.Now(), Path: path}
	b.Name, b.Start = processOf(b.PID)
	b.groups, err = peerGroups(conn)
	return b, err
}

// maxGroups is the kernel's NGROUPS_MAX (credentials(7)).
const maxGroups = 65536

// peerGroups returns the supplementary groups of the process that connected.
func peerGroups(conn int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(conn), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups) && size/4 <= maxGroups:
			groups = make([]uint32, size/4)
		default:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		}
	}
}

// processOf returns the name of a process and when it started, nothing where
// /proc does not tell.
func processOf(pid int) (name string, start uint64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if pid <= 0 || err != nil || open < 0 || end < open {
		return "", 0
	}
	const startField = 22 - 3 // proc_pid_stat(5) counts from 1; the third follows the name
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) > startField {
		start, _ = strconv.ParseUint(fields[startField], 10, 64)
	}
	return strings.Map(printable, string(text[open+1:end])), start
}

// printable keeps a process from writing to terminals through its name.
func printable(r rune) rune {
	if r < 0x20 || r > 0x7e {
		return '?'
	}
	return r
}

// Alive says whether the process still runs; not whether it still has the
// socket, nor whether it has given it to others.
func (b *Borrower) Alive() bool {
	_, start := processOf(b.PID)
	return start != 0 && start == b.Start
}

func (b *Borrower) String() string {
	who := "a process out of sight"
	if b.PID > 0 {
		who = fmt.Sprintf("pid %d", b.PID)
	}
	if b.Name != "" {
		who += " (" + b.Name + ")"
	}
	return fmt.Sprintf("%s of uid %d", who, b.UID)
}

// living returns the borrowers that still run.
func (s *standing) living() []Borrower {
	var out []Borrower
	for i := range s.Borrowers {
		if s.Borrowers[i].Alive() {
			out = append(out, s.Borrowers[i])
		}
	}
	return out
}

// note remembers a borrower.
func (s *standing) note(who Borrower) {
	s.Loans++
	if s.Borrowers = append(s.Borrowers, who); len(s.Borrowers) > maxBorrowers {
		s.Borrowers = s.Borrowers[1:]
	}
}

// allowed is who may borrow a listener; nil: whoever may connect.
type allowed struct{ users, groups map[int]bool }

// allow looks the names of a listener's allow up.
func allow(users, groups []string) (*allowed, error) {
	if len(users)+len(groups) == 0 {
		return nil, nil
	}
	a := &allowed{map[int]bool{}, map[int]bool{}}
	for _, name := range users {
		id, err := strconv.Atoi(name)
		if err != nil {
			u, lookupErr := user.Lookup(name)
			if lookupErr != nil {
				return nil, fmt.Errorf("allow: user %s: %w", name, lookupErr)
			}
			id, _ = strconv.Atoi(u.Uid)
		}
		a.users[id] = true
	}
	for _, name := range groups {
		id, err := strconv.Atoi(name)
		if err != nil {
			g, lookupErr := user.LookupGroup(name)
			if lookupErr != nil {
				return nil, fmt.Errorf("allow: group %s: %w", name, lookupErr)
			}
			id, _ = strconv.Atoi(g.Gid)
		}
		a.groups[id] = true
	}
	return a, nil
}

// has says whether a borrower is among those allowed, by its uid, its group
// or one of its supplementary groups when it connected. Root is nobody
// special: a container's root may well be the machine's.
func (a *allowed) has(b *Borrower) bool {
	if a == nil || a.users[b.UID] || a.groups[b.gid] {
		return true
	}
	for _, g := range b.groups {
		if a.groups[int(g)] {
			return true
		}
	}
	return false
}
