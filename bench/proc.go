package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The unit of times in /proc/PID/stat, USER_HZ: 100 per second on every
// architecture that Go runs on (proc_pid_stat(5)).
const tick = time.Second / 100

// cpuTime is what a process has used so far.
type cpuTime struct {
	threads  time.Duration // living threads, to the nanosecond
	total    time.Duration // ended threads too, in ticks
	children time.Duration // children that it has waited for, in ticks
}

// readCPU reads /proc/PID/task/*/schedstat and /proc/PID/stat.
func readCPU(pid int) (cpuTime, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return cpuTime{}, err
	}
	t, err := parseStat(line)
	if err != nil {
		return cpuTime{}, err
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return cpuTime{}, err
	}
	for _, file := range files {
		var running int64 // nanoseconds on a CPU
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended; the total still has it
		}
		if _, err := fmt.Sscan(string(text), &running); err != nil {
			return cpuTime{}, fmt.Errorf("parse %s: %w", file, err)
		}
		t.threads += time.Duration(running)
	}
	return t, nil
}

// parseStat reads the times of a /proc/PID/stat line (proc_pid_stat(5)).
func parseStat(line []byte) (cpuTime, error) {
	// The command, in brackets, may itself hold blanks and brackets.
	const utime, stime, cutime, cstime = 11, 12, 13, 14 // counted from the state
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(fields) <= cstime {
		return cpuTime{}, fmt.Errorf("parse stat line %q: too few fields", line)
	}
	var ticks [cstime + 1]int64
	for i := utime; i <= cstime; i++ {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return cpuTime{}, fmt.Errorf("parse stat line: %w", err)
		}
		ticks[i] = n
	}
	return cpuTime{
		total:    time.Duration(ticks[utime]+ticks[stime]) * tick,
		children: time.Duration(ticks[cutime]+ticks[cstime]) * tick,
	}, nil
}

// own returns the CPU time that the process itself used between two readings.
// The threads' sum is exact but forgets those that ended: when the total, in
// which user and system time are each rounded down to a tick, says more than
// rounding explains, the total counts.
func own(before, after cpuTime) time.Duration {
	threads, total := after.threads-before.threads, after.total-before.total
	if total > threads+2*tick {
		return total
	}
	return threads
}

// tree returns the CPU time of a process and of the children that it waited
// for between two readings.
func tree(before, after cpuTime) time.Duration {
	return own(before, after) + after.children - before.children
}

// readCPUs reads several processes.
func readCPUs(pids []int) ([]cpuTime, error) {
	times := make([]cpuTime, len(pids))
	for i, pid := range pids {
		t, err := readCPU(pid)
		if err != nil {
			return nil, err
		}
		times[i] = t
	}
	return times, nil
}

// sum adds up what part says of each process.
func sum(part func(before, after cpuTime) time.Duration, before, after []cpuTime) time.Duration {
	var d time.Duration
	for i := range before {
		d += part(before[i], after[i])
	}
	return d
}

// residentKiB returns VmRSS of /proc/PID/status.
func residentKiB(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(text), "\nVmRSS:")
	var kib int
	if !found {
		return 0, fmt.Errorf("read the memory of pid %d: no VmRSS", pid)
	}
	_, err = fmt.Sscan(rest, &kib)
	return kib, err
}

// childrenTitled returns the children of parent whose argv[0] is title.
func childrenTitled(parent int, title string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // fails only on a bad pattern
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !hasTitle(text, title) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && parentOf(pid) == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

// descendantsTitled returns the processes with that title that root has started,
// itself or through others.
func descendantsTitled(root int, title string) []int {
	var found []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !hasTitle(text, title) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		for parent := parentOf(pid); parent > 1; parent = parentOf(parent) {
			if parent == root {
				found = append(found, pid)
			}
		}
	}
	return found
}

// hasTitle tells whether a command line is the title alone or begins with it
// as an argument; a title written over argv is padded with zeros or blanks.
func hasTitle(cmdline []byte, title string) bool {
	first, _, _ := bytes.Cut(cmdline, []byte{0})
	return strings.TrimRight(string(first), " ") == title
}

func parentOf(pid int) int {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var state string
	var parent int
	if _, err := fmt.Sscan(string(line[bytes.LastIndexByte(line, ')')+1:]), &state, &parent); err != nil {
		return 0
	}
	return parent
}
