package rule

import (
	"fmt"
	"strings"
)

// LimitText spells all limits of a rule, for people; "" if it has none.
func (r *Rule) LimitText() string {
	var parts []string
	add := func(n Rate, of string) {
		if n.Count > 0 {
			parts = append(parts, fmt.Sprintf("%d in %v%s", n.Count, n.Per, of))
		}
	}
	add(r.Limit.Rate, "")
	for tier, of := range [Tiers]string{TierHost: " of a source", Tier56: " of a /56", Tier48: " of a /48"} {
		add(r.Limit.PerSource[tier], of)
	}
	if r.Sessions.Max > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions", r.Sessions.Max))
	}
	if r.Sessions.PerSource > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions of a source", r.Sessions.PerSource))
	}
	if len(parts) == 0 {
		return ""
	}
	over := "wait"
	if r.Limit.Reject || r.Sessions.Reject {
		over = "reject"
	}
	return "at most " + strings.Join(parts, ", ") + ", else " + over
}
