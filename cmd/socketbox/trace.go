package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
)

func newTraceCommand() *cobra.Command {
	var o struct{ from, listener, dir string }
	var count int
	var asJSON bool
	c := &cobra.Command{
		Use:   "trace",
		Short: "Print each decision as it happens: rule, path, wait, errno",
		Long: `Print what the dispatcher decides, as it happens: delivered, held, rejected or
failed, by which rule, to which path, after what wait. While nobody watches this
costs the dispatcher nothing. It never waits for a reader: what is not read in
time is left out, and a line says how much that was.`,
		Example: `  socketbox trace --from 203.0.113.0/24
  socketbox trace --listener web -n 20
  socketbox trace --json | jq 'select(.outcome == "failed")'`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f := binder.TraceFilter{Listener: o.listener}
			if o.from != "" {
				var err error
				if f.From, err = prefix(o.from); err != nil {
					return newUsageError(c, err)
				}
			}
			if count < 0 {
				return newUsageError(c, errors.New("-n is negative"))
			}
			dir, err := mainDir(o.dir, defaultConfig)
			if err != nil {
				return err
			}
			return trace(c, dir, f, count, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&o.from, "from", "", "only clients in this `PREFIX` or with this address")
	f.StringVar(&o.listener, "listener", "", "only connections of the listener of this `NAME`")
	f.IntVarP(&count, "count", "n", 0, "end after `N` decisions (0: when interrupted)")
	f.StringVar(&o.dir, "dir", "", dirHelp)
	f.BoolVar(&asJSON, "json", false, "print JSON, one decision to a line")
	return c
}

func prefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("--from %q: expected a prefix such as 203.0.113.0/24, or an address", text)
	}
	return p.Masked(), nil
}

func trace(c *cobra.Command, dir string, f binder.TraceFilter, count int, asJSON bool) error {
	var failed error
	seen := 0
	out := json.NewEncoder(c.OutOrStdout())
	begun := func() { fmt.Fprintln(c.ErrOrStderr(), "watching the decisions of "+dir+"; ^C ends it") }
	err := binder.Trace(dir, f, begun, func(l *binder.TraceLine) bool {
		if asJSON {
			failed = out.Encode(l)
		} else {
			_, failed = fmt.Fprintln(c.OutOrStdout(), l.Text())
		}
		if l.Lost == 0 {
			seen++
		}
		return failed == nil && (count == 0 || seen < count)
	})
	return errors.Join(failed, err)
}
