package netns

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
)

// traced parses what a trace has printed so far.
func traced(t *testing.T, p *process) (lines []binder.TraceLine, lost uint64) {
	t.Helper()
	for text := range strings.Lines(p.log.String()) {
		if !strings.HasSuffix(text, "}\n") {
			continue
		}
		var l binder.TraceLine
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lost += l.Lost
		if l.Lost == 0 {
			lines = append(lines, l)
		}
	}
	return lines, lost
}

// Each decision is told with its rule, path, wait and errno; filters choose, and
// -n ends it.
func TestTrace(t *testing.T) {
	s := shopsOpen(t)
	all := start(t, s.command("socketbox", "trace"))
	asJSON := start(t, s.command("socketbox", "trace", "--json"))
	two := start(t, s.command("socketbox", "trace", "--json", "-n", "2", "--from", "203.0.113.0/24"))
	none := start(t, s.command("socketbox", "trace", "--listener", "admin"))
	for _, p := range []*process{all, asJSON, two, none} {
		p.waitLog("watching")
	}
	expect(t, s.command("socketbox", "trace"), 1, "4 traces run already")
	s.sh("timeout 2 busybox nc -w 1 192.0.2.10 80 </dev/null")
	s.sh("curl -sm 1 --interface 203.0.113.9 http://192.0.2.10/")
	s.sh("curl -sm 1 --interface 203.0.113.9 http://203.0.113.9/")
	s.sh("timeout 1 busybox nc -w 1 192.0.2.11 80 </dev/null")
	if status := two.wait(5 * time.Second); status != 0 {
		t.Errorf("-n 2 ends with %d: %s", status, two.log)
	}
	want := []string{"delivered shop /run/socketbox/shop/80.sock 1", "delivered shop /run/socketbox/shop/80.sock 1", "rejected reject  4"}
	eventually(t, 5*time.Second, func() error {
		lines, _ := traced(t, asJSON)
		var ends []string
		held := 0
		for _, l := range lines {
			switch {
			case l.Outcome != "held":
				ends = append(ends, fmt.Sprintf("%s %s %s %d", l.Outcome, l.Target, l.Path, l.Rule))
			case l.Target == "/run/socketbox/blog/":
				held++
			}
		}
		if strings.Join(ends, "\n") != strings.Join(want, "\n") || held != 1 {
			return fmt.Errorf("%d held for the blog, ends:\n%s", held, strings.Join(ends, "\n"))
		}
		return nil
	})
	for text := range strings.Lines(asJSON.log.String()) {
		if !strings.HasPrefix(text, "watching") {
			mustFit(t, "trace", text)
		}
	}
	lines, _ := traced(t, two)
	if len(lines) != 2 || !strings.HasPrefix(lines[0].From, "203.0.113.9:") || lines[0].To != "192.0.2.10:80" || lines[0].Place != "socketbox.toml:9" {
		t.Errorf("--from 203.0.113.0/24: %+v", lines)
	}
	if strings.Count(none.log.String(), "\n") != 1 {
		t.Errorf("--listener admin: %s", none.log)
	}
	compareCapture(t, "operations.md", "trace", "# socketbox trace\n"+all.log.String())
	expect(t, s.command("socketbox", "trace", "--from", "nonsense"), 2, `--from "nonsense"`)
}

// A reader that is too slow loses decisions, is told how many, and delays
// nobody; a reload and another dispatcher end no trace.
func TestTraceSlowReader(t *testing.T) {
	const clients = 6000
	port := freePort(t)
	b := bindConfig(t, listeners(port))
	runReceiver(t, &receiver{Path: filepath.Join(b.dir, "default.sock")})
	takenBy(t, "default.sock", client{to: at(port)})
	p := start(t, socketbox(t, here(), 0, "trace", "--json", "--dir", b.dir))
	p.waitLog("watching")
	before := b.status().Total
	p.signal(unix.SIGSTOP)
	rounds(32, clients, to(at(port))).allServed(t, clients)
	putConfig(t, b.dir, listeners(port)+"[[rule]]\nport = 1\ntarget = \"reject\"\n")
	b.hup("configuration reloaded")
	p.signal(unix.SIGCONT)
	var lines []binder.TraceLine
	var lost uint64
	rounds(1, 1, to(at(port))).allServed(t, 1)
	eventually(t, 10*time.Second, func() error {
		lines, lost = traced(t, p)
		now := b.status().Total
		want := now.Delivered - before.Delivered + now.Held - before.Held
		if got := uint64(len(lines)) + lost; got != want {
			return fmt.Errorf("%d decisions told, %d lost, of %d", len(lines), lost, want)
		}
		return nil
	})
	if lost == 0 {
		t.Errorf("none of %d decisions is lost: the reader was not slow", len(lines))
	}
	t.Logf("%d told, %d lost", len(lines), lost)
	kill9(t, b.status().Dispatcher)
	b.waitLog("starting another")
	eventually(t, 5*time.Second, func() error {
		rounds(1, 1, to(at(port))).allServed(t, 1)
		if more, _ := traced(t, p); len(more) > len(lines) {
			return nil
		}
		return fmt.Errorf("after the dispatcher's death it shows nothing")
	})
}
