package main

import (
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// printMachine prints where, with what and how the figures were made.
func (b *bench) printMachine() {
	fmt.Fprintf(b.out, "# socketbox beside others, in one run\n\n")
	fmt.Fprintf(b.out, "- machine: %s, %d CPUs, Linux %s %s\n", cpuModel(), runtime.NumCPU(), oneLine("/proc/sys/kernel/osrelease"), runtime.GOARCH)
	fmt.Fprintf(b.out, "- net.unix.max_dgram_qlen %s, net.core.somaxconn %s\n", oneLine("/proc/sys/net/unix/max_dgram_qlen"), oneLine("/proc/sys/net/core/somaxconn"))
	fmt.Fprintf(b.out, "- bench built with %s, as uid %d\n", runtime.Version(), os.Geteuid())
	for _, name := range b.programs() {
		fmt.Fprintf(b.out, "- %s: %s\n", name, describeProgram(b.program(name)))
	}
	fmt.Fprintf(b.out, "- command: `go run ./bench %s`\n", strings.Join(os.Args[1:], " "))
	fmt.Fprintf(b.out, "- medians of %d rounds, the range in brackets; the order of the variants is random in each round\n", b.rounds)
	b.printLoad("before")
}

// printLoad prints the load average: what else the machine had to do spoils
// the figures.
func (b *bench) printLoad(when string) {
	fmt.Fprintf(b.out, "\nLoad average %s the run: %s.\n", when, oneLine("/proc/loadavg"))
}

// describeProgram tells Go version and kind of linking of a program.
func describeProgram(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil && filepath.Ext(path) == ".so" {
		return "C"
	}
	if err != nil {
		return err.Error()
	}
	file, err := elf.Open(path)
	if err != nil && filepath.Ext(path) == ".so" {
		return "C"
	}
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return info.GoVersion + ", dynamic"
		}
	}
	return info.GoVersion + ", static"
}

// cpuModel returns the first "model name" of /proc/cpuinfo, if there is one.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

// oneLine returns a small file of /proc without its newline.
func oneLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}
