package binder

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// This file is what `socketbox doctor` asks about an instance's surroundings,
// with its own rights.

// Account is whom an instance with that configuration runs as.
type Account struct {
	Name     string
	UID, GID int
	Warnings []string
}

// WhoServes returns whom `socketbox bind` becomes, started by this caller with
// this user configured ("": none).
func WhoServes(user string) (Account, error) {
	if unix.Geteuid() != 0 {
		return Account{UID: unix.Geteuid(), GID: unix.Getegid()}, nil
	}
	h := &handover{}
	a, err := findAccount(user, h)
	return Account{a.name, a.uid, a.gid, h.Warnings}, err
}

// MayAccess returns an error with a hint that names what keeps a user without
// supplementary groups from path: 4 read, 2 write, 1 execute. What is not there
// is no error.
func MayAccess(path string, uid, gid int, want uint32) error { return mayAccess(path, uid, gid, want) }

// Probe looks whether somebody receives at path: "live", "dead", "missing" or
// "denied", and more about it. Nothing is sent.
func Probe(path string) (state, detail string) { return probe(path) }

// ControlPath is where the control socket of the main socket directory dir is.
func ControlPath(dir string) string { return controlPath(dir) }

// DeadControlSockets lists the control sockets that instances of dir have left
// behind; remove removes them, too.
func DeadControlSockets(dir string, remove bool) []string {
	paths, _ := filepath.Glob(controlPath(dir) + ".*")
	var dead []string
	for _, path := range append(paths, controlPath(dir)) {
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue
		}
		fd, err := dialControl(path)
		switch {
		case err == nil:
			unix.Close(fd)
		case isRefused(err):
			dead = append(dead, path)
			if remove {
				unix.Unlink(path)
			}
		}
	}
	return dead
}
