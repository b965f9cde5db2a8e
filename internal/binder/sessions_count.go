package binder

import (
	"fmt"

	"socketbox/internal/dispatch"
	"socketbox/internal/rule"
)

// SessionCount is how many sessions of a rule live, and how many may.
type SessionCount struct {
	Live         int    `json:"live"`
	Max          int    `json:"max,omitempty"`            // 0: no limit
	MaxPerSource int    `json:"max_per_source,omitempty"` // 0: no limit
	Over         string `json:"over"`                     // what becomes of more: "wait" or "reject"
}

func newSessionCount(limit rule.Sessions) *SessionCount {
	if limit.IsZero() {
		return nil
	}
	over := "wait"
	if limit.Reject {
		over = "reject"
	}
	return &SessionCount{Max: limit.Max, MaxPerSource: limit.PerSource, Over: over}
}

// countSessions adds to rules, which are in the order of the table, what the
// dispatcher remembers.
func (b *binder) countSessions(rules []RuleStatus) {
	limits := false
	for i := range rules {
		rules[i].Sessions = newSessionCount(b.active.plan.Table.Rules[i].Sessions)
		limits = limits || rules[i].Sessions != nil
	}
	if !limits || b.tracker.file == nil {
		return
	}
	b.tracker.file.Each(func(s *dispatch.Session) {
		if i := int(s.Rule); i >= 0 && i < len(rules) && rules[i].Sessions != nil {
			rules[i].Sessions.Live++
		}
	})
}

// limit shows the limit for people.
func (c *SessionCount) limit() string {
	text := ""
	if c.Max > 0 {
		text = fmt.Sprintf("%d in all", c.Max)
	}
	if c.MaxPerSource > 0 {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%d of a source", c.MaxPerSource)
	}
	return text + ", else " + c.Over
}

// Events is how well the binder hears that sessions end.
type Events struct {
	Lost     uint64 `json:"lost"`     // times that the kernel had more to say than there was room for
	Recounts uint64 `json:"recounts"` // times that the binder looked for what it may have missed
}

func (tr *tracker) events() *Events {
	if tr.file == nil {
		return nil
	}
	return &Events{Lost: tr.lost.Load(), Recounts: tr.counts.Load()}
}
