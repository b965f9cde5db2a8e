package binder

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"socketbox/internal/config"
	"socketbox/internal/rule"
)

// PrintConfig prints what cfg would bind and dispatch; it reads the files of its
// tables.
func PrintConfig(out io.Writer, cfg *config.Config) error {
	maps, err := readTables(cfg)
	if err != nil {
		return err
	}
	releaseAll(maps)
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
		target := ruleTarget(table, r)
		if !r.Reject && r.Map == 0 {
			target = targetPath(destinations[r.Target])
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\n", i+1, r.Line, matches(r, cfg), target)
	}
	fmt.Fprintf(w, "-\t-\teverything else\t%s\n", targetPath(destinations[0]))
	if len(cfg.Tables) > 0 {
		fmt.Fprintln(w, "\nTABLE\tFILE\tENTRIES\tPATHS")
	}
	for i := range cfg.Tables {
		t := &cfg.Tables[i]
		if t.Content != nil {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\n", t.Name, cfg.TableFile(t), t.Content.Entries, t.Content.Paths.Len())
		}
	}
	if len(cfg.Notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range cfg.Notes {
		fmt.Fprintln(w, "note: "+n)
	}
	return w.Flush()
}

// matches shows the conditions of a rule in one cell.
func matches(r *rule.Rule, cfg *config.Config) string {
	var parts []string
	for _, c := range r.Checks(&rule.Conn{}, func(i int) string { return cfg.Listeners[i].Name }) {
		parts = append(parts, c.Key+" "+c.Want)
	}
	if r.Map > 0 {
		parts = append(parts, "an entry of the table")
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
