// Command socketbox-metrics shows a running instance's status to Prometheus. It
// is a program of its own, with no privilege, so that neither the binder nor
// the dispatcher have an HTTP server in them; `socketbox metrics` starts it.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/config"
	"socketbox/internal/logging"
	"socketbox/internal/metrics"
)

const program = "socketbox-metrics"

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

// defaultListen is where scrapes come by default: on this machine alone.
const defaultListen = "127.0.0.1:9436"

func newCommand() *cobra.Command {
	var listen, dir, format, level string
	root := &cobra.Command{
		Use:   program,
		Short: "Show a running instance's counters to Prometheus",
		Long: `Serve the status of a running instance as Prometheus metrics at /metrics. It asks
the control socket at each scrape, as any user who may do that: a member of the
socketbox group, or the one who runs the instance. It refuses to run as root.`,
		Example: `  socketbox metrics --listen 127.0.0.1:9436
  curl -s http://127.0.0.1:9436/metrics | promtool check metrics`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.NoArgs(c, args); err != nil {
				return &usageError{err}
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			log, err := logging.New(os.Stderr, format, level, program)
			if err != nil {
				return &usageError{err}
			}
			if dir == "" {
				dir = mainDir()
			}
			return metrics.Serve(listen, dir, log)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f := root.Flags()
	f.StringVarP(&listen, "listen", "l", defaultListen, "`ADDR` to answer scrapes on, or unix:/path")
	f.StringVar(&dir, "dir", "", "main socket `DIR` of the instance (default $SOCKETBOX_DIR, else /run/socketbox)")
	f.StringVar(&format, "log", "text", "log `FORMAT`: text or json")
	f.StringVar(&level, "log-level", "info", "least `LEVEL` to log: debug, info, warn, error")
	return root
}

// mainDir is the main socket directory of the system's instance: this process
// is not root, and seldom the one who runs it.
func mainDir() string {
	if dir := os.Getenv("SOCKETBOX_DIR"); dir != "" {
		return dir
	}
	return config.DefaultsFor(0, os.Getenv).Dir
}
