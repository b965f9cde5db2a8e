package dispatch

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// complaintEvery is how often the same trouble with the same target or
// listener is logged; what comes between is counted into the next line.
const complaintEvery = time.Second

// maxComplaints bounds the memory for troubles: targets times reasons.
const maxComplaints = 4096

// trouble is what a complaint is about.
type trouble struct{ what, about string }

type complaint struct {
	last       time.Time
	suppressed int
}

// complain logs a warning, rate-limited.
func (w *worker) complain(what, about string, errno unix.Errno) {
	now := time.Now()
	key := trouble{what, about}
	c := w.complaints[key]
	if c == nil {
		if len(w.complaints) >= maxComplaints {
			clear(w.complaints)
		}
		c = &complaint{}
		w.complaints[key] = c
	}
	if now.Sub(c.last) < complaintEvery {
		c.suppressed++
		return
	}
	args := []any{"name", about, "reason", errno.Error()}
	if c.suppressed > 0 {
		args = append(args, "suppressed", c.suppressed)
	}
	c.last, c.suppressed = now, 0
	w.log.Warn(what, args...)
}

// targetName names target i in messages.
func (w *worker) targetName(i int) string {
	if i < 0 {
		return "reject"
	}
	return w.plan.Table.Targets[i].Name
}

// logConnection writes the line that --log-connections asks for.
func (w *worker) logConnection(c *connection, outcome string) {
	if !w.plan.LogConnections {
		return
	}
	var wait time.Duration
	if !c.since.IsZero() {
		wait = time.Since(c.since)
	}
	client := "unix"
	if c.facts.Remote.IsValid() {
		client = c.facts.Remote.String()
	}
	line := 0
	if c.rule >= 0 {
		line = w.plan.Table.Rules[c.rule].Line
	}
	w.log.LogAttrs(context.Background(), slog.LevelInfo, "connection",
		slog.String("client", client), slog.String("listener", c.l.Name), slog.Int("rule", c.rule+1),
		slog.Int("line", line), slog.String("target", w.targetName(c.target)), slog.Duration("wait", wait), slog.String("outcome", outcome))
}
