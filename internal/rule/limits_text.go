package rule

import (
	"fmt"
	"strings"
)

// LimitText spells all limits of a rule, for people; "" if it has none.
func (r *Rule) LimitText() string { return limitText(&r.Limit, r.Sessions) }

// String spells a limit, for people; "" if it is none.
func (l *Limit) String() string { return limitText(l, Sessions{}) }

func limitText(l *Limit, s Sessions) string {
	var parts []string
	add := func(n Rate, of string) {
		if n.Count > 0 {
			parts = append(parts, n.String()+of)
		}
	}
	add(l.Rate, "")
	for tier, of := range [Tiers]string{TierHost: " of a source", Tier56: " of a /56", Tier48: " of a /48"} {
		add(l.PerSource[tier], of)
	}
	if s.Max > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions", s.Max))
	}
	if s.PerSource > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions of a source", s.PerSource))
	}
	if len(parts) == 0 {
		return ""
	}
	over := "wait"
	if l.Reject || s.Reject {
		over = "reject"
	}
	return "at most " + strings.Join(parts, ", ") + ", else " + over
}
