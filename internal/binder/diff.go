package binder

import (
	"cmp"
	"fmt"
	"io"
	"os"

	"socketbox/internal/config"
	"socketbox/internal/rule"
)

// Diff is what a reload would change; the schema is docs/schema/diff.json.
type Diff struct {
	Version   int           `json:"version"`
	Config    string        `json:"config"`
	Restart   []string      `json:"restart"` // what only a restart can change: the reload would be refused
	Listeners ListenersDiff `json:"listeners"`
	Rules     []Change      `json:"rules"`
	Targets   []Change      `json:"targets"`
	Other     bool          `json:"other"` // nothing of that, but the text is another: comments, or keys that are not shown
}

// ListenersDiff tells listeners that stay, untouched, from those that come and
// go, each as "name (address)".
type ListenersDiff struct {
	Kept    []string `json:"kept"`
	Added   []string `json:"added"`
	Dropped []string `json:"dropped"`
	Renamed []string `json:"renamed"` // kept, with another name
	Changed []string `json:"changed"` // kept, with other limits
}

// Change is a line that comes ("+") or goes ("-").
type Change struct {
	Sign   string `json:"sign"`
	Number int    `json:"number,omitempty"` // of the rule, in its own configuration
	Place  string `json:"place,omitempty"`
	Text   string `json:"text"`
}

// Empty says whether the reload would change nothing.
func (d *Diff) Empty() bool {
	l := d.Listeners
	return len(d.Restart)+len(l.Added)+len(l.Dropped)+len(l.Renamed)+len(l.Changed)+len(d.Rules)+len(d.Targets) == 0 && !d.Other
}

// Compare returns what Reload of the same arguments would change. It changes
// nothing.
func Compare(dir, path string) (*Diff, error) {
	text, err := ReadConfigFile(path)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Parse(path, text, config.DefaultsFor(os.Geteuid(), os.Getenv))
	if err != nil {
		return nil, err
	}
	st, err := FetchStatus(dir)
	if err != nil {
		return nil, err
	}
	if err := st.mustBeOf(path); err != nil {
		return nil, err
	}
	return st.compare(cfg)
}

func (s *Status) compare(cfg *config.Config) (*Diff, error) {
	for _, key := range s.Flags {
		switch key {
		case "dir":
			cfg.Dir = s.Dir
		case "user":
			cfg.User = s.User
		case "guard":
			cfg.Guard = s.Guard
		}
	}
	table, destinations, err := cfg.Table()
	if err != nil {
		return nil, err
	}
	d := &Diff{Version: 1, Config: cfg.Path, Restart: s.needsRestart(cfg), Listeners: s.compareListeners(cfg)}
	d.Rules = changes(s.Rules[1:], ruleTexts(cfg, table), func(r RuleStatus) Change {
		text := r.Matches + " → " + r.Target
		if r.Limits != "" {
			text += ", " + r.Limits
		}
		return Change{Number: r.Number, Place: r.Place, Text: text}
	})
	var next []TargetStatus
	for i, t := range table.Targets {
		next = append(next, TargetStatus{Name: t.Name, Path: targetPath(destinations[i]), Balance: balanceOf(t), Limits: limitsOf(t)})
	}
	d.Targets = changes(s.Targets, next, func(t TargetStatus) Change { return Change{Text: t.describe()} })
	d.Other = d.Empty() && s.ConfigSum != cfg.Sum
	return d, nil
}

// describe is all that a configuration says of a target.
func (t TargetStatus) describe() string {
	text := t.Name
	if t.Path != t.Name {
		text += " at " + t.Path
	}
	if t.Balance != "" {
		text += ", " + t.Balance
	}
	return fmt.Sprintf("%s, hold %d connections, %s, busy %s", text, t.Limits.Connections, t.Limits.Time, t.Limits.Busy)
}

// balanceOf is how a target chooses among several sockets, "" if it has one.
func balanceOf(t rule.Target) string {
	if !t.Balanced() {
		return ""
	}
	return t.Balance.String()
}

func limitsOf(t rule.Target) Limits {
	return Limits{t.Hold.Connections, t.Hold.Time.String(), t.Hold.Busy.String()}
}

// needsRestart names the keys that a reload refuses to change.
func (s *Status) needsRestart(cfg *config.Config) []string {
	found := []string{}
	for _, k := range []struct{ key, old, new string }{{"user", s.User, cfg.User}, {"dir", s.Dir, cfg.Dir}, {"guard", s.Guard, cfg.Guard}} {
		if k.old != k.new {
			found = append(found, fmt.Sprintf("%s changes from %q to %q", k.key, k.old, k.new))
		}
	}
	return found
}

func (s *Status) compareListeners(cfg *config.Config) ListenersDiff {
	d := ListenersDiff{Kept: []string{}, Added: []string{}, Dropped: []string{}, Renamed: []string{}, Changed: []string{}}
	used := map[int]bool{}
	for i := range cfg.Listeners {
		next := cfg.Listeners[i].Description
		k := s.find(next, used)
		name := fmt.Sprintf("%s (%s)", next.Name, next.String())
		switch {
		case k < 0:
			d.Added = append(d.Added, name)
			continue
		case s.Listeners[k].Name != next.Name:
			d.Renamed = append(d.Renamed, s.Listeners[k].Name+" is now "+next.Name)
		}
		if was, is := s.Listeners[k].Limits, cfg.Listeners[i].Limit.String(); was != is {
			d.Changed = append(d.Changed, name+": "+cmp.Or(is, "no limit"))
		}
		used[k] = true
		d.Kept = append(d.Kept, name)
	}
	for i, l := range s.Listeners {
		if !used[i] {
			d.Dropped = append(d.Dropped, fmt.Sprintf("%s (%s)", l.Name, l.Address))
		}
	}
	return d
}

// changes returns the lines that come and go, in order.
func changes[T any](old, next []T, line func(T) Change) []Change {
	found := []Change{}
	var before, after []Change
	for _, x := range old {
		before = append(before, line(x))
	}
	for _, x := range next {
		after = append(after, line(x))
	}
	same := func(i, j int) bool { return before[i].Text == after[j].Text }
	lo := 0
	for lo < len(before) && lo < len(after) && same(lo, lo) {
		lo++
	}
	i, j := len(before), len(after)
	for i > lo && j > lo && same(i-1, j-1) {
		i, j = i-1, j-1
	}
	for _, c := range align(before[lo:i], after[lo:j]) {
		if c.Sign != "" {
			found = append(found, c)
		}
	}
	return found
}

// maxAlign bounds the table that the longest common subsequence takes; beyond
// it everything between the common ends is shown as replaced.
const maxAlign = 4 << 20

// align merges two lists by their longest common subsequence; what both have
// comes without a sign.
func align(before, after []Change) []Change {
	n, m := len(before), len(after)
	var merged []Change
	add := func(c Change, sign string) {
		c.Sign = sign
		merged = append(merged, c)
	}
	var length [][]int32
	if n*m <= maxAlign {
		length = commonLengths(before, after)
	}
	i, j := 0, 0
	for length != nil && i < n && j < m {
		switch {
		case before[i].Text == after[j].Text:
			add(after[j], "")
			i, j = i+1, j+1
		case length[i+1][j] >= length[i][j+1]:
			add(before[i], "-")
			i++
		default:
			add(after[j], "+")
			j++
		}
	}
	for ; i < n; i++ {
		add(before[i], "-")
	}
	for ; j < m; j++ {
		add(after[j], "+")
	}
	return merged
}

// commonLengths[i][j] is the length of the longest common subsequence of
// before[i:] and after[j:].
func commonLengths(before, after []Change) [][]int32 {
	n, m := len(before), len(after)
	length := make([][]int32, n+1)
	for i := range length {
		length[i] = make([]int32, m+1)
	}
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if before[i].Text == after[j].Text {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	return length
}

// Print writes the difference for people.
func (d *Diff) Print(out io.Writer) error {
	w := &writer{out: out}
	for _, r := range d.Restart {
		w.printf("! needs a restart: %s\n", r)
	}
	l := d.Listeners
	for _, part := range []struct {
		sign  string
		names []string
	}{{"  listener kept     ", l.Kept}, {"~ listener renamed  ", l.Renamed}, {"~ listener changed  ", l.Changed}, {"+ listener added    ", l.Added}, {"- listener dropped  ", l.Dropped}} {
		for _, name := range part.names {
			w.printf("%s%s\n", part.sign, name)
		}
	}
	for _, c := range d.Rules {
		r := RuleStatus{Number: c.Number, Place: c.Place}
		w.printf("%s rule %s: %s\n", c.Sign, r.name(), c.Text)
	}
	for _, c := range d.Targets {
		w.printf("%s target %s\n", c.Sign, c.Text)
	}
	if d.Other {
		w.printf("  the text is another, in comments or in keys that are not shown here\n")
	}
	if d.Empty() {
		w.printf("nothing changes\n")
	}
	return w.err
}

// writer keeps the first error of several writes.
type writer struct {
	out io.Writer
	err error
}

func (w *writer) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}
