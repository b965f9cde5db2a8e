package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

// Config is a whole configuration.
type Config struct {
	Path      string // of the file, "" if flags stand for it
	Sum       string // SHA-256 of the file, hexadecimal
	User      string // whom binder and dispatcher run as
	Dir       string // main socket directory, without the slash; "" if unknown
	Guard     string // GuardAuto, GuardRequired or GuardOff
	HoldTotal int    // connections held for all targets; 0: half of RLIMIT_NOFILE
	Listeners []Listener
	Rules     []rule.Rule // they index Listeners and Targets
	Targets   []Target    // the first is the main socket directory
	Tables    []Table     // that rules may point to
	Notes     []string    // what to know of it, for people
}

// Values of guard.
const (
	GuardAuto     = "auto"     // where it can be had; one line says that it can't
	GuardRequired = "required" // no start without it, no listener from outside it
	GuardOff      = "off"
)

var guards = []string{GuardAuto, GuardRequired, GuardOff}

// Values of a listener's handoff.
const (
	HandoffAuto       = "auto"
	HandoffConnection = "connection"
	HandoffListener   = "listener"
)

// Listener is a listener and what becomes of its connections.
type Listener struct {
	listen.Description
	Handoff string // HandoffAuto, HandoffConnection or HandoffListener
	Line    int    // in the file, 0 if there is none
	Lend    Lend
	Limit   rule.Limit // of all its connections
}

// Target is where connections go. The main socket directory's own Sockets are
// empty: Dir says where it is, and flags may still move that; so are those of
// the paths in a table, which are in its content.
type Target struct {
	Name    string // "main", a name, or the path of a rule that names one
	Sockets []rule.Template
	Balance rule.Balance // where there are several
	Hold    rule.Hold
	Line    int // in the file, 0 if there is none
}

// Targets that need no table of their own; their names are reserved.
const (
	mainTarget   = "main"   // the main socket directory, the first target
	rejectTarget = "reject" // reset the connection
)

// Destination is what the binder needs to know of a target: where it is.
type Destination struct {
	Name    string
	Sockets []rule.Template
	Balance rule.Balance // where there are several
	Paths   *rule.Paths  // instead: of a table
}

// Place returns path i of those to choose from; not ok if there are fewer.
func (d *Destination) Place(i int) (t rule.Template, ok bool) {
	switch {
	case i < 0:
	case d.Paths != nil && i < d.Paths.Len():
		return d.Paths.At(i), true
	case d.Paths == nil && i < len(d.Sockets):
		return d.Sockets[i], true
	}
	return t, false
}

// Defaults are the values of keys that a file leaves out and that depend on
// who runs the program.
type Defaults struct {
	Dir  string // "" if there is none: Table fails then, unless Dir is set
	User string
}

// DefaultsFor returns the default directory of a program that runs as uid.
// User is the caller's to fill in, since it takes a look at the user database.
func DefaultsFor(uid int, getenv func(string) string) Defaults {
	if uid == 0 {
		return Defaults{Dir: "/run/socketbox"}
	}
	if run := getenv("XDG_RUNTIME_DIR"); strings.HasPrefix(run, "/") {
		return Defaults{Dir: strings.TrimRight(run, "/") + "/socketbox"}
	}
	return Defaults{}
}

// Override sets what flags say of dir, user and guard; "" leaves them as they
// are.
func (c *Config) Override(dir, user, guard string) error {
	var errs []error
	if dir != "" {
		clean, err := checkDir(dir)
		if err != nil {
			errs = append(errs, &Error{Where: "--dir", Err: err})
		}
		c.Dir = clean
	}
	if user != "" {
		if err := checkUser(user); err != nil {
			errs = append(errs, &Error{Where: "--user", Err: err})
		}
		c.User = user
	}
	if guard != "" {
		if !slices.Contains(guards, guard) {
			errs = append(errs, &Error{Where: "--guard", Err: fmt.Errorf("%q: expected %s", guard, quoted(guards))})
		}
		c.Guard = guard
	}
	return errors.Join(errs...)
}

// Descriptions returns what to bind, in the order of Listeners.
func (c *Config) Descriptions() []listen.Description {
	ds := make([]listen.Description, len(c.Listeners))
	for i := range c.Listeners {
		ds[i] = c.Listeners[i].Description
	}
	return ds
}

// Table returns the rules as the dispatcher takes them and the destinations of
// their targets, in the order of Table.Targets, as the binder needs them. A
// table whose content has not been loaded counts as empty.
func (c *Config) Table() (*rule.Table, []Destination, error) {
	if c.Dir == "" {
		return nil, nil, &Error{
			Where: "main socket directory",
			Err:   errors.New("unknown, since XDG_RUNTIME_DIR is not set"),
			hint:  "name it with --dir, SOCKETBOX_DIR or the key dir",
		}
	}
	home, err := rule.ParseTemplate(c.Dir + "/")
	if err != nil {
		return nil, nil, fmt.Errorf("main socket directory: %w", err)
	}
	t := &rule.Table{Rules: c.Rules}
	var ds []Destination
	for i, target := range c.Targets {
		sockets := target.Sockets
		if i == 0 {
			sockets = []rule.Template{home}
		}
		var keys rule.Keys
		for _, s := range sockets {
			keys |= s.Keys()
		}
		t.Targets = append(t.Targets, rule.Target{Name: target.Name, Keys: keys, Hold: target.Hold, Places: len(sockets), Balance: target.Balance})
		ds = append(ds, Destination{Name: target.Name, Sockets: sockets, Balance: target.Balance})
	}
	for _, table := range c.Tables {
		t.Maps = append(t.Maps, rule.MapInfo{Name: table.Name, Target: table.Target})
		ds[table.Target].Paths, t.Targets[table.Target].Balance = &rule.Paths{}, rule.ByMap
		if table.Content != nil {
			paths := table.Content.Paths
			ds[table.Target].Paths = paths
			t.Targets[table.Target].Keys, t.Targets[table.Target].Places = paths.Keys(), paths.Len()
		}
	}
	if err := t.Check(); err != nil {
		return nil, nil, fmt.Errorf("rule table: %w", err)
	}
	return t, ds, nil
}
