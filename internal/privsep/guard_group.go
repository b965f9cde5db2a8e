package privsep

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dispatcherGroup is the group inside a guard that dispatchers run in.
const dispatcherGroup = "dispatcher"

// guardName is the name of a guard's directory: the binder's process id, and
// a number where another process namespace has the same one.
var guardName = regexp.MustCompile(`^socketbox-([0-9]+)(-[0-9])?$`)

// findGroup returns the directory of a cgroup v2 path: below /sys/fs/cgroup,
// or /sys/fs/cgroup/unified beside version 1, or wherever it is mounted.
func findGroup(path string) (string, error) {
	mounts, err := groupMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		rest, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/"))
		dir := filepath.Join(m.dir, rest)
		var st unix.Statfs_t
		if ok && unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no cgroup v2: no mount of it has control group %s", path)
}

type groupMount struct{ root, dir string }

// groupMounts lists where cgroup v2 is mounted (proc_pid_mountinfo(5)).
func groupMounts() ([]groupMount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []groupMount
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, kind, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if strings.HasPrefix(kind, "cgroup2 ") && len(fields) >= 5 {
			found = append(found, groupMount{fields[3], unescape.Replace(fields[4])})
		}
	}
	return found, nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// makeGroup makes the guard's directory and the dispatcher's in it. uid may
// move processes between the two: to move one needs the right to write to
// both and to their common parent, so that nothing gets in from outside.
func makeGroup(parent string, uid, gid int) (*Guard, error) {
	name := filepath.Join(parent, "socketbox-"+strconv.Itoa(os.Getpid()))
	dir := name
	err := os.Mkdir(dir, 0o755)
	for n := 1; errors.Is(err, fs.ErrExist) && n < 10; n++ {
		dir = fmt.Sprintf("%s-%d", name, n)
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	inner := filepath.Join(dir, dispatcherGroup)
	err = os.Mkdir(inner, 0o755)
	for _, d := range []string{dir, inner} {
		if err == nil {
			err = os.Chown(filepath.Join(d, "cgroup.procs"), uid, gid)
		}
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(dir, &st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make control group %s: %w", dir, err), RemoveGuard(dir))
	}
	return &Guard{Path: dir, ID: st.Ino}, nil
}

// GuardGroup is a guard's control group that is there.
type GuardGroup struct {
	Path  string
	PID   int  // of the binder that made it, in that binder's process namespace
	Alive bool // processes are in it
}

// GuardGroups lists the guards of the whole machine, as far as this process
// sees the cgroup v2 hierarchy: those of running binders, and what others
// have left behind.
func GuardGroups() ([]GuardGroup, error) {
	mounts, err := groupMounts()
	if err != nil {
		return nil, err
	}
	if len(mounts) == 0 {
		return nil, nil
	}
	var found []GuardGroup
	err = filepath.WalkDir(mounts[0].dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // gone meanwhile, or not ours to see
		}
		if g, ok := guardGroupAt(path); ok {
			found = append(found, g)
			return fs.SkipDir
		}
		return nil
	})
	return found, err
}

// RemoveDeadGuards removes the groups that running binders have left behind,
// and returns their paths. Sockets that were lent or passed and still live
// stay guarded: the kernel keeps the programs for them.
func RemoveDeadGuards() ([]string, error) {
	groups, err := GuardGroups()
	if err != nil {
		return nil, err
	}
	var removed []string
	var problems []error
	for _, g := range groups {
		if g.Alive || g.starting() {
			continue
		}
		if err := RemoveGuard(g.Path); err != nil {
			problems = append(problems, err)
			continue
		}
		removed = append(removed, g.Path)
	}
	return removed, errors.Join(problems...)
}

// RemoveGuard removes one guard's directories. It fails with EBUSY while a
// process is inside.
func RemoveGuard(path string) error {
	for _, dir := range []string{filepath.Join(path, dispatcherGroup), path} {
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
	return nil
}

func guardGroupAt(path string) (GuardGroup, bool) {
	m := guardName.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return GuardGroup{}, false
	}
	events, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return GuardGroup{}, false
	}
	pid, _ := strconv.Atoi(m[1])
	return GuardGroup{Path: path, PID: pid, Alive: strings.Contains(string(events), "populated 1")}, true
}

// enterTime is more than a binder takes from making its group to entering it.
const enterTime = 10 * time.Second

// starting: its binder may have made it and be about to enter. (That there is
// a process of that number alone says little: numbers come again.)
func (g GuardGroup) starting() bool {
	st, err := os.Stat(g.Path)
	return err == nil && time.Since(st.ModTime()) < enterTime && unix.Kill(g.PID, 0) != unix.ESRCH
}

// sweep removes what dead binders have left beside the guard that is about to
// be made: a binder can't remove its own, being in it and no longer root.
func sweep(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		g, ok := guardGroupAt(filepath.Join(parent, e.Name()))
		if ok && !g.Alive && !g.starting() {
			RemoveGuard(g.Path)
		}
	}
}
