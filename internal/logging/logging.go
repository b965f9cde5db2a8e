// Package logging gives every program of the suite the same log and the same
// last words: log/slog to stderr as text or JSON, and fatal errors printed
// once as `program: error: ...` with `hint: ...` lines below. It needs no
// privilege, opens nothing and keeps no state.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// Formats and Levels are the values that New accepts, for help texts and
// completions.
var (
	Formats = []string{"text", "json"}
	Levels  = []string{"debug", "info", "warn", "error"}
)

// New returns a logger that writes lines of the given format ("text" or
// "json"; "" is text) from the given level up ("debug", "info", "warn",
// "error"; "" is info) to w. program is the name that each line carries.
//
// Under a journal, which stamps every line itself, lines carry no time
// ($JOURNAL_STREAM, systemd.exec(5)).
func New(w io.Writer, format, level, program string) (*slog.Logger, error) {
	var threshold slog.Level
	switch strings.ToLower(level) {
	case "debug":
		threshold = slog.LevelDebug
	case "", "info":
		threshold = slog.LevelInfo
	case "warn", "warning":
		threshold = slog.LevelWarn
	case "error":
		threshold = slog.LevelError
	default:
		return nil, fmt.Errorf("log level %q: want one of %s", level, strings.Join(Levels, ", "))
	}
	stamped := os.Getenv("JOURNAL_STREAM") == ""
	switch strings.ToLower(format) {
	case "", "text":
		return slog.New(newTextHandler(w, threshold, program, stamped)), nil
	case "json":
		return slog.New(newJSONHandler(w, threshold, program, stamped)), nil
	}
	return nil, fmt.Errorf("log format %q: want one of %s", format, strings.Join(Formats, ", "))
}

// Discard returns a logger that says nothing, for tests and defaults.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newJSONHandler is slog's own, with the house's names of levels.
func newJSONHandler(w io.Writer, threshold slog.Level, program string, stamped bool) slog.Handler {
	h := slog.NewJSONHandler(w, &slog.HandlerOptions{
		Level: threshold,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			switch {
			case len(groups) > 0:
			case a.Key == slog.TimeKey && !stamped:
				return slog.Attr{}
			case a.Key == slog.LevelKey:
				if l, ok := a.Value.Any().(slog.Level); ok {
					a.Value = slog.StringValue(levelName(l))
				}
			}
			return a
		},
	})
	return h.WithAttrs([]slog.Attr{slog.String("program", program)})
}

// levelName is the word for a level in a line of the log.
func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warning"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}
