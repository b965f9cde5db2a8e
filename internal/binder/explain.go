package binder

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/handoff"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// Question is a connection that somebody asks about.
type Question struct {
	From     netip.Addr     `json:"from"` // invalid: not said
	FromPort uint16         `json:"from_port,omitempty"`
	To       netip.AddrPort `json:"to"`
	Unix     string         `json:"unix,omitempty"`     // path of a Unix listener, instead of To
	Listener string         `json:"listener,omitempty"` // by name, where several would take it
}

// Explanation says what becomes of a connection, and why; the schema is
// docs/schema/explain.json.
type Explanation struct {
	Version  int                `json:"version"`
	From     string             `json:"from,omitempty"`
	To       string             `json:"to"`
	Running  bool               `json:"running"`            // the table in force, not a file
	Listener *ListenerChoice    `json:"listener,omitempty"` // nil: nobody listens there
	Rules    []Trial            `json:"rules"`              // tried, in order
	Rule     int                `json:"rule"`               // number of the one that takes it; 0: none
	Target   *TargetExplanation `json:"target,omitempty"`   // nil: rejected, or nobody listens
	Verdict  string             `json:"verdict"`            // "delivered", "held", "reset", "rejected", "lent", "refused"
	Outcome  string             `json:"outcome"`            // the same as a sentence
}

// ListenerChoice is the listener that a connection would come to.
type ListenerChoice struct {
	Name      string   `json:"name"`
	Address   string   `json:"address"`
	NetNS     string   `json:"netns,omitempty"`
	Namespace uint64   `json:"namespace,omitempty"` // inode
	Others    []string `json:"others,omitempty"`    // listeners that would take it, too
	State     string   `json:"state,omitempty"`     // what a running binder does with it: "connection", "lent", "undecided"
	Note      string   `json:"note,omitempty"`      // why it is in that state, since when
}

// Trial is one rule that was tried.
type Trial struct {
	Number int          `json:"number"`
	Place  string       `json:"place,omitempty"` // socketbox.toml:14
	Taken  bool         `json:"taken"`
	Checks []rule.Check `json:"checks"` // no key at all: none
}

// TargetExplanation is where a connection goes.
type TargetExplanation struct {
	Name       string      `json:"name"`
	Path       string      `json:"path"`              // as configured
	Waiting    uint64      `json:"waiting,omitempty"` // connections on hold for it now
	Candidates []Candidate `json:"candidates"`        // in the order in which they are looked at
}

// Candidate is a path that may receive, and its state now.
type Candidate struct {
	Path   string `json:"path"`
	State  string `json:"state"` // "live", "dead", "missing", "denied", "no directory", "not looked at"
	Detail string `json:"detail,omitempty"`
	Chosen bool   `json:"chosen"`
}

// Verdicts.
const (
	verdictDelivered = "delivered"
	verdictHeld      = "held"
	verdictReset     = "reset"
	verdictRejected  = "rejected"
	verdictLent      = "lent"
	verdictRefused   = "refused"
)

// ExplainFile answers q for a configuration that is not in force: what a binder
// that is started with it would do, as the caller sees the receivers.
func ExplainFile(cfg *config.Config, q Question) (*Explanation, error) {
	maps, err := readTables(cfg)
	if err != nil {
		return nil, err
	}
	defer releaseAll(maps)
	table, destinations, err := cfg.Table()
	if err != nil {
		return nil, err
	}
	return explain(cfg, table, destinations, maps, q)
}

// ExplainRunning answers q for the table that the instance of dir has in
// force.
func ExplainRunning(dir string, q Question) (*Explanation, error) {
	s, err := dial(dir)
	if err != nil {
		return nil, err
	}
	defer s.file.Close()
	fds, err := s.askFor(1, request{Op: "explain", Question: &q})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fds[0])
	e := &Explanation{}
	return e, readJSON(fds[0], e)
}

// explain answers q for the table in force.
func (b *binder) explain(q Question) (*Explanation, error) {
	t := b.active
	e, err := explain(t.cfg, t.plan.Table, t.destinations, t.maps, q)
	if err != nil {
		return nil, err
	}
	e.Running = true
	for _, l := range t.listeners {
		if e.Listener != nil && l.description.Name == e.Listener.Name {
			e.Listener.Namespace = l.namespace
			e.explainState(l.standing)
		}
	}
	for i, target := range t.plan.Table.Targets {
		if e.Target != nil && target.Name == e.Target.Name {
			e.Target.Waiting = t.counters.Target(i).Snapshot().Waiting
		}
	}
	return e, nil
}

func explain(cfg *config.Config, table *rule.Table, ds []config.Destination, maps []*mapFile, q Question) (*Explanation, error) {
	e := &Explanation{Version: 1, Rules: []Trial{}, To: q.To.String()}
	if q.Unix != "" {
		e.To = "unix:" + q.Unix
	}
	if q.From.IsValid() {
		e.From = q.From.String()
		if q.FromPort != 0 {
			e.From = netip.AddrPortFrom(q.From, q.FromPort).String()
		}
	}
	index, err := e.chooseListener(cfg.Listeners, q)
	if err != nil || index < 0 {
		return e, err
	}
	if v := verdictOn(cfg, index); v.state == Lent {
		e.Listener.State, e.Listener.Note = string(v.state), string(v.state)+": "+v.why
		e.Verdict, e.Outcome = verdictLent, "it is accepted by whoever borrows the listener"
		return e, nil
	}
	conn := rule.Conn{Listener: index, Port: q.To.Port(), Local: q.To.Addr().Unmap().WithZone(""), Remote: q.From.Unmap().WithZone("")}
	target, place, err := e.try(cfg, table, maps, &conn)
	if err != nil {
		return nil, err
	}
	if target < 0 {
		e.Verdict, e.Outcome = verdictRejected, "it is reset: the rule says reject"
		return e, nil
	}
	facts := rule.Facts{
		Listener: cfg.Listeners[index].Name, Port: conn.Port, Local: conn.Local, Remote: conn.Remote, Family: rule.FamilyOf(conn.Local),
	}
	e.Target = &TargetExplanation{Name: table.Targets[target].Name, Path: targetPath(ds[target])}
	if ds[target].Paths != nil {
		e.Target.Path = ds[target].Paths.At(place).String()
	}
	e.probe(ds[target], place, facts, table.Targets[target].Hold)
	return e, nil
}

// try goes through the rules up to the one that takes conn, and returns its
// target, -1 for reject, and which path of a table that is.
func (e *Explanation) try(cfg *config.Config, table *rule.Table, maps []*mapFile, conn *rule.Conn) (target, place int, err error) {
	name := func(i int) string { return cfg.Listeners[i].Name }
	for i := range table.Rules {
		r := &table.Rules[i]
		t := Trial{Number: i + 1, Place: placeOf(cfg, r.Line), Checks: r.Checks(conn, name), Taken: true}
		for _, c := range t.Checks {
			t.Taken = t.Taken && c.OK
		}
		target, place := r.Target, 0
		if r.Reject {
			target = -1
		}
		if r.Map > 0 {
			var c rule.Check
			c, target, place, err = maps[r.Map-1].try(table, r.Map-1, conn)
			if err != nil {
				return 0, 0, err
			}
			t.Checks = append(t.Checks, c)
			t.Taken = t.Taken && c.OK
		}
		e.Rules = append(e.Rules, t)
		if !t.Taken {
			continue
		}
		e.Rule = t.Number
		return target, place, nil
	}
	return 0, 0, nil
}

// try looks conn up in the table's map i.
func (m *mapFile) try(table *rule.Table, i int, conn *rule.Conn) (c rule.Check, target, place int, err error) {
	info := table.Maps[i]
	c = rule.Check{Key: "table", Want: info.Name, Got: "no entry"}
	encoded, unmap, err := privsep.MapSealed(m.fd, rule.MaxEncodedMap)
	if err != nil {
		return c, 0, 0, err
	}
	defer unmap()
	entry, ok, err := rule.SearchMap(encoded, conn.Local, conn.Port)
	if err != nil || !ok {
		return c, 0, 0, err
	}
	c.OK, c.Got = true, rule.PrefixText(entry.Prefix())
	if entry.Port() != 0 {
		c.Got += fmt.Sprintf(" port %d", entry.Port())
	}
	c.Want += ": " + c.Got
	if place, isPath := entry.To().Path(); isPath {
		return c, info.Target, place, nil
	}
	if target, ok = entry.To().Target(); !ok {
		target = -1
	}
	return c, target, 0, nil
}

// chooseListener finds the listener that the kernel would give the connection
// to: one bound to the address before one bound to all. -1: nobody listens.
func (e *Explanation) chooseListener(listeners []config.Listener, q Question) (int, error) {
	best, found := 0, -1
	var others []string
	for i := range listeners {
		l := &listeners[i]
		if q.Listener != "" && l.Name != q.Listener {
			continue
		}
		n := takes(l.Description, q)
		if n == 0 {
			continue
		}
		if n > best {
			best, found = n, i
		}
		others = append(others, l.Name)
	}
	if found < 0 {
		return -1, e.nobody(listeners, q)
	}
	l := &listeners[found]
	e.Listener = &ListenerChoice{Name: l.Name, Address: l.Description.String(), NetNS: l.NetNS}
	e.Listener.Others = slices.DeleteFunc(others, func(name string) bool { return name == l.Name })
	return found, nil
}

func (e *Explanation) nobody(listeners []config.Listener, q Question) error {
	if q.Listener != "" && !slices.ContainsFunc(listeners, func(l config.Listener) bool { return l.Name == q.Listener }) {
		return withHint(fmt.Errorf("no listener is named %q", q.Listener), "`socketbox status` names them")
	}
	e.Verdict, e.Outcome = verdictRefused, "no listener takes "+e.To+": the kernel refuses it, or another program has it"
	return nil
}

// takes says how well a listener fits the address dialled: 0 not at all, more
// is better, as in the kernel's own choice.
func takes(d listen.Description, q Question) int {
	if q.Unix != "" {
		if d.Network == listen.Unix && d.Path == q.Unix {
			return 1
		}
		return 0
	}
	to := q.To.Addr().Unmap().WithZone("")
	if d.Network != listen.TCP || !to.IsValid() {
		return 0
	}
	if d.Steered() { // the kernel asks these before all others
		if d.Prefix.Contains(to) && d.First <= q.To.Port() && q.To.Port() <= d.Last {
			return 5
		}
		return 0
	}
	here := !d.Address.IsValid() || d.Address.IsUnspecified() && (d.Both || d.Address.Unmap().Is4() == to.Is4())
	exact := d.Address.Unmap() == to
	switch {
	case d.Port != 0 && d.Port == q.To.Port() && exact:
		return 4
	case d.Port != 0 && d.Port == q.To.Port() && here:
		if d.Both {
			return 2
		}
		return 3
	case d.Transparent: // TPROXY brings any address and port of the family
		return 1
	}
	return 0
}

// probe looks at the paths of a target, as the binder would.
func (e *Explanation) probe(d config.Destination, place int, facts rule.Facts, hold rule.Hold) {
	t := e.Target
	t.Candidates = []Candidate{}
	var dead *Candidate
	live := map[int]string{} // paths by place
	templates := d.Sockets
	if d.Paths != nil {
		templates = []rule.Template{d.Paths.At(place)}
	}
	for i, template := range templates {
		dir, paths := expandPaths(template, facts)
		if !isDirectory(dir) {
			t.Candidates = append(t.Candidates, Candidate{Path: dir + "/", State: "no directory"})
			continue
		}
		found := probePlace(paths)
		t.Candidates = append(t.Candidates, found...)
		for _, c := range found {
			if !c.Chosen {
				continue
			}
			if c.State == "live" {
				live[i] = c.Path
			} else if dead == nil {
				dead = &c
			}
		}
	}
	if len(live) == 0 {
		e.undelivered(dead, hold)
		return
	}
	e.Verdict, e.Outcome = verdictDelivered, "it is delivered to "+e.balance(d.Balance, live, facts.Remote)
}

// probePlace looks at the paths of one socket or socket directory, up to the
// first that anything is at, which is the chosen one.
func probePlace(paths []string) []Candidate {
	var all []Candidate
	found := false
	for _, path := range paths {
		c := Candidate{Path: path, State: "not looked at"}
		if !found {
			c.State, c.Detail = probe(path)
			found = c.State != "missing"
			c.Chosen = found
		}
		all = append(all, c)
	}
	return all
}

// balance marks as chosen the one of several live places that takes a
// connection, and says which that is.
func (e *Explanation) balance(b rule.Balance, live map[int]string, client netip.Addr) string {
	places := slices.Sorted(maps.Keys(live))
	best := places[0]
	switch {
	case len(places) == 1:
	case b == rule.RoundRobin:
		return fmt.Sprintf("one of %d receivers in turn (round-robin)", len(places))
	case b == rule.SourceHash && !client.IsValid():
		return fmt.Sprintf("one of %d receivers, by its address (source-hash)", len(places))
	case b == rule.SourceHash:
		for _, i := range places {
			if rule.HashWeight(client, i) > rule.HashWeight(client, best) {
				best = i
			}
		}
	}
	for i := range e.Target.Candidates {
		c := &e.Target.Candidates[i]
		c.Chosen = c.Path == live[best]
	}
	return live[best]
}

// undelivered says what becomes of a connection that nobody receives now.
func (e *Explanation) undelivered(dead *Candidate, hold rule.Hold) {
	how := fmt.Sprintf("it is held for up to %v (hold.time), then reset; so are all that come until somebody receives again", hold.Time)
	if hold.Connections == 0 {
		how = "it is reset: hold.connections is 0"
	}
	e.Verdict = verdictHeld
	if hold.Connections == 0 {
		e.Verdict = verdictReset
	}
	switch {
	case dead != nil && dead.State == "denied":
		e.Outcome = "the receiver at " + dead.Path + " can't be reached (" + dead.Detail + "): " + how
	case dead != nil:
		e.Outcome = "nobody receives at " + dead.Path + ", its daemon restarts or has died: " + how
	case slices.ContainsFunc(e.Target.Candidates, func(c Candidate) bool { return c.State == "missing" }):
		e.Outcome = "no receiver has made its socket yet: " + how
	default:
		e.Verdict, e.Outcome = verdictReset, "it is reset: the socket directory does not exist"
	}
}

// expandPaths returns the directory that must exist for a connection, and the
// paths of the sockets that may take it, best first.
func expandPaths(template rule.Template, facts rule.Facts) (dir string, paths []string) {
	path := template.Expand(facts)
	if !template.IsDir() {
		return filepath.Dir(path), []string{path}
	}
	dir = filepath.Clean(path)
	return dir, rule.Candidates(dir, facts.Port, facts.Family)
}

// probe looks whether somebody receives at path. Connecting a datagram socket
// tells, and sends nothing.
func probe(path string) (state, detail string) {
	if _, err := identityOf(path); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return "missing", ""
		}
		return "denied", err.Error()
	}
	fd, err := handoff.Connect(path)
	switch {
	case err == nil:
		unix.Close(fd)
		return "live", ""
	case errors.Is(err, unix.ECONNREFUSED):
		return "dead", "a socket file that nobody receives on"
	}
	var why *accessError
	if errors.As(mayAccess(path, os.Geteuid(), os.Getegid(), 2), &why) {
		return "denied", why.Error() + "; " + why.Hint()
	}
	return "denied", strings.TrimPrefix(err.Error(), path+": ")
}
