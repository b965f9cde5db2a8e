// Command socketbox-relay opens a connection for each connection that is
// handed to it, and copies bytes both ways: the fallback for daemons that can
// neither be preloaded nor run as children of an inetd, and for other hosts.
// It is a static program, so that it can be copied into any container.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/logging"
)

const program = "socketbox-relay"

// version is set by the linker.
var version = "development"

func main() { os.Exit(run(os.Args[1:])) }

// run executes a command line and returns the exit status: 0, 1 for a
// failure, 2 for a usage error.
func run(args []string) int {
	root := newCommand()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	logging.PrintError(os.Stderr, program, err)
	var usage *usageError
	if errors.As(err, &usage) {
		return 2
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
		Use:   program + " [--socket PATH | --port N]... [--to DESTINATION]... [flags]",
		Short: "Relay connections that are handed over to any TCP or Unix address",
		Long: `socketbox-relay binds a receiving socket, to which ` + "`socketbox bind`" + ` hands
connections (or listens by itself), opens a connection for each of them and
copies bytes both ways without looking at them. It may be started before or
after ` + "`socketbox bind`" + `, in another container or network namespace.

Without --to it connects to 127.0.0.1 (or ::1) at the port that the client
dialled. It refuses that in the listener's own network namespace, where it
would expose services that listen on loopback only: start it in the daemon's
namespace, or name that one with --netns.

A destination is tcp:HOST:PORT, unix:/path or unix:@name, with the words
{local} {port} {remote} {family} {listener}. Several are tried in order, each
for --connect-timeout. A client that none takes is reset.

Whatever is over a limit waits: in the receiving socket, and then in the
kernel's backlog of the listener. No connection is refused.

Signals: TERM or INT takes what has been sent, relays on until all connections
have ended or --drain is over; a second one ends at once. HUP looks names up
again. USR1 writes state and counters to the log.

Exit status: 0; 1 for a failure; 2 for a usage error.`,
		Example: `  # whatever comes to port 5432, to a daemon on 127.0.0.1:5432 of a namespace
  socketbox-relay --port 5432 --netns db
  # to another host, whose name is looked up for each connection
  socketbox-relay --port 443 --to backend.example:8443 --to spare.example:8443
  # to a Unix socket, with the client's address in a PROXY header
  socketbox-relay --port 80 --to unix:/run/nginx/web.sock --send-proxy v2
  # a listener per tenant, each to the namespace of the same name
  socketbox-relay --netns '/run/netns/{listener}'
  # without socketbox bind
  socketbox-relay --listen :8080 --to 192.0.2.7:80 --max-per-source 20`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{errors.New("argument " + args[0] + ": only flags are taken; a destination is given with --to")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return f.run(c) },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f.define(root)
	return root
}
