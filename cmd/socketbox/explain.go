package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"socketbox/internal/binder"
	"socketbox/internal/config"
)

func newExplainCommand() *cobra.Command {
	var o struct{ from, to, listener, file, dir string }
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain --from ADDR[:PORT] --to ADDR:PORT",
		Short: "Say what becomes of a connection: which rule takes it, and why",
		Long: `Say what becomes of a connection: which listener gets it, each rule that is
tried up to the one that takes it, with what did not fit, the target, and
whether somebody receives there now.

The running instance is asked, about the table that it has in force. With
--config a file is explained instead, without any instance.`,
		Example: `  socketbox explain --from 203.0.113.9 --to 192.0.2.11:80
  socketbox explain --config ./new.toml --from 2001:db8::9 --to '[2001:db8::11]:443'
  socketbox explain --to unix:/run/web.sock --json | jq -r .verdict`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			q, err := question(o.from, o.to, o.listener)
			if err != nil {
				return newUsageError(c, err)
			}
			e, err := explain(q, o.file, o.dir)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, e)
			}
			return e.Print(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.from, "from", "", "the client's address (`ADDR[:PORT]`)")
	f.StringVar(&o.to, "to", "", "the address and port that it dials (`ADDR:PORT`), or unix:/path")
	f.StringVar(&o.listener, "listener", "", "`NAME` of the listener, where several would take it")
	f.StringVarP(&o.file, "config", "c", "", "explain this `FILE` instead of the running instance")
	f.StringVar(&o.dir, "dir", "", dirHelp)
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// question reads the addresses of a connection.
func question(from, to, listener string) (q binder.Question, err error) {
	q.Listener = listener
	if to == "" {
		return q, errors.New("--to is missing: the address and port that the client dials")
	}
	if path, ok := strings.CutPrefix(to, "unix:"); ok {
		q.Unix = path
	} else if q.To, err = netip.ParseAddrPort(to); err != nil {
		return q, fmt.Errorf("--to %q: expected an address and a port such as 192.0.2.1:80 or [2001:db8::1]:80", to)
	}
	if from == "" {
		return q, nil
	}
	if both, err := netip.ParseAddrPort(from); err == nil {
		q.From, q.FromPort = both.Addr(), both.Port()
	} else if q.From, err = netip.ParseAddr(strings.Trim(from, "[]")); err != nil {
		return q, fmt.Errorf("--from %q: expected an address such as 203.0.113.9 or 203.0.113.9:1234", from)
	}
	if q.Unix == "" && q.From.Unmap().Is4() != q.To.Addr().Unmap().Is4() {
		return q, errors.New("--from and --to are of different families")
	}
	return q, nil
}

func explain(q binder.Question, file, dir string) (*binder.Explanation, error) {
	if file == "" {
		dir, err := mainDir(dir, defaultConfig)
		if err != nil {
			return nil, err
		}
		return binder.ExplainRunning(dir, q)
	}
	text, err := binder.ReadConfigFile(file)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Parse(file, text, config.DefaultsFor(os.Geteuid(), os.Getenv))
	if err != nil {
		return nil, err
	}
	if err := cfg.Override(dir, "", ""); err != nil {
		return nil, err
	}
	return binder.ExplainFile(cfg, q)
}
