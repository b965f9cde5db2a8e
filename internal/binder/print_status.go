package binder

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"socketbox/internal/dispatch"
)

// Print writes the status for people.
func (s *Status) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "binder %d, dispatcher %d (restarted %d times), uid %d, up %s\n",
		s.PID, s.Dispatcher, s.Restarts, s.UID, time.Since(s.Since).Round(time.Second))
	fmt.Fprintf(w, "directory %s, configuration %s%s\n", s.Dir, orDash(s.Config), s.Reloads.text())
	fmt.Fprintf(w, "guard %s\n\n", s.guard())
	fmt.Fprintln(w, "PROCESS\tPID\tUID\tCAPABILITIES\tBOUNDING\tNO NEW PRIVS\tSECCOMP\tPROBLEM")
	for _, p := range s.Processes {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n", p.Role, p.PID, p.UID, capabilities(p.Effective), capabilities(p.Bounding),
			yesNo(p.NoNewPrivs), orDash(p.Seccomp), orDash(p.Problem))
	}
	const counts = "ACCEPTED\tDELIVERED\tHELD\tWAITING\tREJECTED\tFAILED"
	fmt.Fprintln(w, "\nLISTENER\tADDRESS\tNAMESPACE\tGUARDED\t"+counts)
	for _, l := range s.Listeners {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Name, l.Address, l.namespace(), yesNo(l.Guarded), cells(l.Counts))
	}
	s.printStates(w)
	fmt.Fprintln(w, "\nRULE\tMATCHES\tTARGET\t"+counts)
	for _, r := range s.Rules {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.name(), r.Matches, r.Target, cells(r.Counts))
	}
	printSessionCounts(w, s.Rules)
	s.printLimits(w)
	fmt.Fprintln(w, "\nTARGET\tPATH\tSTATE\t"+counts+"\tWHY")
	for _, t := range s.Targets {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.Name, t.Path, t.State, cells(t.Counts), why(t.Causes))
	}
	fmt.Fprintln(w, "\nRESOLVED PATH\tSTATE\tFOR")
	for _, p := range s.Paths {
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Path, p.state(), strings.Join(p.Targets, ", "))
	}
	return w.Flush()
}

// printSessionCounts shows the rules that limit sessions, if there are any.
func printSessionCounts(w io.Writer, rules []RuleStatus) {
	head := "\nRULE\tSESSIONS\tLIMIT\n"
	for _, r := range rules {
		if r.Sessions != nil {
			fmt.Fprintf(w, "%s%s\t%d\t%s\n", head, r.name(), r.Sessions.Live, r.Sessions.limit())
			head = ""
		}
	}
}

// printLimits shows the rates of listeners and rules, if there are any.
func (s *Status) printLimits(w io.Writer) {
	head := "\nLIMIT OF\tIS\n"
	line := func(of, limit string) {
		if limit != "" {
			fmt.Fprintf(w, "%s%s\t%s\n", head, of, limit)
			head = ""
		}
	}
	for _, l := range s.Listeners {
		line("listener "+l.Name, l.Limits)
	}
	for _, r := range s.Rules {
		line("rule "+r.name(), r.Limits)
	}
}

// name is a rule as messages have it: "rule 2 (socketbox.toml:14)" without the
// first word.
func (r *RuleStatus) name() string {
	switch {
	case r.Number == 0:
		return "none"
	case r.Place == "":
		return fmt.Sprint(r.Number)
	}
	return fmt.Sprintf("%d (%s)", r.Number, r.Place)
}

func (l *ListenerStatus) namespace() string {
	inode := "unknown"
	if l.Namespace != 0 {
		inode = fmt.Sprintf("net:[%d]", l.Namespace)
	}
	if l.Description.NetNS != "" {
		return l.Description.NetNS + " " + inode
	}
	return inode
}

func (r Reloads) text() string {
	switch {
	case r.Last == nil:
		return ""
	case r.Error != "":
		return fmt.Sprintf(", last reload failed %s ago: %s", time.Since(*r.Last).Round(time.Second), strings.ReplaceAll(r.Error, "\n", "; "))
	}
	return fmt.Sprintf(", reloaded %s ago", time.Since(*r.Last).Round(time.Second))
}

func capabilities(set string) string {
	switch set {
	case "0":
		return "none"
	case "":
		return "-"
	}
	return set
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

func cells(c dispatch.Counts) string {
	return fmt.Sprintf("%d\t%d\t%d\t%d\t%d\t%d", c.Accepted, c.Delivered, c.Held, c.Waiting, c.Rejected, c.Failed)
}

// why shows causes, the most frequent first.
func why(causes map[string]uint64) string {
	names := slices.SortedFunc(maps.Keys(causes), func(a, b string) int {
		return cmp.Or(cmp.Compare(causes[b], causes[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%d %s", causes[name], name))
	}
	return orDash(strings.Join(parts, ", "))
}

func (p *PathStatus) state() string {
	switch {
	case p.Live:
		return "live"
	case p.Wanted:
		return "absent, clients came for it"
	}
	return "absent"
}
