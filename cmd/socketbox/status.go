package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
	"socketbox/internal/config"
)

func newStatusCommand() *cobra.Command {
	var file, dir string
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "status [FILE]",
		Short: "Show listeners, rules, targets, processes and counters of the running instance",
		Example: `  socketbox status
  socketbox status --watch
  socketbox status --json | jq .total`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if watch && asJSON {
				return newUsageError(c, errors.New("--watch and --json exclude each other"))
			}
			path, err := configPath(c, file, args)
			if err != nil {
				return err
			}
			if dir, err = mainDir(dir, path); err != nil {
				return err
			}
			if watch {
				return watchStatus(c, dir)
			}
			st, err := binder.FetchStatus(dir)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, st)
			}
			return st.Print(c.OutOrStdout())
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the instance of this configuration `FILE` (default "+defaultConfig+")")
	c.Flags().StringVar(&dir, "dir", "", dirHelp)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it anew each second, in place, until interrupted")
	return c
}

const (
	// watchEvery is how often --watch asks.
	watchEvery = time.Second
	// home moves a terminal's cursor to the top, clearLine clears what is left
	// of a line, clearRest what is below: no flicker (ECMA-48).
	home, clearLine, clearRest = "\x1b[H", "\x1b[K", "\x1b[J"
)

// watchStatus shows the status anew until it is interrupted or can't be had.
func watchStatus(c *cobra.Command, dir string) error {
	for {
		st, err := binder.FetchStatus(dir)
		if err != nil {
			return err
		}
		var page bytes.Buffer
		if err := st.Print(&page); err != nil {
			return err
		}
		text := page.Bytes()
		if isTerminal(os.Stdout) {
			text = append([]byte(home), bytes.ReplaceAll(text, []byte("\n"), []byte(clearLine+"\n"))...)
			text = append(text, clearRest...)
		} else {
			text = append(text, '\n')
		}
		if _, err := c.OutOrStdout().Write(text); err != nil {
			return err
		}
		time.Sleep(watchEvery)
	}
}

// printJSON prints v for programs.
func printJSON(c *cobra.Command, v any) error {
	e := json.NewEncoder(c.OutOrStdout())
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// mainDir is the main socket directory that a command is about: what the flag
// or the environment says, else what the configuration does.
func mainDir(flag, path string) (string, error) {
	if flag == "" {
		flag = os.Getenv("SOCKETBOX_DIR")
	}
	if flag != "" {
		return flag, nil
	}
	defaults := config.DefaultsFor(os.Geteuid(), os.Getenv)
	text, err := binder.ReadConfigFile(path)
	if err != nil && path != defaultConfig {
		return "", err
	}
	if cfg, err := config.Parse(path, text, defaults); err == nil { // else it is an earlier version of it that runs
		return cfg.Dir, nil
	}
	if defaults.Dir == "" {
		return "", &dirError{}
	}
	return defaults.Dir, nil
}

// dirError: an ordinary user without a runtime directory.
type dirError struct{}

func (*dirError) Error() string {
	return "no main socket directory: XDG_RUNTIME_DIR is not set"
}

// Hint names the flag.
func (*dirError) Hint() string { return "name it with --dir or SOCKETBOX_DIR" }
