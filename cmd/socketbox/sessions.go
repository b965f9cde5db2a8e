package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
)

func newSessionsCommand() *cobra.Command {
	var o struct {
		file, dir, listener, target string
		from                        []string
		rule                        int
		asJSON, kill, all           bool
	}
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List connections that have been handed off and live, or end them",
		Long: `List the connections that have been handed off and live, wherever their daemons
are: client, listener, rule, target, age, bytes from and to the client, round
trip time. Rule, target and age of a connection are known where one rule takes all
of a listener's, or the rule limits sessions.

With --kill the chosen ones are ended, with the caller's own rights: the client
gets a reset, the daemon an error.`,
		Example: `  socketbox sessions
  socketbox sessions --from 203.0.113.0/24 --json | jq '.sessions | length'
  sudo socketbox sessions --listener web --from 203.0.113.9 --kill`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			which, err := selector(o.from)
			if err != nil {
				return newUsageError(c, err)
			}
			which.Listener, which.Target, which.Rule = o.listener, o.target, o.rule
			if o.kill && which.Any() && !o.all {
				return newUsageError(c, errors.New("--kill without a choice would end every session: say so with --all"))
			}
			path, err := configPath(c, o.file, nil)
			if err != nil {
				return err
			}
			dir, err := mainDir(o.dir, path)
			if err != nil {
				return err
			}
			if o.kill {
				return killSessions(c, dir, which, o.asJSON)
			}
			all, err := binder.FetchSessions(dir, which)
			if err != nil {
				return err
			}
			if o.asJSON {
				return printJSON(c, all)
			}
			return all.Print(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.from, "from", nil, "only of these clients (`PREFIX`, ADDR, or one ADDR:PORT)")
	f.StringVar(&o.listener, "listener", "", "only by the listener of this `NAME`")
	f.IntVar(&o.rule, "rule", -1, "only those that rule `NUMBER` took; 0: that no rule took")
	f.StringVar(&o.target, "target", "", "only those that went to this target (`NAME` or path)")
	f.BoolVar(&o.kill, "kill", false, "end them")
	f.BoolVar(&o.all, "all", false, "with --kill and no choice: end every one")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.StringVarP(&o.file, "config", "c", "", "the instance of this configuration `FILE` (default "+defaultConfig+")")
	f.StringVar(&o.dir, "dir", "", dirHelp)
	return c
}

// killSessions ends sessions and says which. On an error those are shown that were
// ended all the same.
func killSessions(c *cobra.Command, dir string, which binder.Selector, asJSON bool) error {
	all, err := binder.KillSessions(dir, which)
	if all == nil {
		return err
	}
	if asJSON {
		return errors.Join(printJSON(c, all), err)
	}
	ended := 0
	for i := range all.Sessions {
		if all.Sessions[i].Error == "" {
			ended++
		}
	}
	if ended > 0 || err == nil {
		if printErr := all.Print(c.OutOrStdout()); printErr != nil {
			return printErr
		}
		fmt.Fprintf(c.OutOrStdout(), "ended %d of %d\n", ended, len(all.Sessions))
	}
	return err
}

// selector reads the clients to choose.
func selector(from []string) (binder.Selector, error) {
	var s binder.Selector
	for _, text := range from {
		if client, err := netip.ParseAddrPort(text); err == nil {
			if len(from) > 1 {
				return s, fmt.Errorf("--from %s: one client with its port stands alone", text)
			}
			s.Client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
			return s, nil
		}
		p, err := netip.ParsePrefix(text)
		if a, addrErr := netip.ParseAddr(strings.Trim(text, "[]")); addrErr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return s, fmt.Errorf("--from %q: expected a prefix such as 203.0.113.0/24, an address, or an address and a port", text)
		}
		s.From = append(s.From, p.Masked())
	}
	return s, nil
}
