package config

import (
	"socketbox/internal/rule"
)

// Values of over: what becomes of a connection that exceeds a limit.
const (
	overWait   = "wait"
	overReject = "reject"
)

// readSessions reads how many connections of a rule may live at once.
func (p *parser) readSessions(s *section, r *rule.Rule) {
	r.Sessions = rule.Sessions{
		Max:       s.integer("max_sessions", 0, 1, rule.MaxSessions),
		PerSource: s.integer("max_sessions_per_source", 0, 1, rule.MaxSessions),
	}
	r.Sessions.Reject = s.choice("over", overWait, []string{overWait, overReject}) == overReject
	if r.Sessions.IsZero() {
		if s.has("over") {
			s.keyValue("over").fail("the rule has no limit: expected max_sessions or max_sessions_per_source too")
		}
		return
	}
	if r.Reject {
		s.keyValue("max_sessions", "max_sessions_per_source").fail("the rule rejects all that it takes: expected no limit")
	}
	for _, i := range r.Listeners {
		if l := &p.config.Listeners[i]; l.Network == "unix" {
			s.keyValue("max_sessions", "max_sessions_per_source").fail("listener %q is a Unix socket, of which the kernel does not tell when connections end: expected no limit", l.Name)
		}
	}
}
