package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
	"socketbox/internal/config"
)

func newCheckCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Validate a configuration and print what it would bind and dispatch",
		Long: `Read a configuration file as ` + "`socketbox bind`" + ` would, and print the listeners and
rules that it makes. Nothing is bound. The exit status is 0 if the file is good
and 1 if not; every error has the form file:line:column: message.`,
		Example: `  socketbox check
  socketbox check ./new.toml && sudo install -m 0644 ./new.toml ` + defaultConfig + ` && sudo socketbox reload`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := configPath(c, file, args)
			if err != nil {
				return err
			}
			return check(c, path)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE` (default "+defaultConfig+")")
	return c
}

// configPath is the file that a command is about: a positional argument, the
// flag, or the default.
func configPath(c *cobra.Command, flag string, args []string) (string, error) {
	switch {
	case len(args) > 0 && flag != "":
		return "", newUsageError(c, errors.New("the file is named twice, by --config and by an argument"))
	case len(args) > 0:
		return args[0], nil
	case flag != "":
		return flag, nil
	}
	return defaultConfig, nil
}

func check(c *cobra.Command, path string) error {
	text, err := binder.ReadConfigFile(path)
	if err != nil {
		return err
	}
	cfg, err := config.Parse(path, text, config.DefaultsFor(os.Geteuid(), os.Getenv))
	if err != nil {
		return err
	}
	return binder.PrintConfig(c.OutOrStdout(), cfg)
}
