package binder

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"socketbox/internal/rule"
)

// Print writes the explanation for people.
func (e *Explanation) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "connection\tfrom %s to %s\n", orElse(e.From, "anywhere"), e.To)
	if l := e.Listener; l != nil {
		fmt.Fprintf(w, "listener\t%s\n", l.text())
	}
	for _, t := range e.Rules {
		fmt.Fprintf(w, "%s\t%s\n", t.name(), t.text())
	}
	if e.Listener != nil && e.Rule == 0 && e.Verdict != verdictLent {
		fmt.Fprintln(w, "no rule\ttakes it: it goes to the main socket directory")
	}
	if t := e.Target; t != nil {
		fmt.Fprintf(w, "target\t%s%s\n", t.text(), waitingText(t.Waiting))
		for _, c := range t.Candidates {
			fmt.Fprintf(w, "\t%s\n", c.text())
		}
	}
	fmt.Fprintf(w, "now\t%s\n", e.Outcome)
	return w.Flush()
}

func (l *ListenerChoice) text() string {
	text := l.Name
	if l.Address != l.Name {
		text += " (" + l.Address + ")"
	}
	switch {
	case l.NetNS != "" && l.Namespace != 0:
		text += fmt.Sprintf(" in namespace %s, net:[%d]", l.NetNS, l.Namespace)
	case l.NetNS != "":
		text += " in namespace " + l.NetNS
	case l.Namespace != 0:
		text += fmt.Sprintf(" in namespace net:[%d]", l.Namespace)
	}
	if len(l.Others) > 0 {
		text += "; before " + strings.Join(l.Others, ", ") + " (another is asked about by --listener)"
	}
	if l.Note != "" {
		text += "; " + l.Note
	}
	return text
}

func (t *Trial) name() string {
	if t.Place == "" {
		return fmt.Sprintf("rule %d", t.Number)
	}
	return fmt.Sprintf("rule %d (%s)", t.Number, t.Place)
}

func (t *Trial) text() string {
	if t.Taken {
		if len(t.Checks) == 0 {
			return "yes: it takes everything"
		}
		return "yes: " + joined(t.Checks, func(c rule.Check) string { return c.Key + " " + c.Want })
	}
	var misses []rule.Check
	for _, c := range t.Checks {
		if !c.OK {
			misses = append(misses, c)
		}
	}
	return "no: " + joined(misses, func(c rule.Check) string { return fmt.Sprintf("%s is %s, not %s", c.Key, c.Got, c.Want) })
}

func joined(checks []rule.Check, text func(rule.Check) string) string {
	var parts []string
	for _, c := range checks {
		parts = append(parts, text(c))
	}
	return strings.Join(parts, "; ")
}

func (t *TargetExplanation) text() string {
	if t.Name == t.Path {
		return t.Path
	}
	return t.Name + ", " + t.Path
}

func waitingText(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %d wait for it", n)
}

func (c *Candidate) text() string {
	name := filepath.Base(c.Path)
	if c.State == "no directory" {
		name = c.Path
	}
	text := name + ": " + c.State
	if c.Detail != "" {
		text += ", " + c.Detail
	}
	return text
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
