// Command bench measures socketbox beside what it must hold up against, on
// loopback, in one run, with the order of the variants shuffled each round:
// the hand-off beside a small C reference, socketbox-inetd beside tcpserver,
// openbsd-inetd and xinetd, and one binder with many listeners. It prints
// Markdown; README.md in this folder tells how to read it.
//
// It runs with the privilege of whoever calls it. As root, socketbox sheds its
// privileges as it does in service; otherwise it runs as the caller.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settings are the flags.
type settings struct {
	only      string        // tables, comma separated
	rounds    int           // each figure is the median of so many
	count     int           // connections of a hand-off load
	spawns    int           // connections of an inetd load
	listeners int           // of the many-listeners table
	threads   int           // among which the load's clients are spread
	limit     time.Duration // the longest that one load may take
	bin       string        // folder of the programs under test
	cache     string        // folder for unpacked Debian packages
	reference bool          // leave socketbox out
}

// bench is one run: its settings and what it has made.
type bench struct {
	settings
	ctx    context.Context // ends with INT or TERM
	dir    string          // temporary: programs, logs, sockets
	out    io.Writer       // the tables
	log    io.Writer       // progress
	serial int             // numbers the names made in dir
	failed bool            // a variant did not run
}

// table is one table: its name for -only, the programs under test that it
// runs, and what measures and prints it.
type table struct {
	name     string
	programs []string
	run      func(*bench) error
}

// tables in the order in which they are run, by the names of -only.
var tables = []table{
	{"handoff", []string{"socketbox"}, (*bench).handoffTable},
	{"inetd", []string{"socketbox", "socketbox-inetd"}, (*bench).inetdTable},
	{"listeners", []string{"socketbox"}, (*bench).listenersTables},
	{"preload", []string{"socketbox", "socketbox-launch", "libsocketbox-preload.so"}, (*bench).preloadTable},
	{"relay", []string{"socketbox-relay"}, (*bench).relayTables},
	{"tables", []string{"socketbox"}, (*bench).tablesTables},
	{"guard", []string{"socketbox", "socketbox-launch"}, (*bench).guardTables},
	{"flood", []string{"socketbox"}, (*bench).floodTable},
}

func main() {
	// Pdeathsig, which ends what is left when this process is killed, follows
	// the thread that started the child: all are started from this one.
	runtime.LockOSThread()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends at once
	b := &bench{settings: parseFlags(), ctx: ctx, out: os.Stdout, log: os.Stderr}
	err := b.run()
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func parseFlags() settings {
	var s settings
	flag.StringVar(&s.only, "only", everyTable(), "tables to run")
	flag.IntVar(&s.rounds, "rounds", 5, "rounds; medians are printed")
	flag.IntVar(&s.count, "n", 15000, "connections of each hand-off load")
	flag.IntVar(&s.spawns, "spawns", 3000, "connections of each inetd load")
	flag.IntVar(&s.listeners, "listeners", 1000, "listeners of the many-listeners table")
	flag.IntVar(&s.threads, "threads", 1, "threads among which the load's clients are spread")
	flag.DurationVar(&s.limit, "t", 20*time.Second, "the longest that one load may take")
	flag.StringVar(&s.bin, "bin", "bin", "folder of socketbox and socketbox-inetd")
	flag.StringVar(&s.cache, "cache", filepath.Join("bin", "bench-cache"), "folder for unpacked Debian packages")
	flag.BoolVar(&s.reference, "reference", false, "run only what socketbox is compared with")
	flag.Parse()
	if err := s.check(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(2)
	}
	return s
}

func everyTable() string {
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	return strings.Join(names, ",")
}

func (s *settings) check() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q: only flags are taken", flag.Arg(0))
	}
	if min(s.rounds, s.count, s.spawns, s.listeners, s.threads) < 1 || s.limit <= 0 {
		return errors.New("rounds, counts and times must be positive")
	}
	for _, name := range strings.Split(s.only, ",") {
		if !slices.ContainsFunc(tables, func(t table) bool { return t.name == name }) {
			return fmt.Errorf("-only %q: no such table", name)
		}
	}
	return nil
}

// run measures and prints the tables asked for. Whatever it started or made
// has gone when it returns, except for the cache.
func (b *bench) run() error {
	if err := b.needPrograms(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "socketbox-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.dir = dir
	// The binder, which is not root, must pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := b.buildPrograms(); err != nil {
		return err
	}
	b.printMachine()
	for _, t := range b.chosen() {
		if err := t.run(b); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	b.printLoad("after")
	if b.failed {
		return errors.New("not every variant ran; the tables name the reason")
	}
	return nil
}

// chosen returns the tables that -only names.
func (s *settings) chosen() []table {
	var chosen []table
	for _, t := range tables {
		if slices.Contains(strings.Split(s.only, ","), t.name) {
			chosen = append(chosen, t)
		}
	}
	return chosen
}

// programs returns the names of the programs under test that the run needs.
func (s *settings) programs() []string {
	var names []string
	for _, t := range s.chosen() {
		names = append(names, t.programs...)
	}
	if s.reference {
		return nil
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// needPrograms fails when a program under test has not been built.
func (b *bench) needPrograms() error {
	for _, name := range b.programs() {
		if err := readAfresh(b.program(name)); err != nil {
			return fmt.Errorf("%w\nhint: run `make build` first, or use -reference to leave socketbox out", err)
		}
	}
	return nil
}

// readAfresh has the kernel forget a file's pages, so that it reads them from
// the disk as after a boot. The pages of a file that a linker has just written
// are in pieces of megabytes, which Linux 6.18 maps whole: resident memory would
// be the file's size.
func readAfresh(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// program returns the absolute path of a program under test.
func (b *bench) program(name string) string {
	path, err := filepath.Abs(filepath.Join(b.bin, name))
	if err != nil {
		return filepath.Join(b.bin, name)
	}
	return path
}
