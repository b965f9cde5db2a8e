// Command socketbox-launch runs a daemon in a network namespace of its own,
// with its listening sockets answered by socketbox. It is a static program, so
// that it can be copied into any container.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/launch"
	"socketbox/internal/logging"
)

const program = "socketbox-launch"

// version is set by the linker.
var version = "development"

func main() {
	if launch.IsStage(os.Args) {
		os.Exit(launch.Stage())
	}
	os.Exit(run(os.Args[1:]))
}

// run executes a command line and returns the exit status: the daemon's own,
// 128 and the number of the signal that ended it, 2 for a usage error, 125
// for a failure of the launcher, 126 or 127 for a program that can't be
// executed or is not there.
func run(args []string) int {
	root := newCommand()
	root.SetArgs(args)
	err := root.Execute()
	code, silent := launch.ExitCode(err)
	if !silent {
		logging.PrintError(os.Stderr, program, err)
	}
	var usage *usageError
	if errors.As(err, &usage) {
		return 2
	}
	return code
}

// usageError is a command line that can't be understood.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Hint names the page that explains the command.
func (e *usageError) Hint() string { return program + " --help" }

func newCommand() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   program + " [-n] [flags] -- command [argument...]",
		Short: "Run a daemon without a network, with its listening sockets answered by socketbox",
		Long: `socketbox-launch runs a daemon, in a fresh network namespace with -n, and has
socketbox answer its listening sockets: the daemon's bind to port 80 gets what
` + "`socketbox bind`" + ` has for port 80, the listening socket itself if it is lent, else
its connections one by one. Nothing in the daemon's configuration changes.

Dynamically linked programs are answered by the preload library, all others,
static ones of Go among them, by a seccomp filter that stops them at bind(2)
alone. An ordinary user gets a user namespace of his own with it.

It stays as the daemon's supervisor: signals are passed on, processes are
reaped, and it exits with the daemon's status; 128 and its number after a
signal; 125 for a failure of its own, 126 if the command can't be executed,
127 if it is not there; 2 for a usage error. A second TERM ends everything at
once.`,
		Example: `  # nginx, with nothing but lo, serves what comes to socketbox's listener on port 80
  socketbox-launch -n -- nginx -g 'daemon off;'
  # a port of the daemon's own, answered by another one of socketbox
  socketbox-launch -n --ports 8000=80 -- python3 -m http.server 8000
  # as another user, without any capability, started again when it fails
  socketbox-launch -n --user www-data --drop-caps --restart on-failure -- ./server
  # started by the first client, and ended when none has come for ten minutes
  socketbox-launch -n --ports 80 --on-demand --idle 10m -- ./server
  # in an existing namespace; in a container that has its own, neither flag is needed
  socketbox-launch --netns web -- ./server`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{errors.New("no command to run; give it after --")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args) },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f.define(root)
	return root
}
