package main

import (
	"encoding/json"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
	"socketbox/internal/config"
)

func newStatusCommand() *cobra.Command {
	var dir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show listeners, rules, targets and counters of the running instance",
		Example: `  socketbox status
  socketbox status --json | jq .total`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := mainDir(dir)
			if err != nil {
				return err
			}
			st, err := binder.FetchStatus(dir)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(st)
			}
			return st.Print(c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&dir, "dir", "", dirHelp)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// mainDir is the main socket directory that a command is about.
func mainDir(flag string) (string, error) {
	if flag == "" {
		flag = os.Getenv("SOCKETBOX_DIR")
	}
	if flag == "" {
		flag = config.DefaultsFor(os.Geteuid(), os.Getenv).Dir
	}
	if flag == "" {
		return "", &dirError{}
	}
	return flag, nil
}

// dirError: an ordinary user without a runtime directory.
type dirError struct{}

func (*dirError) Error() string {
	return "no main socket directory: XDG_RUNTIME_DIR is not set"
}

// Hint names the flag.
func (*dirError) Hint() string { return "name it with --dir or SOCKETBOX_DIR" }
