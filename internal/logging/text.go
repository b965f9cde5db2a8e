package logging

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// textHandler writes one line per record, made to be read by a person who is
// in a hurry:
//
//	2026-03-01T02:59:58.123Z socketbox-inetd: warning: text key=value key="two words"
//
// Whatever comes from outside (a listener's name, a path) is quoted where it
// could break or forge a line.
type textHandler struct {
	mu        *sync.Mutex // shared by all handlers on one writer
	w         io.Writer
	threshold slog.Level
	program   string
	stamped   bool
	attrs     []byte // already formatted, of WithAttrs
	group     string // prefix of keys, with its final dot
}

func newTextHandler(w io.Writer, threshold slog.Level, program string, stamped bool) *textHandler {
	return &textHandler{mu: new(sync.Mutex), w: w, threshold: threshold, program: program, stamped: stamped}
}

func (h *textHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.threshold }

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 256)
	if h.stamped && !r.Time.IsZero() {
		b = r.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
		b = append(b, ' ')
	}
	b = append(b, h.program...)
	b = append(b, ": "...)
	b = append(b, levelName(r.Level)...)
	b = append(b, ": "...)
	b = append(b, oneLine(r.Message)...)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.group, a)
		return true
	})
	b = append(b, '\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b)
	return err
}

func (h *textHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append([]byte(nil), h.attrs...)
	for _, a := range attrs {
		c.attrs = appendAttr(c.attrs, h.group, a)
	}
	return &c
}

func (h *textHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}

func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range v.Group() {
			b = appendAttr(b, group, member)
		}
		return b
	}
	b = append(b, ' ')
	b = append(b, group...)
	b = append(b, a.Key...)
	b = append(b, '=')
	text := valueText(v)
	if needsQuotes(text) {
		return strconv.AppendQuote(b, text)
	}
	return append(b, text...)
}

func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().UTC().Format(time.RFC3339Nano)
	case slog.KindDuration:
		return shortDuration(v.Duration())
	}
	return v.String()
}

// shortDuration keeps three digits of a duration: 1.234567891s is 1.23s.
func shortDuration(d time.Duration) string {
	unit := time.Nanosecond
	for abs := d.Abs(); abs/unit >= 1000; {
		unit *= 10
	}
	return d.Round(unit).String()
}

func needsQuotes(s string) bool {
	if s == "" {
		return true
	}
	return strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || r == utf8.RuneError || !unicode.IsPrint(r)
	})
}

// oneLine escapes what would end or forge a line.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
