package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

// Bounds of values. Each is beyond use and keeps sums from overflowing.
const (
	maxHoldConnections = 1 << 20                       // more descriptors than a process may have (fs.nr_open)
	maxHoldTime        = 24 * time.Hour                // longer than any client waits
	maxUser            = 256                           // useradd(8) allows 256 bytes
	maxDir             = 107 - len("/65535.ipv4.sock") // a socket in it must fit sun_path, unix(7)
)

// defaultHold is the hold of a target where the file says nothing.
var defaultHold = rule.Hold{Connections: 1024, Time: 30 * time.Second}

// Parse reads the text of a file; path is for messages. Every error is one
// *Error with its line and column; all that are found are joined, in the order
// of the file. An error in the TOML itself comes alone.
func Parse(path string, text []byte, defaults Defaults) (*Config, error) {
	doc, err := readDocument(path, text)
	if err != nil {
		return nil, err
	}
	p := &parser{
		config:  &Config{Path: path, Sum: fmt.Sprintf("%x", sha256.Sum256(text)), User: defaults.User, Dir: defaults.Dir},
		targets: map[string]int{}, tables: map[string]int{}, ranges: map[string]int{},
	}
	top := doc.top()
	p.readTop(top)
	p.readTargets(top)
	p.readTables(top)
	listeners := p.readListeners(top)
	p.readRules(top, listeners)
	top.refuseRest()
	if len(doc.errs) > 0 {
		return nil, join(doc.errs)
	}
	return p.config, nil
}

// parser builds a configuration.
type parser struct {
	config  *Config
	hold    rule.Hold      // of targets that have none of their own
	targets map[string]int // index by name or path
	tables  map[string]int // index by name
	ranges  map[string]int // how many listeners a name stands for, where that is not one
}

// readTop reads the keys that stand alone, and makes the main target.
func (p *parser) readTop(top *section) {
	c := p.config
	if user, v, ok := top.text("user"); ok {
		if err := checkUser(user); err != nil {
			v.fail("%w", err)
		}
		c.User = user
	}
	if dir, v, ok := top.text("dir"); ok {
		clean, err := checkDir(dir)
		if err != nil {
			v.fail("%w", err)
		}
		c.Dir = clean
	}
	c.Guard = top.choice("guard", GuardAuto, guards)
	c.HoldTotal = top.integer("hold_total", 0, 0, maxHoldConnections)
	p.hold = readHold(top, defaultHold)
	c.Targets = []Target{{Name: mainTarget, Hold: p.hold}}
}

// readHold reads the key hold; what it leaves out is as in absent.
func readHold(s *section, absent rule.Hold) rule.Hold {
	h, ok := s.section("hold", "hold")
	if !ok {
		return absent
	}
	hold := rule.Hold{
		Connections: h.integer("connections", absent.Connections, 1, maxHoldConnections),
		Time:        h.duration("time", absent.Time, maxHoldTime),
		Busy:        h.duration("busy", absent.Busy, maxHoldTime),
	}
	h.refuseRest()
	return hold
}

func checkUser(user string) error {
	if user == "" || len(user) > maxUser || strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r == ':' || r == 0x7f }) {
		return fmt.Errorf("%q: expected a user's name or number", user)
	}
	return nil
}

// checkDir returns dir without a trailing slash.
func checkDir(dir string) (string, error) {
	clean := path.Clean(dir)
	switch {
	case !strings.HasPrefix(dir, "/"):
		return "", fmt.Errorf("path %q is not absolute: it must begin with \"/\"", dir)
	case clean == "/":
		return "", errors.New("the root directory can't be a socket directory")
	case clean != strings.TrimRight(dir, "/"):
		return "", fmt.Errorf("path %q: expected it as %q", dir, clean)
	case len(clean) > maxDir:
		return "", fmt.Errorf("path %q is too long: a socket in it must fit in 107 bytes, so at most %d", dir, maxDir)
	}
	t, err := rule.ParseTemplate(clean + "/")
	if err == nil && t.String() != clean+"/" || strings.ContainsAny(clean, "{}") {
		return "", fmt.Errorf("path %q: the main socket directory can't have words in braces", dir)
	}
	return clean, err
}

// readListeners returns the indexes of the listeners by name.
func (p *parser) readListeners(top *section) map[string]int {
	byName := map[string]int{}
	byPort := map[uint16][]int{} // those that may be in each other's way
	for _, s := range top.sections("listener", rule.MaxListeners) {
		l, ok := readListener(s)
		first := len(p.config.Listeners)
		all := p.spread(s, l)
		for _, l := range all {
			i := len(p.config.Listeners)
			p.config.Listeners = append(p.config.Listeners, l)
			p.name(s, byName, l.Name, i)
			if ok {
				p.checkOverlap(s, l, byPort[l.Port])
				byPort[l.Port] = append(byPort[l.Port], i)
			}
		}
		if l.First > 0 && !l.Steered() {
			p.name(s, byName, l.Name, first)
			p.ranges[l.Name] = len(all)
		}
	}
	delete(byName, "") // of those without an address
	return byName
}

// name notes what a listener is called, or the first of a range of ports.
func (p *parser) name(s *section, byName map[string]int, name string, i int) {
	if first, taken := byName[name]; taken && name != "" {
		s.keyValue("name", "address").fail("a listener is named %q already in line %d", name, p.config.Listeners[first].Line)
		return
	}
	byName[name] = i
}

func (p *parser) checkOverlap(s *section, l Listener, others []int) {
	for _, i := range others {
		if other := &p.config.Listeners[i]; listen.Overlap(l.Description, other.Description) {
			s.keyValue("address").fail("%s is taken by listener %q in line %d", l.Description, other.Name, other.Line)
			return
		}
	}
}

// readListener returns false for one that has no usable address.
func readListener(s *section) (Listener, bool) {
	l := Listener{Line: s.line()}
	ok := readAddress(s, &l)
	if name, _, given := s.text("name"); given {
		l.Name = name
	}
	l.NetNS, _, _ = s.text("netns")
	readLend(s, &l)
	readListenerLimits(s, &l)
	options, given := s.section("options", "options")
	if given {
		readOptions(options, &l.Description)
		options.refuseRest()
	}
	s.refuseRest()
	return l, ok && reportKeys(s, options, l.Description.Check())
}

func readOptions(s *section, d *listen.Description) {
	d.Backlog = s.integer("backlog", 0, 1, math.MaxInt32)
	if v6only, present := s.boolean("v6only"); present && v6only {
		d.V6Only, d.Both = true, false
	}
	d.FreeBind, _ = s.boolean("freebind")
	d.Transparent, _ = s.boolean("transparent")
	d.ReusePort, _ = s.boolean("reuseport")
	d.Device, _, _ = s.text("device")
	d.Mark = uint32(s.integer("mark", 0, 0, math.MaxUint32))
	d.DeferAccept = s.duration("defer_accept", 0, maxHoldTime)
}

// reportKeys reports what listen found, each at its key. It returns false
// where there is anything.
func reportKeys(s, options *section, found []*listen.KeyError) bool {
	for _, wrong := range found {
		at := s.keyValue(wrong.Key, "address")
		if options != nil && options.has(wrong.Key) {
			at = options.keyValue(wrong.Key)
		}
		at.fail("%w", wrong.Err)
	}
	return len(found) == 0
}

// readTargets reads the named targets.
func (p *parser) readTargets(top *section) {
	names, sections := top.named("target")
	for i, s := range sections {
		name := names[i]
		if err := checkTargetName(name); err != nil {
			s.doc.fail(s.node.keyOffset(), "", "%w", err)
		}
		sockets := readSockets(s)
		balance := readBalance(s, len(sockets))
		hold := readHold(s, p.hold)
		s.refuseRest()
		p.targets[name] = len(p.config.Targets)
		p.config.Targets = append(p.config.Targets, Target{Name: name, Sockets: sockets, Balance: balance, Hold: hold, Line: s.line()})
	}
}

// checkTargetName keeps names apart from all else that a rule's target can be.
func checkTargetName(name string) error {
	switch name {
	case rejectTarget, mainTarget:
		return fmt.Errorf("target name %q is reserved", name)
	}
	letters := strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
	if name == "" || len(name) > listen.MaxName || letters != "" {
		return fmt.Errorf("target name %q: expected 1 to %d letters, digits, \"-\", \"_\" and \".\"", name, listen.MaxName)
	}
	return nil
}

func readSockets(s *section) []rule.Template {
	const expected = "the path of a socket, or of a socket directory with a trailing slash"
	values := s.list("sockets")
	if !s.has("sockets") {
		s.missing("sockets", expected)
	}
	var out []rule.Template
	for i, v := range values {
		text, ok := v.any.(string)
		if !ok {
			v.expected(expected)
			continue
		}
		t, err := rule.ParseTemplate(text)
		if err != nil {
			v.fail("%w", err)
		}
		if err == nil && slices.Contains(out, t) {
			v.fail("%q is in the list already", text)
		}
		if i == rule.MaxPlaces {
			v.fail("%d sockets, at most %d", len(values), rule.MaxPlaces)
		}
		out = append(out, t)
	}
	return out
}

// readBalance reads how a target chooses among its sockets.
func readBalance(s *section, sockets int) rule.Balance {
	words := []string{rule.Failover.String(), rule.RoundRobin.String(), rule.SourceHash.String()}
	balance := rule.Balance(slices.Index(words, s.choice("balance", words[0], words)))
	if sockets == 1 && balance != rule.Failover {
		s.keyValue("balance").fail("the target has one socket: expected several, or no balance")
	}
	return balance
}
