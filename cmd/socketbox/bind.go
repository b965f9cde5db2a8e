package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
	"socketbox/internal/config"
	"socketbox/internal/logging"
)

// defaultConfig is read when neither --config nor --listen is given.
const defaultConfig = "/etc/socketbox/socketbox.toml"

func newBindCommand() *cobra.Command {
	var o binder.Options
	c := &cobra.Command{
		Use:   "bind",
		Short: "Bind listeners, shed all privileges, hand connections off (in the foreground)",
		Long: `Bind the listeners as the caller, then become another user without any
capability, and hand every connection to the receiver that its rule names. By
default a connection to port N goes to N.sock, N.ipv4.sock, N.ipv6.sock or
default.sock in the main socket directory.

Without flags the listeners and rules come from ` + defaultConfig + `.

Signals: HUP reloads, TERM delivers what is held and ends, a second TERM or INT
ends now, USR1 writes the state to the log.`,
		Example: `  # everything that comes to port 80 goes to the socket directory /run/socketbox
  socketbox bind --listen :80
  # two listeners, one receiver, as an ordinary user
  socketbox bind --listen 127.0.0.1:8080 --listen '[::1]:8080' --target /run/user/1000/web.sock
  # by configuration file, with one log line per connection
  socketbox bind --config /etc/socketbox/socketbox.toml --log-connections`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return bind(c, o) },
	}
	f := c.Flags()
	f.StringVarP(&o.Config, "config", "c", "", "configuration `FILE` (default "+defaultConfig+", unless --listen is given)")
	f.StringArrayVarP(&o.Listen, "listen", "l", nil, "`ADDR` to listen on instead of a file: :80, [::]:80, 127.0.0.1:80, unix:/path (repeatable)")
	f.StringVarP(&o.Target, "target", "t", "", "receiving socket for every connection, or a socket directory with a trailing slash (`PATH`)")
	f.StringVar(&o.Dir, "dir", "", dirHelp)
	f.StringVar(&o.User, "user", "", "`USER` to become (default socketbox, or nobody if there is none)")
	f.StringVar(&o.Guard, "guard", "", "`MODE` of the guard of passed sockets: auto, required or off (default: the configuration's, else auto)")
	f.StringVar(&o.LogFormat, "log", "text", "log `FORMAT`: text or json")
	f.StringVar(&o.LogLevel, "log-level", "info", "least `LEVEL` to log: debug, info, warn, error")
	f.BoolVar(&o.LogConnections, "log-connections", false, "log one line per connection")
	f.BoolVar(&o.Takeover, "takeover", false, "take everything over from the instance that runs, which ends: nothing is lost")
	return c
}

const dirHelp = "main socket `DIR` (default $SOCKETBOX_DIR, else what the configuration says; else /run/socketbox, not root: $XDG_RUNTIME_DIR/socketbox)"

func bind(c *cobra.Command, o binder.Options) error {
	log, err := logging.New(os.Stderr, o.LogFormat, o.LogLevel, program)
	if err != nil {
		return newUsageError(c, err)
	}
	switch {
	case o.Config != "" && len(o.Listen) > 0:
		return newUsageError(c, errors.New("--config and --listen exclude each other"))
	case o.Target != "" && o.Config != "":
		return newUsageError(c, errors.New("--target goes with --listen; a configuration file names targets in its rules"))
	case o.Config == "" && len(o.Listen) == 0 && os.Getenv("LISTEN_FDS") == "":
		o.Config = defaultConfig
	}
	if o.Config != "" {
		if o.Config, err = filepath.Abs(o.Config); err != nil {
			return err
		}
	}
	if o.Dir == "" {
		o.Dir = os.Getenv("SOCKETBOX_DIR")
	}
	err = binder.Start(o, log)
	var wrong *config.Error
	if errors.As(err, &wrong) && strings.HasPrefix(wrong.Where, "--") {
		return newUsageError(c, err) // it is the flag that is wrong, no file
	}
	return err
}
