package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"socketbox/internal/inetd"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/listen"
	"socketbox/internal/logging"
	"socketbox/internal/receive"
)

// flags are the command line as it was typed.
type flags struct {
	socket, dir               string
	port                      uint16
	rights                    receive.Rights
	stderr, user, chdir, rate string
	rlimits                   []string
	nice                      int
	max, maxPerSource         int
	timeout, killAfter        time.Duration
	logFormat, logLevel       string
	logConnections            bool
	wait                      bool
}

func (f *flags) define(c *cobra.Command) {
	s := c.Flags()
	s.SortFlags = false
	s.SetInterspersed(false) // the command's own flags are its own

	s.StringVarP(&f.socket, "socket", "s", "", "receive on the Unix socket `PATH`")
	s.Uint16VarP(&f.port, "port", "p", 0, "receive what comes to port `N`: on N.sock in the socket directory (default: default.sock, whatever has no receiver of its own)")
	s.BoolVar(&f.wait, "wait", false, "run one program at a time, which gets the listening (or UDP) socket itself as 0 and 1; with --port, or --socket PATH of the loan")
	s.StringVar(&f.dir, "dir", "", "socket `DIR` (default $SOCKETBOX_DIR; else /run/socketbox, not root: $XDG_RUNTIME_DIR/socketbox)")
	s.StringVar(&f.rights.Mode, "mode", "0660", "`MODE` of the receiving socket, whatever the umask")
	s.StringVar(&f.rights.Group, "group", "", "`GROUP` of the receiving socket (default: as the directory decides)")
	s.StringVar(&f.rights.From, "from", "", "take connections from this `UID` (or user name) only")

	s.IntVarP(&f.max, "max", "m", inetd.DefaultMax, "run at most `N` children at once")
	s.IntVar(&f.maxPerSource, "max-per-source", 0, "run at most `N` at once for one client: an IPv4 address, an IPv6 /64, a uid (0: no limit)")
	s.StringVar(&f.rate, "rate", "", "start at most `N/s` (N/m, N/h), with bursts of N (default no limit)")

	s.StringVar(&f.stderr, "stderr", "inherit", "children's standard error: inherit, socket or null (`WHERE`)")
	s.StringVar(&f.user, "user", "", "run children as `USER[:GROUP]`, with the groups of USER if none is given")
	s.StringVar(&f.chdir, "chdir", "", "run children in `DIR`")
	s.IntVar(&f.nice, "nice", 0, "nice value `N` of children, -20..19")
	s.StringArrayVar(&f.rlimits, "rlimit", nil, "resource limit of children, `NAME=SOFT[:HARD]`, as nofile=256 or core=unlimited (repeatable)")
	s.DurationVar(&f.timeout, "timeout", 0, "end a child after this `TIME`, as 90s or 1h (0: never)")
	s.DurationVar(&f.killAfter, "kill-after", inetd.DefaultKillAfter, "`TIME` from TERM to KILL for a child that has to end")

	s.BoolVar(&f.logConnections, "log-connections", false, "log one line per connection")
	s.StringVar(&f.logFormat, "log", "text", "log `FORMAT`: text or json")
	s.StringVar(&f.logLevel, "log-level", "info", "least `LEVEL` to log: debug, info, warn, error")

	complete := func(flag string, values ...string) {
		c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("stderr", "inherit", "socket", "null")
	complete("log", logging.Formats...)
	complete("log-level", logging.Levels...)
	c.MarkFlagDirname("dir")
	c.MarkFlagDirname("chdir")
}

// run serves what the flags ask for.
func (f *flags) run(c *cobra.Command, args []string) error {
	log, err := logging.New(os.Stderr, f.logFormat, f.logLevel, program)
	if err != nil {
		return &usageError{err}
	}
	o := inetd.Options{
		Command: args, Dir: f.chdir,
		Max: f.max, MaxPerSource: f.maxPerSource,
		Timeout: f.timeout, KillAfter: f.killAfter,
		LogConnections: f.logConnections, Log: log, Environ: os.Environ(),
	}
	if err := f.check(c); err != nil {
		return &usageError{err}
	}
	if err := f.parse(c, &o); err != nil {
		return &usageError{err}
	}
	if f.wait {
		path, err := f.loan()
		if err != nil {
			return err
		}
		return inetd.RunWait(o, path)
	}
	if o.Place, err = f.place(); err != nil {
		return err
	}
	return inetd.Run(o)
}

// check refuses values that are out of range and flags that exclude others.
func (f *flags) check(c *cobra.Command) error {
	given := c.Flags().Changed
	switch {
	case given("socket") && given("port"), given("socket") && given("dir"):
		return errors.New("--socket is a whole path: it excludes --port and --dir")
	case given("socket") && f.socket == "":
		return errors.New("--socket: the path is empty")
	case given("port") && f.port == 0:
		return errors.New("--port: want 1 to 65535")
	case f.max < 1:
		return errors.New("--max: want at least 1")
	case f.maxPerSource < 0:
		return errors.New("--max-per-source: want at least 1, or 0 for no limit")
	case f.nice < -20 || f.nice > 19:
		return errors.New("--nice: want -20 to 19")
	case f.timeout < 0 || f.killAfter < 0:
		return errors.New("--timeout, --kill-after: a time can't be negative")
	case f.wait:
		return f.checkWait(given)
	}
	return nil
}

// checkWait refuses what a program with the listening socket is out of reach of.
func (f *flags) checkWait(given func(string) bool) error {
	if !given("port") && !given("socket") {
		return errors.New("--wait: whose socket? give --port N, or --socket PATH")
	}
	for _, name := range []string{"mode", "group", "from", "max", "max-per-source", "rate", "log-connections"} {
		if given(name) {
			return fmt.Errorf("--%s is about single connections, which the program accepts by itself with --wait", name)
		}
	}
	return nil
}

// loan finds the path at which the listener is lent.
func (f *flags) loan() (string, error) {
	if f.socket != "" {
		return filepath.Abs(f.socket)
	}
	place, err := receive.PlaceFor("", f.port, f.dir, os.Getenv)
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(place.Path), fmt.Sprintf("%d.listener", f.port)), nil
}

// parse reads the flags that have a form of their own.
func (f *flags) parse(c *cobra.Command, o *inetd.Options) (err error) {
	if o.Receive, err = f.rights.Parse(); err != nil {
		return err
	}
	if f.rate != "" {
		if o.Rate, err = inetd.ParseRate(f.rate); err != nil {
			return fmt.Errorf("--rate: %w", err)
		}
	}
	if f.user != "" {
		if o.User, err = inetd.ParseUser(f.user); err != nil {
			return fmt.Errorf("--user: %w", err)
		}
	}
	if c.Flags().Changed("nice") {
		o.Nice = &f.nice
	}
	for _, text := range f.rlimits {
		limit, err := inetd.ParseLimit(text)
		if err != nil {
			return fmt.Errorf("--rlimit: %w", err)
		}
		o.Limits = append(o.Limits, limit)
	}
	where, ok := map[string]spawn.Stderr{
		"inherit": spawn.StderrInherit, "socket": spawn.StderrSocket, "null": spawn.StderrNull,
	}[f.stderr]
	if !ok {
		return fmt.Errorf("--stderr %q: want inherit, socket or null", f.stderr)
	}
	o.Stderr = where
	return nil
}

// place finds the receiving socket: one that the service manager passes, or
// the path that the flags and the environment give.
func (f *flags) place() (receive.Place, error) {
	passed := listen.Activation()
	switch len(passed) {
	case 0:
		return receive.PlaceFor(f.socket, f.port, f.dir, os.Getenv)
	case 1:
		return receive.Place{Inherited: passed[0].FD}, nil
	}
	return receive.Place{}, fmt.Errorf("LISTEN_FDS: %d sockets were passed, one is of use", len(passed))
}
