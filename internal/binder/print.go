package binder

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"socketbox/internal/config"
	"socketbox/internal/rule"
)

// PrintConfig prints what cfg would bind and dispatch.
func PrintConfig(out io.Writer, cfg *config.Config) error {
	table, destinations, err := cfg.Table()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "LISTENER\tADDRESS\tNETNS")
	for _, l := range cfg.Listeners {
		fmt.Fprintf(w, "%s\t%s\t%s\n", l.Name, l.Description.String(), orDash(l.NetNS))
	}
	fmt.Fprintln(w, "\nRULE\tLINE\tMATCHES\tTARGET")
	for i := range table.Rules {
		r := &table.Rules[i]
		target := "reject"
		if !r.Reject {
			target = targetPath(destinations[r.Target])
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\n", i+1, r.Line, matches(r, cfg), target)
	}
	fmt.Fprintf(w, "-\t-\teverything else\t%s\n", targetPath(destinations[0]))
	return w.Flush()
}

// matches shows the conditions of a rule in one cell.
func matches(r *rule.Rule, cfg *config.Config) string {
	var parts []string
	for _, c := range r.Checks(&rule.Conn{}, func(i int) string { return cfg.Listeners[i].Name }) {
		parts = append(parts, c.Key+" "+c.Want)
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, "; ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
