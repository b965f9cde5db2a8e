package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// metricsProgram is apart, so that binder and dispatcher, which are this
// program, have no HTTP server and no Prometheus library in their memory.
const metricsProgram = "socketbox-metrics"

func newMetricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics [--listen ADDR]",
		Short: "Show the running instance's counters to Prometheus (runs " + metricsProgram + ")",
		Long:  "Become " + metricsProgram + ", with the same arguments: see socketbox-metrics(1).",
		Example: `  socketbox metrics --listen 127.0.0.1:9436
  socketbox metrics --help`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findBeside(metricsProgram)
			if err != nil {
				return err
			}
			err = unix.Exec(path, append([]string{metricsProgram}, args...), os.Environ())
			return fmt.Errorf("execute %s: %w", path, err)
		},
	}
}

// findBeside returns the path of another program of this suite: beside this
// one, else in PATH.
func findBeside(name string) (string, error) {
	if own, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(own), name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", &handoff.HintError{Err: err, Text: "it belongs to this suite: make install, or the package of the same name"}
	}
	return path, err
}
