package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"socketbox/internal/inetd"
	"socketbox/internal/launch"
	"socketbox/internal/logging"
	"socketbox/internal/privsep/isolate"
	"socketbox/internal/receive"
)

// flags are the command line as it was typed.
type flags struct {
	newNet, newUser, mapRoot bool
	netns                    string
	uidMap, gidMap           []string
	dir, ports, via, preload string
	user, group, chdir       string
	keepCaps                 []string
	dropCaps, noNewPrivs     bool
	env, rlimits             []string
	restart                  string
	onDemand                 bool
	wait, killAfter, idle    time.Duration
	firstFD                  int
	fdEnv                    string
	isolate                  string
	allowConnect, allowBind  []uint
	logFormat, logLevel      string
}

func (f *flags) define(c *cobra.Command) {
	s := c.Flags()
	s.SortFlags = false
	s.SetInterspersed(false) // the daemon's own flags are its own

	s.BoolVarP(&f.newNet, "net", "n", false, "in a fresh network namespace with nothing but lo (not root: implies -U)")
	s.StringVar(&f.netns, "netns", "", "in the network namespace `NS`: a name, as of ip netns, or a path")
	s.BoolVarP(&f.newUser, "user-ns", "U", false, "in a user namespace of its own")
	s.BoolVar(&f.mapRoot, "map-root", false, "there, be root; with the ids of /etc/subuid and /etc/subgid, if newuidmap is there")
	s.StringArrayVar(&f.uidMap, "uid-map", nil, "there, map uids, `INSIDE:OUTSIDE[:COUNT]` (repeatable)")
	s.StringArrayVar(&f.gidMap, "gid-map", nil, "there, map gids, `INSIDE:OUTSIDE[:COUNT]` (repeatable)")

	s.StringVar(&f.dir, "dir", "", "socket `DIR` (default $SOCKETBOX_DIR; else /run/socketbox, not root: $XDG_RUNTIME_DIR/socketbox)")
	s.StringVarP(&f.ports, "ports", "p", "all", "answer these `PORTS` of the daemon: 80,443=8443,8000-8010; 443=8443: clients dial 8443")
	s.StringVar(&f.via, "via", "auto", "answer binds `HOW`: auto, preload, notify, listen-fds or none")
	s.StringVar(&f.preload, "preload", "", "`PATH` of the preload library (default: beside this program, or where it is installed)")

	s.DurationVar(&f.wait, "wait", launch.DefaultWait, "`TIME` that a bind waits for socketbox to have the listener, where binds are notified")

	s.IntVar(&f.firstFD, "fd", 3, "with --via listen-fds, pass the sockets as descriptors from `N` on (other than 3: without LISTEN_FDS)")
	s.StringVar(&f.fdEnv, "fd-env", "", "with --via listen-fds, list their numbers in the variable `NAME`, as nginx reads NGINX")

	s.StringVar(&f.isolate, "isolate", "", "take the ways by which a passed socket leads out: auto, strict or off (`MODE`; default auto with -n or --netns, else off)")
	s.UintSliceVar(&f.allowConnect, "allow-connect", nil, "there, TCP `PORT` that the daemon may connect to (repeatable)")
	s.UintSliceVar(&f.allowBind, "allow-bind", nil, "with --isolate strict, TCP `PORT` that the daemon may bind (repeatable)")

	s.StringVar(&f.user, "user", "", "run as `USER[:GROUP]`, with the groups of USER if none is given")
	s.StringVar(&f.group, "group", "", "run with `GROUP`")
	s.StringSliceVar(&f.keepCaps, "keep-cap", nil, "keep this `CAPABILITY`, as net_raw, whatever the user (repeatable)")
	s.BoolVar(&f.dropCaps, "drop-caps", false, "have no capability but those of --keep-cap, and get none by exec")
	s.BoolVar(&f.noNewPrivs, "no-new-privs", false, "gain nothing by exec of setuid programs (on by itself where the filter needs it)")
	s.StringVar(&f.chdir, "chdir", "", "run in `DIR`")
	s.StringArrayVarP(&f.env, "env", "e", nil, "set a variable, `NAME=VALUE` (repeatable)")
	s.StringArrayVar(&f.rlimits, "rlimit", nil, "resource limit, `NAME=SOFT[:HARD]`, as nofile=4096 or core=unlimited (repeatable)")

	s.StringVar(&f.restart, "restart", "no", "start the daemon again `WHEN` it has ended: no, on-failure or always")
	s.BoolVar(&f.onDemand, "on-demand", false, "start the daemon at its first client, and again at the next one after it has ended; with --ports")
	s.DurationVar(&f.idle, "idle", 0, "with --on-demand, end the daemon when no client has come for this `TIME` (0: never)")
	s.DurationVar(&f.killAfter, "kill-after", launch.DefaultKillAfter, "`TIME` from TERM to KILL for processes that the daemon leaves behind")

	s.StringVar(&f.logFormat, "log", "text", "log `FORMAT`: text or json")
	s.StringVar(&f.logLevel, "log-level", "info", "least `LEVEL` to log: debug, info, warn, error")

	complete := func(flag string, values ...string) {
		c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("via", launch.Vias...)
	complete("isolate", isolate.Modes...)
	complete("restart", launch.Restarts...)
	complete("log", logging.Formats...)
	complete("log-level", logging.Levels...)
	c.MarkFlagDirname("dir")
	c.MarkFlagDirname("chdir")
}

// run launches what the flags ask for.
func (f *flags) run(c *cobra.Command, args []string) error {
	log, err := logging.New(os.Stderr, f.logFormat, f.logLevel, program)
	if err != nil {
		return &usageError{err}
	}
	o := launch.Options{
		Command: args, Library: f.preload,
		NewNet: f.newNet, NetNS: f.netns, NewUser: f.newUser, MapRoot: f.mapRoot,
		DropCaps: f.dropCaps, NoNewPrivs: f.noNewPrivs, Chdir: f.chdir, Env: f.env,
		Wait: f.wait, FirstFD: f.firstFD, FDEnv: f.fdEnv, KillAfter: f.killAfter, OnDemand: f.onDemand, Idle: f.idle, Environ: os.Environ(), Log: log,
	}
	if err := f.check(); err != nil {
		return &usageError{err}
	}
	if err := f.parse(&o); err != nil {
		return &usageError{err}
	}
	if o.Dir, err = f.directory(); err != nil {
		return err
	}
	return launch.Run(o)
}

// check refuses values that are out of range and flags that exclude others.
func (f *flags) check() error {
	switch {
	case f.newNet && f.netns != "":
		return errors.New("-n makes a network namespace, --netns enters one: give one of them")
	case f.mapRoot && len(f.uidMap)+len(f.gidMap) > 0:
		return errors.New("--map-root is a map of its own: it excludes --uid-map and --gid-map")
	case f.isolate != "" && !slices.Contains(isolate.Modes, f.isolate):
		return fmt.Errorf("--isolate %q: want one of %s", f.isolate, strings.Join(isolate.Modes, ", "))
	case (f.fdEnv != "" || f.firstFD != 3) && launch.Via(f.via) != launch.ViaListenFDs:
		return errors.New("--fd and --fd-env are for --via listen-fds")
	case f.firstFD < 3 || f.firstFD > 1000:
		return errors.New("--fd: want 3 to 1000")
	case strings.Contains(f.fdEnv, "="):
		return errors.New("--fd-env: want the name of a variable")
	case f.idle < 0 || f.idle > 0 && f.idle < 100*time.Millisecond:
		return errors.New("--idle: want 100ms or more, or 0 for never")
	case f.idle > 0 && !f.onDemand:
		return errors.New("--idle goes with --on-demand: nothing else would start the daemon again")
	case f.onDemand && launch.Via(f.via) == launch.ViaNone:
		return errors.New("--on-demand looks at what socketbox lends, which --via none leaves out")
	case f.wait < 0:
		return errors.New("--wait: a time can't be negative")
	case f.killAfter <= 0:
		return errors.New("--kill-after: want more than 0")
	case !slices.Contains(launch.Vias, f.via):
		return fmt.Errorf("--via %q: want one of %s", f.via, strings.Join(launch.Vias, ", "))
	case !slices.Contains(launch.Restarts, f.restart):
		return fmt.Errorf("--restart %q: want one of %s", f.restart, strings.Join(launch.Restarts, ", "))
	case f.group != "" && strings.Contains(f.user, ":"):
		return errors.New("--user names a group already: it excludes --group")
	}
	for _, entry := range f.env {
		if name, _, ok := strings.Cut(entry, "="); !ok || name == "" {
			return fmt.Errorf("--env %q: want NAME=VALUE", entry)
		}
	}
	return nil
}

// parse reads the flags that have a form of their own.
func (f *flags) parse(o *launch.Options) (err error) {
	o.Via, o.Restart = launch.Via(f.via), launch.Restart(f.restart)
	o.NewUser = o.NewUser || f.mapRoot || len(f.uidMap)+len(f.gidMap) > 0
	if o.Ports, err = launch.ParsePorts(f.ports); err != nil {
		return fmt.Errorf("--ports: %w", err)
	}
	if o.UIDs, err = parseMaps("--uid-map", f.uidMap); err != nil {
		return err
	}
	if o.GIDs, err = parseMaps("--gid-map", f.gidMap); err != nil {
		return err
	}
	if err := f.parseIsolate(o); err != nil {
		return err
	}
	who := f.user
	if f.group != "" {
		who += ":" + f.group
	}
	if who != "" {
		if o.User, err = inetd.ParseUser(who); err != nil {
			return fmt.Errorf("--user: %w", err)
		}
	}
	for _, name := range f.keepCaps {
		number, err := launch.ParseCapability(name)
		if err != nil {
			return fmt.Errorf("--keep-cap: %w", err)
		}
		o.KeepCaps = append(o.KeepCaps, number)
	}
	for _, text := range f.rlimits {
		limit, err := inetd.ParseLimit(text)
		if err != nil {
			return fmt.Errorf("--rlimit: %w", err)
		}
		o.Limits = append(o.Limits, limit)
	}
	return nil
}

// parseIsolate reads what the daemon may not do with what it is passed. Where
// it has no network namespace of its own to be kept in, nothing is taken.
func (f *flags) parseIsolate(o *launch.Options) (err error) {
	o.Isolate.Mode = isolate.Mode(f.isolate)
	if f.isolate == "" {
		o.Isolate.Mode = isolate.Off
		if (f.newNet || f.netns != "") && o.Via != launch.ViaNone {
			o.Isolate.Mode = isolate.Auto
		}
	}
	if o.Isolate.AllowConnect, err = portList("--allow-connect", f.allowConnect); err != nil {
		return err
	}
	if o.Isolate.AllowBind, err = portList("--allow-bind", f.allowBind); err != nil {
		return err
	}
	if o.Isolate.Mode == isolate.Off && len(f.allowConnect)+len(f.allowBind) > 0 {
		return errors.New("--allow-connect and --allow-bind go with --isolate auto or strict")
	}
	return nil
}

func portList(flag string, numbers []uint) (ports []uint16, err error) {
	for _, n := range numbers {
		if n > 65535 {
			return nil, fmt.Errorf("%s %d: want a port, 0 to 65535", flag, n)
		}
		ports = append(ports, uint16(n))
	}
	return ports, nil
}

func parseMaps(flag string, texts []string) (ranges []launch.IDRange, err error) {
	for _, text := range texts {
		r, err := launch.ParseIDRange(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// directory finds the socket directory, by the rules that all programs share.
// Nothing needs one where binds are not answered.
func (f *flags) directory() (string, error) {
	place, err := receive.PlaceFor("", 0, f.dir, os.Getenv)
	if err != nil {
		if launch.Via(f.via) == launch.ViaNone {
			return "", nil
		}
		return "", err
	}
	dir := filepath.Dir(place.Path)
	if place.Make {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("make socket directory: %w", err)
		}
	}
	return dir, nil
}
