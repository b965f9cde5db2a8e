package binder

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"socketbox/internal/config"
	"socketbox/internal/dispatch"
	"socketbox/internal/rule"
)

// Explain prints what cfg would bind and dispatch.
func Explain(out io.Writer, cfg *config.Config) error {
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
	for _, i := range r.Listeners {
		parts = append(parts, "listener "+cfg.Listeners[i].Name)
	}
	for _, p := range r.Local {
		parts = append(parts, "local "+p.String())
	}
	for _, p := range r.Ports {
		parts = append(parts, "port "+portText(p))
	}
	for _, p := range r.Remote {
		parts = append(parts, "remote "+p.String())
	}
	if parts == nil {
		return "everything"
	}
	return strings.Join(parts, ", ")
}

func portText(p rule.PortRange) string {
	if p.First == p.Last {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Print writes the status for people.
func (s *Status) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "binder %d, dispatcher %d (restarted %d times), uid %d, up %s\n",
		s.PID, s.Dispatcher, s.Restarts, s.UID, time.Since(s.Since).Round(time.Second))
	fmt.Fprintf(w, "directory %s, configuration %s\n\n", s.Dir, orDash(s.Config))
	const counts = "ACCEPTED\tDELIVERED\tWAITING\tREJECTED\tFAILED\n"
	fmt.Fprint(w, "LISTENER\tADDRESS\t"+counts)
	for _, l := range s.Listeners {
		fmt.Fprintf(w, "%s\t%s\t%s\n", l.Name, l.Address, cells(l.Counts))
	}
	fmt.Fprint(w, "\nRULE\tTARGET\t"+counts)
	for _, r := range s.Rules {
		name := fmt.Sprintf("%d (line %d)", r.Number, r.Line)
		if r.Number == 0 {
			name = "none"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", name, r.Target, cells(r.Counts))
	}
	fmt.Fprint(w, "\nTARGET\tPATH\t"+counts)
	for _, t := range s.Targets {
		fmt.Fprintf(w, "%s\t%s\t%s\n", t.Name, t.Path, cells(t.Counts))
	}
	fmt.Fprintln(w, "\nRESOLVED PATH\tSTATE")
	for _, p := range s.Paths {
		fmt.Fprintf(w, "%s\t%s\n", p.Path, stateText(p))
	}
	return w.Flush()
}

func cells(c dispatch.Counts) string {
	return fmt.Sprintf("%d\t%d\t%d\t%d\t%d", c.Accepted, c.Delivered, c.Waiting, c.Rejected, c.Failed)
}

func stateText(p PathStatus) string {
	switch {
	case p.Live:
		return "live"
	case p.Wanted:
		return "absent, clients came for it"
	}
	return "absent"
}
