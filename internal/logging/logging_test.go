package logging

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestTextLine(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1234")
	tests := []struct {
		name string
		log  func(*slog.Logger)
		want string
	}{
		{"info", func(l *slog.Logger) { l.Info("ready", "path", "/run/x.sock", "max", 64) },
			"prog: info: ready path=/run/x.sock max=64\n"},
		{"warning with spaces", func(l *slog.Logger) { l.Warn("slow", "why", "two words") },
			"prog: warning: slow why=\"two words\"\n"},
		{"forged line", func(l *slog.Logger) { l.Error("bad\nprog: info: fine", "name", "a\nb") },
			"prog: error: bad\\nprog: info: fine name=\"a\\nb\"\n"},
		{"empty value", func(l *slog.Logger) { l.Info("x", "k", "") }, "prog: info: x k=\"\"\n"},
		{"duration", func(l *slog.Logger) { l.Info("x", "took", 1234567891*time.Nanosecond) },
			"prog: info: x took=1.23s\n"},
		{"debug is below", func(l *slog.Logger) { l.Debug("x") }, ""},
		{"with", func(l *slog.Logger) { l.With("a", 1).WithGroup("g").With("b", 2).Info("x", "c", 3) },
			"prog: info: x a=1 g.b=2 g.c=3\n"},
		{"group", func(l *slog.Logger) { l.Info("x", slog.Group("g", "a", 1, "b", "c d")) },
			"prog: info: x g.a=1 g.b=\"c d\"\n"},
		{"error value", func(l *slog.Logger) { l.Info("x", "err", errors.New("no such file")) },
			"prog: info: x err=\"no such file\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			l, err := New(&out, "text", "info", "prog")
			if err != nil {
				t.Fatal(err)
			}
			tt.log(l)
			if out.String() != tt.want {
				t.Errorf("got  %q\nwant %q", out.String(), tt.want)
			}
		})
	}
}

func TestTimeWithoutJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	var out strings.Builder
	l, err := New(&out, "", "", "prog")
	if err != nil {
		t.Fatal(err)
	}
	l.Info("ready")
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z prog: info: ready\n$`).MatchString(out.String()) {
		t.Errorf("got %q", out.String())
	}
}

func TestJSON(t *testing.T) {
	for _, journal := range []string{"", "8:1"} {
		t.Setenv("JOURNAL_STREAM", journal)
		var out strings.Builder
		l, err := New(&out, "json", "debug", "prog")
		if err != nil {
			t.Fatal(err)
		}
		l.Warn("slow", "n", 3)
		var got map[string]any
		if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
			t.Fatalf("%v in %q", err, out.String())
		}
		if _, stamped := got["time"]; stamped != (journal == "") {
			t.Errorf("JOURNAL_STREAM=%q: %s", journal, out.String())
		}
		if got["level"] != "warning" || got["program"] != "prog" || got["msg"] != "slow" || got["n"] != 3.0 {
			t.Errorf("got %s", out.String())
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, bad := range [][2]string{{"xml", "info"}, {"text", "loud"}} {
		if _, err := New(nil, bad[0], bad[1], "p"); err == nil {
			t.Errorf("format %q, level %q: no error", bad[0], bad[1])
		}
	}
}

type hintError struct{ error }

func (hintError) Hint() string { return "try this" }

type otherHint struct{ error }

func (otherHint) Hint() string { return "or that\nand more" }

func TestPrintError(t *testing.T) {
	one := hintError{errors.New("bind :80: permission denied")}
	two := otherHint{errors.New("bind :81: in use")}
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"nil", nil, ""},
		{"plain", errors.New("a\x1b[2Jb"), "p: error: a\\x1b[2Jb\n"},
		{"wrapped hint", fmt.Errorf("start: %w", one),
			"p: error: start: bind :80: permission denied\nhint: try this\n"},
		{"joined and wrapped", fmt.Errorf("start: %w", errors.Join(errors.New("a"), errors.New("b"))),
			"p: error: start: a\np: error: b\n"},
		{"joined", errors.Join(one, two, hintError{errors.New("x")}),
			"p: error: bind :80: permission denied\np: error: bind :81: in use\np: error: x\n" +
				"hint: try this\nhint: or that\nhint: and more\n"},
		{"two wrapped in a text", fmt.Errorf("%w (after %w)", one, two),
			"p: error: bind :80: permission denied (after bind :81: in use)\nhint: try this\nhint: or that\nhint: and more\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			PrintError(&out, "p", tt.err)
			if out.String() != tt.want {
				t.Errorf("got  %q\nwant %q", out.String(), tt.want)
			}
		})
	}
}
