package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"socketbox/internal/binder"
	"socketbox/internal/config"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Note    Level = "note"    // something is not there that only some need
	Warning Level = "warning" // it works, and worse than it could
	Problem Level = "problem" // something does not work
)

// Finding is one thing that was looked at.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	Cure  string `json:"cure,omitempty"` // a command, or what to do
	Fixed bool   `json:"fixed,omitempty"`
}

// Report is all that was looked at; the schema is docs/schema/doctor.json.
type Report struct {
	Version  int       `json:"version"`
	Problems int       `json:"problems"`
	Warnings int       `json:"warnings"`
	Findings []Finding `json:"findings"`
}

// Options are what the command line says.
type Options struct {
	Config string // the file, which need not be there
	Dir    string // "": as configured
	Fix    bool   // remove what dead instances left
}

// patient is what all checks look at.
type patient struct {
	Options
	cfg     *config.Config // nil: can't be read
	cfgErr  error
	dir     string         // main socket directory
	status  *binder.Status // nil: no instance answers
	account binder.Account
	found   []Finding
	check   string // that runs
}

// checks in the order of their findings.
var checks = []struct {
	name string
	run  func(*patient)
}{
	{"kernel", (*patient).kernel},
	{"sysctl", (*patient).sysctls},
	{"namespaces", (*patient).namespaces},
	{"selinux", (*patient).selinux},
	{"proc", (*patient).proc},
	{"user", (*patient).user},
	{"limits", (*patient).limits},
	{"config", (*patient).configuration},
	{"instance", (*patient).instance},
	{"guard", (*patient).guard},
	{"leftovers", (*patient).leftovers},
	{"port", (*patient).ports},
	{"directory", (*patient).directories},
	{"receiver", (*patient).receivers},
}

// Examine looks at everything.
func Examine(o Options) *Report {
	p := &patient{Options: o}
	p.prepare()
	r := &Report{Version: 1, Findings: []Finding{}}
	for _, c := range checks {
		p.check = c.name
		c.run(p)
	}
	for _, f := range p.found {
		switch {
		case f.Fixed:
		case f.Level == Problem:
			r.Problems++
		case f.Level == Warning:
			r.Warnings++
		}
		r.Findings = append(r.Findings, f)
	}
	return r
}

// prepare reads what several checks need.
func (p *patient) prepare() {
	defaults := config.DefaultsFor(os.Geteuid(), os.Getenv)
	text, err := binder.ReadConfigFile(p.Config)
	if err == nil {
		p.cfg, err = config.Parse(p.Config, text, defaults)
	}
	p.cfgErr = err
	p.dir = p.Dir
	if p.dir == "" && p.cfg != nil {
		p.dir = p.cfg.Dir
	}
	if p.dir == "" {
		p.dir = defaults.Dir
	}
	if p.dir != "" {
		p.status, _ = binder.FetchStatus(p.dir)
	}
	if p.cfg != nil {
		p.cfg.Dir = p.dir
	}
}

// say notes a finding of the check that runs.
func (p *patient) say(level Level, cure, format string, args ...any) *Finding {
	p.found = append(p.found, Finding{Check: p.check, Level: level, Text: fmt.Sprintf(format, args...), Cure: cure})
	return &p.found[len(p.found)-1]
}

// blame notes a problem that an error tells, with the error's hint; once, where
// several checks meet it.
func (p *patient) blame(level Level, cure string, err error) {
	for _, f := range p.found {
		if f.Text == err.Error() {
			return
		}
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		cure = h.Hint()
	}
	p.say(level, cure, "%v", err)
}

// Print writes the report as JSON, or for people: what is fine in one line each,
// what is not with its cure below.
func (r *Report) Print(out io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, f := range r.Findings {
		level := string(f.Level)
		if f.Fixed {
			level = "fixed"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", level, f.Check, strings.ReplaceAll(f.Text, "\n", "\n\t\t"))
		if f.Cure != "" && !f.Fixed {
			fmt.Fprintf(w, "\t\tcure: %s\n", strings.ReplaceAll(f.Cure, "\n", "\n\t\t      "))
		}
	}
	fmt.Fprintf(w, "\n%s, %s\n", count(r.Problems, "problem"), count(r.Warnings, "warning"))
	return w.Flush()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
