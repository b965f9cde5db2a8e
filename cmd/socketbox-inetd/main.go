// Command socketbox-inetd starts one process for each connection that is
// handed to it, with the client's socket as descriptors 0 and 1. It is a
// static program, so that it can be copied into any container.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/inetd"
	"socketbox/internal/logging"
)

const program = "socketbox-inetd"

// version is set by the linker.
var version = "development"

func main() { os.Exit(run(os.Args[1:])) }

// run executes a command line and returns the exit status: 0, 1 for a
// failure, 2 for a usage error, 126 or 127 for a program that can't be
// executed or is not there.
func run(args []string) int {
	root := newCommand()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	logging.PrintError(os.Stderr, program, err)
	var usage *usageError
	var command *inetd.CommandError
	switch {
	case errors.As(err, &usage):
		return 2
	case errors.As(err, &command):
		return command.ExitCode
	}
	return 1
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
		Use:   program + " [--socket PATH | --port N] [flags] -- command [argument...]",
		Short: "Run a program for each connection that is handed over",
		Long: `socketbox-inetd binds a receiving socket, to which ` + "`socketbox bind`" + ` hands
connections, and runs the command once for each of them, with the client's own
socket as standard input and output. It may be started before or after
` + "`socketbox bind`" + `, in another container or network namespace.

Whatever is over a limit waits: here, in the receiving socket, and then in the
kernel's backlog of the listener. No connection is refused.

The command gets its own session, the signals' default dispositions, and in its
environment PROTO, TCPREMOTEIP, TCPREMOTEPORT, TCPLOCALIP, TCPLOCALPORT,
TCPCONNNUM (as of tcpserver), REMOTE_HOST (as of xinetd), REMOTE_ADDR,
REMOTE_PORT (as of systemd) and SOCKETBOX_LISTENER.

Signals: TERM or INT closes the receiving socket, serves what was received and
ends when the last child has ended; a second one ends the children, after
--kill-after with KILL; a third kills them at once. USR1 writes the state to
the log. HUP has nothing to reload.

Exit status: 0; 1 for a failure; 2 for a usage error; 126 if the command can't
be executed, 127 if it is not there.`,
		Example: `  # whatever comes to the socketbox listener on port 22, by sshd
  socketbox-inetd --port 22 -- /usr/sbin/sshd -i
  # everything without a receiver of its own, 10 at once from one address, 50 a second
  socketbox-inetd --max 200 --max-per-source 10 --rate 50/s -- busybox httpd -i -h /srv/www
  # as another user, in a directory and with limits of its own
  socketbox-inetd --port 79 --user nobody --chdir /srv/finger --rlimit nofile=64 --timeout 30s -- in.fingerd
  # a shell script; what it writes to standard error goes to the client
  socketbox-inetd --stderr socket -- sh -c 'echo "hello $REMOTE_ADDR"'`,
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
