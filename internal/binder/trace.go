package binder

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/dispatch"
)

const (
	// maxTracers bounds how many commands watch at once.
	maxTracers = 4
	// traceEvery is how often the ring is read: it holds 4,096 decisions, so
	// those of 40,000 connections a second for five times as long.
	traceEvery = 20 * time.Millisecond
	// tracePiece is what a pipe takes whole or not at all (pipe(7), PIPE_BUF).
	tracePiece = 4096
)

// TraceFilter chooses decisions.
type TraceFilter struct {
	From     netip.Prefix `json:"from"`     // of the client; invalid: any
	Listener string       `json:"listener"` // "": any
}

// TraceLine is one decision as `socketbox trace --json` prints it, one to a
// line; the schema is docs/schema/trace.json. A line with Lost says how many
// are missing before it, and nothing else.
type TraceLine struct {
	Time     time.Time `json:"time,omitzero"`
	Listener string    `json:"listener,omitempty"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Rule     int       `json:"rule"` // number; 0: none
	Place    string    `json:"place,omitempty"`
	Target   string    `json:"target,omitempty"`
	Path     string    `json:"path,omitempty"`
	Outcome  string    `json:"outcome,omitempty"` // "delivered", "held", "rejected", "failed"
	Wait     float64   `json:"wait"`              // seconds on hold
	Cause    string    `json:"cause,omitempty"`   // of failed
	Errno    string    `json:"errno,omitempty"`
	Lost     uint64    `json:"lost,omitempty"`
}

// watching is where one command has read to.
type watching struct {
	filter TraceFilter
	table  *table // whose ring
	after  uint64
	rest   []TraceLine // of a table that a reload has replaced
}

// trace answers a "trace" request with a pipe, and writes decisions there until
// nobody reads it any more. What the reader is too slow for is lost, and counted.
func (c *client) trace(f TraceFilter) bool {
	w := &watching{filter: f}
	started := make(chan error, 1)
	c.b.calls <- func() { started <- c.b.beginTrace(w) }
	if err := <-started; err != nil {
		c.answer(err, nil)
		return false
	}
	defer func() { c.b.calls <- func() { c.b.endTrace(w) } }()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		c.answer(fmt.Errorf("pipe: %w", err), nil)
		return false
	}
	defer unix.Close(pipe[1])
	sent := c.answer(nil, pipe[:1])
	unix.Close(pipe[0])
	for lost := uint64(0); sent && hasReader(pipe[1]); time.Sleep(traceEvery) {
		lines := make(chan []TraceLine, 1)
		c.b.calls <- func() { lines <- c.b.readTrace(w) }
		lost = writeLines(pipe[1], <-lines, lost)
	}
	return false
}

func (b *binder) beginTrace(w *watching) error {
	if len(b.tracers) >= maxTracers {
		return fmt.Errorf("%d traces run already", len(b.tracers))
	}
	b.tracers[w] = true
	w.table = b.active
	b.active.counters.Trace(true)
	w.after = b.active.counters.Latest()
	return nil
}

func (b *binder) endTrace(w *watching) {
	if delete(b.tracers, w); len(b.tracers) == 0 {
		b.active.counters.Trace(false)
	}
}

// moveTraces has all traces read the rest of the table in force, which is about
// to be replaced by next, and go on there.
func (b *binder) moveTraces(next *table) {
	for w := range b.tracers {
		w.rest = b.readTrace(w)
		w.table, w.after = next, 0
	}
	next.counters.Trace(len(b.tracers) > 0)
}

// readTrace returns what was decided since the last time.
func (b *binder) readTrace(w *watching) []TraceLine {
	found, latest, lost := w.table.counters.Decisions(w.after)
	w.after = latest
	lines := w.rest
	w.rest = nil
	if lost > 0 {
		lines = append(lines, TraceLine{Lost: lost})
	}
	for i := range found {
		if line, ok := b.traceLine(&found[i], w.filter); ok {
			lines = append(lines, line)
		}
	}
	return lines
}

// traceLine makes a decision readable. Every number in it is checked: a
// dispatcher in hostile hands may have written it.
func (b *binder) traceLine(d *dispatch.Decision, f TraceFilter) (TraceLine, bool) {
	line := TraceLine{Time: time.Unix(0, d.Time), Wait: time.Duration(d.Wait).Seconds(), Outcome: d.Outcome.String()}
	for _, l := range b.active.listeners {
		if l.id == d.Listener {
			line.Listener = l.description.Name
		}
	}
	if f.Listener != "" && f.Listener != line.Listener || f.From.IsValid() && !f.From.Contains(d.Remote()) {
		return line, false
	}
	line.From, line.To = endText(d.Remote(), d.RemotePort), endText(d.Local(), d.LocalPort)
	t := b.active.plan.Table
	if d.Rule >= 0 && int(d.Rule) < len(t.Rules) {
		line.Rule = int(d.Rule) + 1
		line.Place = placeOf(b.active.cfg, t.Rules[d.Rule].Line)
	}
	line.Target = "reject"
	if d.Target >= 0 && int(d.Target) < len(t.Targets) {
		line.Target = t.Targets[d.Target].Name
	}
	if s := b.resolver.sinkByID[d.Sink]; s != nil {
		line.Path = s.name
	}
	if d.Outcome == dispatch.Failed {
		line.Cause = d.Cause.Name()
	}
	if d.Errno != 0 {
		line.Errno = unix.ErrnoName(unix.Errno(d.Errno))
	}
	return line, true
}

// endText shows one end of a connection, "unix" where there is no address.
func endText(a netip.Addr, port uint16) string {
	switch {
	case !a.IsValid():
		return "unix"
	case port == 0:
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// hasReader says whether somebody still has the other end of a pipe.
func hasReader(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err != nil || n == 0 || p[0].Revents&unix.POLLERR == 0
}

// writeLines writes as many lines as the pipe takes; the others are lost, and
// that is the first that it writes the next time. It returns how many.
func writeLines(fd int, lines []TraceLine, lost uint64) uint64 {
	var piece []byte
	inPiece := uint64(0)
	flush := func() {
		if len(piece) == 0 {
			return
		}
		if _, err := unix.Write(fd, piece); err != nil {
			lost += inPiece
		}
		piece, inPiece = piece[:0], 0
	}
	if lost > 0 {
		text, _ := json.Marshal(TraceLine{Lost: lost})
		if _, err := unix.Write(fd, append(text, '\n')); err == nil {
			lost = 0
		}
	}
	for i := range lines {
		text, err := json.Marshal(&lines[i])
		if err != nil || len(text) >= tracePiece {
			lost++
			continue
		}
		if len(piece)+len(text)+1 > tracePiece {
			flush()
		}
		piece = append(append(piece, text...), '\n')
		inPiece += max(1, lines[i].Lost)
	}
	flush()
	return lost
}

// Trace calls each with the decisions of the instance of dir, as they happen,
// until it returns false or the instance ends; begun is called before the first.
func Trace(dir string, f TraceFilter, begun func(), each func(*TraceLine) bool) error {
	s, err := dial(dir)
	if err != nil {
		return err
	}
	defer s.file.Close()
	fds, err := s.askFor(1, request{Op: "trace", Trace: &f})
	if err != nil {
		return err
	}
	lines := newLineReader(fds[0])
	defer lines.Close()
	begun()
	for {
		line := &TraceLine{}
		if err := lines.Decode(line); err != nil {
			return fmt.Errorf("the binder ended: %w", err)
		}
		if !each(line) {
			return nil
		}
	}
}

// Text is the line for people.
func (l *TraceLine) Text() string {
	if l.Lost > 0 {
		return fmt.Sprintf("… %d decisions are missing here", l.Lost)
	}
	rule := "no rule"
	if l.Rule > 0 {
		rule = "rule " + (&RuleStatus{Number: l.Rule, Place: l.Place}).name()
	}
	text := fmt.Sprintf("%s %s %s → %s, %s, %s: %s", l.Time.Format("15:04:05.000"), orDash(l.Listener), l.From, l.To, rule, l.Target, l.Outcome)
	if l.Path != "" {
		text += ", " + l.Path
	}
	if l.Wait > 0 && l.Outcome != dispatch.Held.String() {
		text += fmt.Sprintf(", waited %v", time.Duration(l.Wait*1e9).Round(time.Microsecond))
	}
	if l.Cause != "" {
		text += ", " + l.Cause
	}
	if l.Errno != "" {
		text += ", " + l.Errno
	}
	return text
}
