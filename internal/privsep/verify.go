package privsep

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Expectation is what every thread of a process must look like.
type Expectation struct {
	NonRoot  bool // all four uids and gids differ from 0, no supplementary group
	Bounding bool // the bounding set is empty as well
	Seccomp  bool // a filter is in force (mode 2)
}

// Verify looks at /proc/PID/task/*/status (proc(5)) and returns an error that
// names the first thread and field that is not as expected. pid 0 is this
// process.
func Verify(pid int, want Expectation) error {
	name := "self"
	if pid != 0 {
		name = strconv.Itoa(pid)
	}
	tasks, err := filepath.Glob("/proc/" + name + "/task/*")
	if err != nil || len(tasks) == 0 {
		return fmt.Errorf("verify process %s: its threads can't be seen in /proc (is it mounted, without hidepid?)", name)
	}
	for _, task := range tasks {
		fields, err := readStatus(task + "/status")
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended meanwhile
		}
		if err == nil {
			err = want.check(fields)
		}
		if err != nil {
			return fmt.Errorf("verify process %s, thread %s: %w", name, filepath.Base(task), err)
		}
	}
	return nil
}

func readStatus(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fields := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	if len(fields) == 0 {
		return nil, os.ErrNotExist // a thread that ends reads as empty
	}
	return fields, nil
}

func (want Expectation) check(status map[string]string) error {
	sets := []string{"CapInh", "CapPrm", "CapEff", "CapAmb"}
	if want.Bounding {
		sets = append(sets, "CapBnd")
	}
	for _, set := range sets {
		if v, err := strconv.ParseUint(status[set], 16, 64); err != nil || v != 0 {
			return fmt.Errorf("%s is %q, not 0", set, status[set])
		}
	}
	if status["NoNewPrivs"] != "1" {
		return fmt.Errorf("field %s is %q, not 1", "NoNewPrivs", status["NoNewPrivs"])
	}
	if want.Seccomp && status["Seccomp"] != "2" {
		return fmt.Errorf("field %s is %q, not 2", "Seccomp", status["Seccomp"])
	}
	if want.NonRoot {
		return checkNonRoot(status)
	}
	return nil
}

func checkNonRoot(status map[string]string) error {
	for _, field := range []string{"Uid", "Gid"} {
		ids := strings.Fields(status[field])
		if len(ids) != 4 {
			return fmt.Errorf("%s is %q, not four ids", field, status[field])
		}
		for _, id := range ids {
			if id == "0" || id != ids[0] {
				return fmt.Errorf("%s is %q, not four times the same id other than 0", field, status[field])
			}
		}
	}
	if status["Groups"] != "" {
		return fmt.Errorf("supplementary groups %q remain", status["Groups"])
	}
	return nil
}
