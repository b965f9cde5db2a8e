package launch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// IDRange is one line of a user namespace's map (user_namespaces(7)): Count
// ids from Inside on are those from Outside on.
type IDRange struct{ Inside, Outside, Count uint32 }

// maxRanges is what the kernel takes in one map.
const maxRanges = 340

// ParseIDRange reads "INSIDE:OUTSIDE[:COUNT]".
func ParseIDRange(text string) (IDRange, error) {
	words := strings.Split(text, ":")
	if len(words) == 2 {
		words = append(words, "1")
	}
	var n [3]uint32
	for i, word := range words {
		value, err := strconv.ParseUint(word, 10, 32)
		if i > 2 || err != nil {
			return IDRange{}, fmt.Errorf("map %q: want INSIDE:OUTSIDE[:COUNT]", text)
		}
		n[i] = uint32(value)
	}
	if len(words) != 3 || n[2] == 0 {
		return IDRange{}, fmt.Errorf("map %q: want INSIDE:OUTSIDE[:COUNT]", text)
	}
	return IDRange{n[0], n[1], n[2]}, nil
}

func (r IDRange) words() []string {
	return []string{fmt.Sprint(r.Inside), fmt.Sprint(r.Outside), fmt.Sprint(r.Count)}
}

// idMap is one of the two maps of a namespace, and what is needed to write it.
type idMap struct {
	file   string // in /proc/PID
	tool   string // that writes more than the kernel lets an ordinary user
	subs   string // who may use which ids
	own    uint32
	ranges []IDRange
}

// userMaps decides the maps of a new user namespace.
func userMaps(o *Options) ([]idMap, error) {
	maps := []idMap{
		{"uid_map", "newuidmap", "/etc/subuid", uint32(unix.Geteuid()), o.UIDs},
		{"gid_map", "newgidmap", "/etc/subgid", uint32(unix.Getegid()), o.GIDs},
	}
	for i := range maps {
		m := &maps[i]
		var err error
		switch {
		case len(m.ranges) > 0:
		case mayMapAll():
			m.ranges, err = ownRanges("/proc/self/" + m.file)
		case o.MapRoot:
			m.ranges, err = m.rootRanges()
		default:
			m.ranges = []IDRange{{m.own, m.own, 1}}
		}
		if err != nil {
			return nil, err
		}
		if len(m.ranges) > maxRanges {
			return nil, fmt.Errorf("user namespace: more than %d ranges", maxRanges)
		}
	}
	return maps, nil
}

// mayMapAll tells whether the kernel lets this process write any map.
func mayMapAll() bool { return hasCapability(unix.CAP_SETUID) && hasCapability(unix.CAP_SETGID) }

// ownRanges maps every id that this namespace has to itself.
func ownRanges(path string) ([]IDRange, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var ranges []IDRange
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var inside, outside, count uint32
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &count); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		ranges = append(ranges, IDRange{inside, inside, count})
	}
	return ranges, nil
}

// rootRanges makes the caller root, and gives him the other ids that the
// administrator lets him have, from 1 on, where the tool is there to do it.
func (m *idMap) rootRanges() ([]IDRange, error) {
	ranges := []IDRange{{0, m.own, 1}}
	if _, err := exec.LookPath(m.tool); err != nil {
		return ranges, nil
	}
	text, err := os.ReadFile(m.subs)
	if errors.Is(err, os.ErrNotExist) {
		return ranges, nil
	}
	if err != nil {
		return nil, err
	}
	name := ""
	if entry, err := user.Current(); err == nil {
		name = entry.Username
	}
	next := uint32(1)
	for _, r := range subordinates(string(text), name, uint32(unix.Getuid())) {
		ranges = append(ranges, IDRange{next, r.Outside, r.Count})
		next += r.Count
	}
	return ranges, nil
}

// subordinates reads the lines "NAME-OR-UID:FIRST:COUNT" that are one user's
// (subuid(5)).
func subordinates(text, name string, uid uint32) (ranges []IDRange) {
	for line := range strings.Lines(text) {
		words := strings.Split(strings.TrimSpace(line), ":")
		if len(words) != 3 || (words[0] != name || name == "") && words[0] != fmt.Sprint(uid) {
			continue
		}
		first, err1 := strconv.ParseUint(words[1], 10, 32)
		count, err2 := strconv.ParseUint(words[2], 10, 32)
		if err1 == nil && err2 == nil && count > 0 && len(ranges) < maxRanges-1 {
			ranges = append(ranges, IDRange{0, uint32(first), uint32(count)})
		}
	}
	return ranges
}

// write writes the map of the process pid, by itself if the kernel lets it,
// else by newuidmap or newgidmap.
func (m *idMap) write(pid int) error {
	simple := len(m.ranges) == 1 && m.ranges[0].Outside == m.own && m.ranges[0].Count == 1
	if !simple && !mayMapAll() {
		return m.writeByTool(pid)
	}
	if m.file == "gid_map" && !mayMapAll() {
		// Else leaving a group could be a way into what that group may not.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/setgroups", pid), []byte("deny"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("user namespace: %w", err)
		}
	}
	var text strings.Builder
	for _, r := range m.ranges {
		fmt.Fprintln(&text, strings.Join(r.words(), " "))
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, m.file), []byte(text.String()), 0); err != nil {
		return &handoff.HintError{Err: fmt.Errorf("user namespace: write its %s: %w", m.file, err),
			Text: "an ordinary user may map its own id alone, and what " + m.subs + " gives it by " + m.tool}
	}
	return nil
}

func (m *idMap) writeByTool(pid int) error {
	path, err := exec.LookPath(m.tool)
	if err != nil {
		return &handoff.HintError{Err: fmt.Errorf("user namespace: %w", err), Text: "install " + m.tool + " (Debian: uidmap), and give the user a range in " + m.subs}
	}
	args := []string{path, fmt.Sprint(pid)}
	for _, r := range m.ranges {
		args = append(args, r.words()...)
	}
	said, err := runTool(path, args)
	if err != nil {
		return &handoff.HintError{Err: fmt.Errorf("user namespace: %s: %w: %s", m.tool, err, said), Text: "see which ids the user may have: grep $USER " + m.subs}
	}
	return nil
}

// runTool runs a program to its end and returns the last of what it said.
func runTool(path string, args []string) (string, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()
	cmd := exec.Cmd{Path: path, Args: args, Stdout: write, Stderr: write}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return "", err
	}
	said, _ := io.ReadAll(io.LimitReader(read, 1024))
	return strings.TrimSpace(string(said)), cmd.Wait()
}
