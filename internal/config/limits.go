package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

// Values of over: what becomes of a connection that exceeds a limit.
const (
	overWait   = "wait"
	overReject = "reject"
)

// limitKeys are those of limits, for errors about all of them.
var limitKeys = []string{"max_sessions", "max_sessions_per_source", "rate", "per_source"}

// readRuleLimits reads how many connections of a rule may live at once, and how
// many it takes in a time.
func (p *parser) readRuleLimits(s *section, r *rule.Rule) {
	r.Sessions = rule.Sessions{
		Max:       s.integer("max_sessions", 0, 1, rule.MaxSessions),
		PerSource: s.integer("max_sessions_per_source", 0, 1, rule.MaxSessions),
	}
	r.Limit = readRates(s)
	reject := s.choice("over", overWait, []string{overWait, overReject}) == overReject
	r.Sessions.Reject = reject && !r.Sessions.IsZero()
	r.Limit.Reject = reject && !r.Limit.IsZero()
	if r.Sessions.IsZero() && r.Limit.IsZero() {
		if s.has("over") {
			s.keyValue("over").fail("the rule has no limit: expected max_sessions, max_sessions_per_source, rate or per_source too")
		}
		return
	}
	if r.Reject {
		s.keyValue(limitKeys...).fail("the rule rejects all that it takes: expected no limit")
	}
	for _, i := range r.Listeners {
		if l := &p.config.Listeners[i]; l.Network == listen.Unix && !r.Sessions.IsZero() {
			s.keyValue(limitKeys...).fail("listener %q is a Unix socket, of which the kernel does not tell when connections end: expected no limit", l.Name)
		}
	}
}

// readListenerLimits reads how many connections a listener takes in a time.
func readListenerLimits(s *section, l *Listener) {
	l.Limit = readRates(s)
	l.Limit.Reject = s.choice("over", overWait, []string{overWait, overReject}) == overReject && !l.Limit.IsZero()
	at := s.keyValue("rate", "per_source")
	switch {
	case l.Limit.IsZero() && s.has("over"):
		s.keyValue("over").fail("the listener has no limit: expected rate or per_source too")
	case l.Limit.IsZero():
	case l.Network == listen.UDP:
		at.fail("%s has no connections to count: expected no limit", l.Description)
	case l.Handoff == HandoffListener:
		at.fail("the listener is lent, and its connections can't be counted: expected no limit, or handoff = %q", HandoffConnection)
	case l.Network == listen.Unix && l.Limit.HasSources():
		s.keyValue("per_source").fail("%s is a Unix socket, whose clients have no address: expected rate", l.Description)
	}
}

// readRates reads the keys rate and per_source. The latter is a rate, or a table
// with one for each width of a source.
func readRates(s *section) rule.Limit {
	l := rule.Limit{Rate: readRate(s, "rate")}
	if _, isTable := s.table["per_source"].(map[string]any); !isTable {
		l.PerSource[rule.TierHost] = readRate(s, "per_source")
		return l
	}
	if t, ok := s.section("per_source", "per_source"); ok {
		l.PerSource = [rule.Tiers]rule.Rate{readRate(t, "host"), readRate(t, "v6_56"), readRate(t, "v6_48")}
		t.refuseRest()
	}
	return l
}

func readRate(s *section, key string) rule.Rate {
	text, v, ok := s.text(key)
	if !ok {
		return rule.Rate{}
	}
	r, err := parseRate(text)
	if err != nil {
		v.fail("%w", err)
	}
	return r
}

// parseRate reads one such as 100/s.
func parseRate(text string) (rule.Rate, error) {
	count, unit, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(count, 10, 31)
	per := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	switch {
	case err != nil || per == 0 || n == 0:
		return rule.Rate{}, fmt.Errorf(`%q: expected a number of connections in a second, minute or hour, such as "100/s", "20/m" or "5/h"`, text)
	case n > rule.MaxRateCount:
		return rule.Rate{}, fmt.Errorf("%q: at most %d", text, rule.MaxRateCount)
	}
	return rule.Rate{Count: int(n), Per: per}, nil
}
