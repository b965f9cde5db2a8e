// Command socketbox owns a machine's listening sockets and hands accepted
// connections to daemons in other namespaces.
//
// `socketbox bind` becomes two more processes by executing itself: the binder
// (binder.go) and the dispatcher (dispatcher.go). One file per subcommand and
// per role.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/logging"
	"socketbox/internal/privsep"
)

const program = "socketbox"

// version is set by the linker.
var version = "development"

func main() {
	if role, ok := privsep.RoleOf(os.Args); ok {
		os.Exit(playRole(role))
	}
	os.Exit(run(os.Args[1:]))
}

// playRole runs what `socketbox bind` has executed this program for.
func playRole(role privsep.Role) int {
	play := map[privsep.Role]func() error{privsep.Binder: runBinder, privsep.Dispatcher: runDispatcher}[role]
	if err := play(); err != nil {
		logging.PrintError(os.Stderr, string(role), err)
		return 1
	}
	return 0
}

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

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "socketbox",
		Short: "Own listening sockets, hand connections to daemons in other namespaces",
		Long: `socketbox owns a machine's listening sockets. When a client connects, it passes
the accepted socket itself, over a Unix socket, to a daemon that already runs
somewhere else: in a container, in a network namespace with nothing but lo.
The daemon sees the real client; there is no veth, no NAT and no proxy hop.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usage(cobra.NoArgs),
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return newUsageError(c, err) })
	root.AddCommand(newBindCommand(), newCheckCommand(), newStatusCommand(), newSessionsCommand(), newReloadCommand(), newExplainCommand(), newDirCommand(), newDoctorCommand(), newMetricsCommand(), newTraceCommand())
	return root
}

// usageError is a command line that can't be understood.
type usageError struct {
	command string
	err     error
}

func newUsageError(c *cobra.Command, err error) error { return &usageError{c.CommandPath(), err} }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Hint names the page that explains the command.
func (e *usageError) Hint() string { return e.command + " --help" }

// usage makes what a check of arguments refuses a usage error.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return newUsageError(c, err)
		}
		return nil
	}
}
