package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
)

func newReloadCommand() *cobra.Command {
	var file, dir string
	var diff, yes, asJSON bool
	c := &cobra.Command{
		Use:   "reload [FILE]",
		Short: "Put the configuration file in force, without touching unchanged listeners",
		Long: `Read the configuration with the caller's rights, open the listeners that the
running instance does not have (as root also ports below 1024 and listeners in
other namespaces), pass them to it, and wait until the new configuration is in
force. On any error everything stays as it was, and the exit status is 1.

With --diff it first shows the listeners that are kept, added and dropped and
the rules and targets that change, and then asks; without a terminal to ask on
it stops there, unless --yes is given.`,
		Example: `  sudo socketbox reload
  sudo socketbox reload --diff
  sudo socketbox reload ./socketbox.toml`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := configPath(c, file, args)
			if err != nil {
				return err
			}
			if (yes || asJSON) && !diff {
				return newUsageError(c, errors.New("--yes and --json go with --diff"))
			}
			if dir, err = mainDir(dir, path); err != nil {
				return err
			}
			if path, err = filepath.Abs(path); err != nil {
				return err
			}
			if diff {
				if goOn, err := showDiff(c, dir, path, yes, asJSON); err != nil || !goOn {
					return err
				}
			}
			return reload(dir, path)
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `FILE` (default "+defaultConfig+")")
	f.StringVar(&dir, "dir", "", dirHelp)
	f.BoolVar(&diff, "diff", false, "show what would change, and ask first")
	f.BoolVar(&yes, "yes", false, "with --diff: do not ask")
	f.BoolVar(&asJSON, "json", false, "with --diff: print JSON")
	return c
}

// showDiff prints what would change and returns whether to go on.
func showDiff(c *cobra.Command, dir, path string, yes, asJSON bool) (bool, error) {
	d, err := binder.Compare(dir, path)
	if err != nil {
		return false, err
	}
	if asJSON {
		return yes, printJSON(c, d)
	}
	if err := d.Print(c.OutOrStdout()); err != nil {
		return false, err
	}
	switch {
	case yes:
		return true, nil
	case d.Empty():
		return false, nil
	case !isTerminal(os.Stdin):
		_, err = fmt.Fprintln(c.OutOrStdout(), "nothing was changed (no terminal to ask on; --yes puts it in force)")
		return false, err
	}
	fmt.Fprint(c.OutOrStdout(), "put this in force? [y/N] ")
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y"), nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func reload(dir, path string) error {
	if err := binder.Reload(dir, path); err != nil {
		return err
	}
	_, err := os.Stdout.WriteString("reloaded " + path + "\n")
	return err
}
