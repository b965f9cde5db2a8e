package privsep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is what /proc says of a process: of all its threads together, at
// their strongest.
type Process struct {
	PID        int    `json:"pid"`
	UID        int    `json:"uid"`
	GID        int    `json:"gid"`
	Threads    int    `json:"threads"`
	Effective  string `json:"effective"` // capabilities, in hexadecimal as in /proc; "0": none
	Permitted  string `json:"permitted"`
	Bounding   string `json:"bounding"`
	Ambient    string `json:"ambient"`
	NoNewPrivs bool   `json:"no_new_privs"` // of every thread
	Seccomp    string `json:"seccomp"`      // of the weakest thread: "filter", "strict" or "off"
	Filters    int    `json:"filters"`      // in force on the thread with the fewest
}

// Look reads /proc/PID/task/*/status (proc(5)), which everybody may where it
// is mounted without hidepid.
func Look(pid int) (Process, error) {
	p := Process{PID: pid, NoNewPrivs: true}
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	if err != nil || len(tasks) == 0 {
		return p, fmt.Errorf("process %d can't be seen in /proc", pid)
	}
	var sets [4]uint64
	for _, task := range tasks {
		fields, err := readStatus(task + "/status")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return p, fmt.Errorf("look at process %d: %w", pid, err)
		}
		for i, name := range []string{"CapEff", "CapPrm", "CapBnd", "CapAmb"} {
			v, _ := strconv.ParseUint(fields[name], 16, 64)
			sets[i] |= v
		}
		p.add(fields)
	}
	if p.Threads == 0 {
		return p, fmt.Errorf("process %d has ended", pid)
	}
	for i, to := range []*string{&p.Effective, &p.Permitted, &p.Bounding, &p.Ambient} {
		*to = strconv.FormatUint(sets[i], 16)
	}
	return p, nil
}

// add takes one thread's fields in.
func (p *Process) add(fields map[string]string) {
	modes := map[string]string{"0": "off", "1": "strict", "2": "filter"}
	mode := modes[fields["Seccomp"]]
	filters, _ := strconv.Atoi(fields["Seccomp_filters"])
	if p.Threads == 0 || mode == "off" {
		p.Seccomp = mode
	}
	if p.Threads == 0 || filters < p.Filters {
		p.Filters = filters
	}
	p.UID, p.GID = effectiveID(fields["Uid"]), effectiveID(fields["Gid"])
	p.NoNewPrivs = p.NoNewPrivs && fields["NoNewPrivs"] == "1"
	p.Threads++
}

// effectiveID is the second of the four ids of a line of proc(5).
func effectiveID(line string) int {
	if ids := strings.Fields(line); len(ids) == 4 {
		if id, err := strconv.Atoi(ids[1]); err == nil {
			return id
		}
	}
	return -1
}
