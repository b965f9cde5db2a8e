package config

import (
	"errors"
	"fmt"
	"strconv"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

// Lend says where a listener is lent, beside the main socket directory, and to
// whom.
type Lend struct {
	Dirs   []string // socket directories, without the slash
	Users  []string // names or numbers; with Groups empty too: whoever may connect
	Groups []string
}

// Restricted says whether only some users may borrow.
func (l *Lend) Restricted() bool { return len(l.Users)+len(l.Groups) > 0 }

// maxLendDirs bounds lend: each directory takes a socket and a watch.
const maxLendDirs = 1024

// readLend reads the keys handoff, lend and allow, and checks them against
// what the listener is.
func readLend(s *section, l *Listener) {
	l.Handoff = s.choice("handoff", HandoffAuto, []string{HandoffAuto, HandoffConnection, HandoffListener})
	l.Lend.Dirs = readLendDirs(s)
	if allow, ok := s.section("allow", "allow"); ok {
		l.Lend.Users, l.Lend.Groups = readAccounts(allow, "users"), readAccounts(allow, "groups")
		if !allow.has("users") && !allow.has("groups") {
			allow.missing("users", "users or groups that may borrow the listener")
		}
		allow.refuseRest()
	}
	if err := l.checkLend(); err != nil {
		s.keyValue("handoff", "lend", "allow", "address").fail("%w", err)
	}
}

func (l *Listener) checkLend() error {
	switch {
	case l.Steered() && (l.Handoff == HandoffListener || l.Lend.Dirs != nil || l.Lend.Restricted()):
		return errors.New("with sk_lookup it is never lent: expected neither handoff = \"listener\" nor lend nor allow")
	case l.Network == listen.Unix && (l.Handoff == HandoffListener || l.Lend.Dirs != nil || l.Lend.Restricted()):
		return fmt.Errorf("%s is a Unix socket, which is never lent", l.Description)
	case l.Network == listen.UDP && l.Handoff == HandoffConnection:
		return fmt.Errorf("%s has no connections to hand off: it can only be lent", l.Description)
	case l.Handoff == HandoffConnection && (l.Lend.Dirs != nil || l.Lend.Restricted()):
		return fmt.Errorf("%q, and yet it shall be lent: expected \"auto\" or \"listener\", or neither lend nor allow", HandoffConnection)
	}
	return nil
}

func readLendDirs(s *section) []string {
	var dirs []string
	values := s.list("lend")
	if len(values) > maxLendDirs {
		values[0].fail("%d directories, at most %d", len(values), maxLendDirs)
		return nil
	}
	for _, v := range values {
		text, ok := v.any.(string)
		if !ok {
			v.expected("the path of a socket directory")
			continue
		}
		dir, err := checkDir(text)
		if err != nil {
			v.fail("%w", err)
			continue
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// readAccounts reads users or groups; that they exist is the binder's to find
// out.
func readAccounts(s *section, key string) []string {
	var out []string
	for _, v := range s.list(key) {
		if n, ok := v.any.(int64); ok && n >= 0 {
			v.any = strconv.FormatInt(n, 10)
		}
		name, ok := v.any.(string)
		if !ok {
			v.expected("a name or a number")
			continue
		}
		if err := checkUser(name); err != nil {
			v.fail("%w", err)
			continue
		}
		out = append(out, name)
	}
	return out
}

// checkRulesOfLent reports rules that name a listener which hands no
// connection off.
func (p *parser) checkRulesOfLent(v value, i int) {
	switch l := &p.config.Listeners[i]; {
	case l.Network == listen.UDP:
		v.fail("%q is a UDP socket, which is lent: it has no connections for a rule", l.Name)
	case l.Handoff == HandoffListener:
		v.fail("%q has handoff = %q in line %d: it has no connections for a rule", l.Name, HandoffListener, l.Line)
	}
}

// RuleOf returns the first rule that may take connections of listener i, which
// is therefore not lent unless the file insists.
func (c *Config) RuleOf(i int) (r *rule.Rule, ok bool) {
	for k := range c.Rules {
		if r := &c.Rules[k]; c.mayTake(r, i) {
			return r, true
		}
	}
	return nil, false
}

func (c *Config) mayTake(r *rule.Rule, i int) bool {
	l := &c.Listeners[i]
	named := r.Listeners == nil
	for _, index := range r.Listeners {
		named = named || index == i
	}
	if !named || l.Network == listen.UDP {
		return false
	}
	if r.Ports == nil || l.Network != listen.TCP || l.Port == 0 || l.AnyPort() {
		return true
	}
	for _, p := range r.Ports {
		if p.First <= l.Port && l.Port <= p.Last {
			return true
		}
	}
	return false
}
