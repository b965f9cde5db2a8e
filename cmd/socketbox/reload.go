package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
)

func newReloadCommand() *cobra.Command {
	var file, dir string
	c := &cobra.Command{
		Use:   "reload [FILE]",
		Short: "Put the configuration file in force, without touching unchanged listeners",
		Long: `Read the configuration with the caller's rights, open the listeners that the
running instance does not have (as root also ports below 1024 and listeners in
other namespaces), pass them to it, and wait until the new configuration is in
force. On any error everything stays as it was, and the exit status is 1.`,
		Example: `  sudo socketbox reload
  sudo socketbox reload ./socketbox.toml`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := configPath(c, file, args)
			if err != nil {
				return err
			}
			return reload(dir, path)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE` (default "+defaultConfig+")")
	c.Flags().StringVar(&dir, "dir", "", dirHelp)
	return c
}

func reload(dir, path string) error {
	dir, err := mainDir(dir)
	if err != nil {
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if err := binder.Reload(dir, path); err != nil {
		return err
	}
	_, err = os.Stdout.WriteString("reloaded " + path + "\n")
	return err
}
