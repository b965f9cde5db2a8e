package binder

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
)

// Options are what the command line says.
type Options struct {
	Config         string   // file to read; "" if there is none
	Listen         []string // addresses, instead of a file
	Target         string
	Dir            string
	User           string
	Guard          string // instead of the configuration's
	LogFormat      string
	LogLevel       string
	LogConnections bool
	Takeover       bool // from the instance that runs
}

// overridden names the configuration's keys that flags have set.
func (o *Options) overridden() []string {
	var keys []string
	if o.Dir != "" {
		keys = append(keys, "dir")
	}
	if o.User != "" {
		keys = append(keys, "user")
	}
	if o.Guard != "" {
		keys = append(keys, "guard")
	}
	return keys
}

// handover is what the privileged stage leaves for the binder. The
// descriptors that come along are: the control socket, the conversation with
// the predecessor if there is one, the guard's refusals likewise, sock_diag sockets, then the listeners, the
// files of tables, and what brings connections to listeners (steer.go), in order.
type handover struct {
	Options   Options
	Text      []byte // of the configuration file
	Defaults  config.Defaults
	Inherited []listen.Description // listeners that came by LISTEN_FDS and are not configured
	Control   string               // path of the control socket
	Owner     int                  // uid that may change things, besides 0
	Verify    privsep.Expectation
	Warnings  []string

	Guard   *privsep.Guard // that everything was bound in, if any
	NoGuard string         // why there is none although there should be

	Namespaces  []uint64            // of the listeners, in order: inodes
	Diags       int                 // descriptors that openDiags has opened
	Predecessor int                 // pid of the instance to take over from; 0: none
	Standings   map[string]standing // of its listeners, by key of description
	Elders      map[string][]elder  // loans of earlier runs that are still out, by the same
}

// Start is the privileged stage: it reads the configuration, makes the main
// socket directory, binds everything, and becomes the binder. It returns only
// if that failed, with nothing left behind but the directory.
func Start(o Options, log *slog.Logger) error {
	h := handover{Options: o, Defaults: config.DefaultsFor(os.Geteuid(), os.Getenv), Owner: os.Geteuid()}
	if err := readConfig(&h); err != nil {
		return err
	}
	cfg, err := h.config()
	if err != nil {
		return err
	}
	if _, _, err := cfg.Table(); err != nil {
		return err
	}
	id, account, err := identify(cfg.User, &h)
	if err != nil {
		return err
	}
	raiseFileLimit(&h)
	var before *predecessor
	if o.Takeover {
		if before, err = findPredecessor(cfg); err != nil {
			return err
		}
		defer before.close()
	}
	if err := makeMainDirectory(cfg.Dir, account); err != nil {
		return err
	}
	tables, err := openTables(cfg)
	if err != nil {
		return err
	}
	defer closeAll(tables)
	if err := h.enterGuard(cfg.Guard, account); err != nil {
		return err
	}
	defer h.leaveGuard() // what follows returns only if it failed
	listeners, err := openListeners(cfg, &h, before)
	if err != nil {
		return err
	}
	for _, fd := range listeners {
		h.Namespaces = append(h.Namespaces, listen.Namespace(fd))
	}
	if err := h.checkGuarded(cfg, listeners); err != nil {
		closeAll(listeners)
		return err
	}
	steering, err := steerAll(append(cfg.Descriptions(), h.Inherited...), listeners)
	if err != nil {
		closeAll(listeners)
		return err
	}
	diags := openDiags(listeners)
	h.Diags = len(diags)
	control, err := h.takeControl(cfg.Dir, account, before)
	if err != nil {
		closeAll(listeners)
		return err
	}
	h.warnUnreadable(account)
	for _, note := range cfg.Notes {
		log.Info(note)
	}
	for _, warning := range h.Warnings {
		log.Warn(warning)
	}
	state, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	err = privsep.Reexec(privsep.Binder, id, state, slices.Concat(control, h.guardFDs(), diags, listeners, tables, steering))
	if before == nil {
		unix.Unlink(h.Control)
	}
	return err
}

// takeControl returns the control socket, bound anew or the predecessor's
// with the conversation.
func (h *handover) takeControl(dir string, a account, before *predecessor) ([]int, error) {
	if before == nil {
		fd, path, err := bindControl(dir, a)
		h.Control = path
		return []int{fd}, err
	}
	fd, err := before.fd()
	h.Control, h.Predecessor, h.Standings = before.estate.Control, before.estate.PID, before.standings()
	return []int{before.control, fd}, err
}

// readConfig reads the file into h.Text. Without a file and --listen there
// still may be inherited sockets.
func readConfig(h *handover) error {
	if h.Options.Config == "" {
		return nil
	}
	text, err := ReadConfigFile(h.Options.Config)
	if err != nil {
		return err
	}
	h.Text = text
	return nil
}

// maxConfig bounds a configuration file: a hundred thousand rules.
const maxConfig = 16 << 20

// ReadConfigFile reads a configuration file with the caller's rights.
func ReadConfigFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxConfig {
		err = fmt.Errorf("%d bytes, at most %d", st.Size(), maxConfig)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	if err == nil {
		return text, nil
	}
	wrapped := fmt.Errorf("read configuration: %w", err)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, withHint(wrapped, "name a file with --config, or listen without one: socketbox bind --listen :8080 (examples: socketbox bind --help)")
	}
	return nil, wrapped
}

// config makes the configuration that h describes. The binder calls it again
// with the same result.
func (h *handover) config() (*config.Config, error) {
	cfg, err := h.parse()
	if err != nil {
		return nil, err
	}
	if err := cfg.Override(h.Options.Dir, h.Options.User, h.Options.Guard); err != nil {
		return nil, err
	}
	for _, d := range h.Inherited {
		cfg.Listeners = append(cfg.Listeners, config.Listener{Description: d, Handoff: "connection"})
	}
	return cfg, nil
}

func (h *handover) parse() (*config.Config, error) {
	if h.Options.Config != "" {
		return config.Parse(h.Options.Config, h.Text, h.Defaults)
	}
	return config.FromFlags(h.Options.Listen, h.Options.Target, h.Defaults)
}

// warnUnreadable says at start what a later HUP would fail at.
func (h *handover) warnUnreadable(a account) {
	if h.Options.Config == "" || a.keep {
		return
	}
	if err := readableBy(h.Options.Config, a.uid, a.gid); err != nil {
		h.Warnings = append(h.Warnings, fmt.Sprintf("the running binder can't read %s (%v): HUP can't reload it; `socketbox reload` as root can", h.Options.Config, err))
	}
}

// raiseFileLimit raises RLIMIT_NOFILE to its hard limit, and that where it may.
func raiseFileLimit(h *handover) {
	const wanted = 65536
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return
	}
	higher := unix.Rlimit{Cur: max(lim.Max, wanted), Max: max(lim.Max, wanted)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &higher) == nil {
		return
	}
	unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lim.Max, Max: lim.Max})
	if lim.Max < wanted {
		h.Warnings = append(h.Warnings, fmt.Sprintf("RLIMIT_NOFILE is %d, fewer than %d connections and targets fit: raise it (systemd: LimitNOFILE=)", lim.Max, wanted))
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
