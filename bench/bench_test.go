package main

import (
	"context"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		sorted []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{1, 2}, 1.5},
		{[]float64{1, 2, 9}, 2},
		{[]float64{1, 2, 4, 9}, 3},
	} {
		if got := median(c.sorted); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.sorted, got, c.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	// A command may hold what looks like other fields.
	const line = "7 (a) S (b) R 1 7 7 0 -1 4194304 80 0 0 0 3 4 50 60 20 0 1 0 100 0 0\n"
	got, err := parseStat([]byte(line))
	want := cpuTime{total: 70 * time.Millisecond, children: 1100 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("parseStat = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "7 (a) R 1 7", strings.Replace(line, " 50 ", " x ", 1)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q): no error", bad)
		}
	}
}

func TestOwnCountsEndedThreads(t *testing.T) {
	before := cpuTime{threads: 100 * time.Millisecond, total: 100 * time.Millisecond}
	for _, c := range []struct {
		name  string
		after cpuTime
		want  time.Duration
	}{
		{"rounding", cpuTime{threads: 150 * time.Millisecond, total: 140 * time.Millisecond}, 50 * time.Millisecond},
		{"a thread ended", cpuTime{threads: 60 * time.Millisecond, total: 200 * time.Millisecond}, 100 * time.Millisecond},
	} {
		if got := own(before, c.after); got != c.want {
			t.Errorf("%s: own = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestParseLoad(t *testing.T) {
	const line = "ok=90 refused=0 reset=2 empty=8 timeout=0 other=0 seconds=0.500000 p50=93 p99=201\n"
	r, err := parseLoad("load: client: No route to host\n" + line)
	if err != nil {
		t.Fatal(err)
	}
	if r.ok != 90 || r.allLost() != 10 || r.lost["empty"] != 8 || r.rate() != 180 ||
		r.p50 != 93*time.Microsecond || r.p99 != 201*time.Microsecond {
		t.Errorf("parseLoad = %+v", r)
	}
	for _, bad := range []string{"", "nonsense", "ok=x seconds=1", "ok=1"} {
		if _, err := parseLoad(bad); err == nil {
			t.Errorf("parseLoad(%q): no error", bad)
		}
	}
}

func TestHasTitle(t *testing.T) {
	const title = "socketbox: dispatcher"
	for cmdline, want := range map[string]bool{
		title:                       true,
		title + "\x00\x00\x00":      true,
		title + "   ":               true,
		title + "\x00--role\x00":    true,
		"socketbox: binder\x00":     false,
		"grep\x00" + title + "\x00": false,
		title + "s":                 false,
	} {
		if got := hasTitle([]byte(cmdline), title); got != want {
			t.Errorf("hasTitle(%q) = %v, want %v", cmdline, got, want)
		}
	}
}

func TestListenersConfig(t *testing.T) {
	one := listenersConfig(20000, 2, []string{"/a"})
	if strings.Count(one, "[[listener]]") != 2 || strings.Count(one, "[[rule]]") != 1 || strings.Contains(one, "listener =") {
		t.Errorf("two listeners, one target:\n%s", one)
	}
	each := listenersConfig(20000, 2, []string{"/a", "/b"})
	if !strings.Contains(each, "listener = \"l1\"\ntarget = \"/b\"") || !strings.Contains(each, "127.0.0.1:20001") {
		t.Errorf("two listeners, two targets:\n%s", each)
	}
}

// testBench returns a bench with its C programs compiled.
func testBench(t *testing.T) *bench {
	runtime.LockOSThread() // for Pdeathsig
	b := &bench{
		settings: settings{count: 200, threads: 1, rounds: 1, limit: 5 * time.Second, reference: true},
		ctx:      context.Background(), dir: t.TempDir(), out: io.Discard, log: io.Discard,
	}
	if err := b.buildPrograms(); err != nil {
		t.Fatal(err)
	}
	return b
}

// The reference serves every client, and its CPU and memory are found.
func TestReferenceServesAll(t *testing.T) {
	b := testBench(t)
	for _, v := range b.handoffVariants(8) {
		s, err := v.measure()
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if s.ok != b.count || s.allLost() != 0 {
			t.Errorf("%s: %d served of %d, lost %v", v.name, s.ok, b.count, s.lost)
		}
		if s.cpu <= 0 || s.p50 <= 0 || s.p99 < s.p50 || s.resident["dispatcher"] == 0 {
			t.Errorf("%s: %+v", v.name, s)
		}
	}
}

// What is lost is counted, by its kind, and does not stop the load.
func TestLoadCountsLost(t *testing.T) {
	b := testBench(t)
	port, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.load(loadSpec{port: port, clients: 4, count: 50, limit: time.Second})
	if err != nil || r.ok != 0 || r.lost["refused"] != 50 {
		t.Errorf("load on a closed port: %+v, %v", r, err)
	}
}

// A process that ends at once is reported with its last words.
func TestFailureTellsWhy(t *testing.T) {
	b := testBench(t)
	if _, err := b.startReference("-x"); err == nil || !strings.Contains(err.Error(), "usage: ref") {
		t.Errorf("start with a bad flag: %v", err)
	}
}

func TestExcerpt(t *testing.T) {
	filler := strings.Repeat("info: listening\n", 100)
	for _, c := range []struct{ name, log, want string }{
		{"the end", filler + "error: no such file\n", "error: no such file"},
		{"a crash", filler + "fatal error: netpoll failed\n" + filler, "fatal error: netpoll failed; info"},
		{"a panic", "panic: no\n" + filler, "panic: no; info"},
	} {
		got := excerpt([]byte(c.log))
		if !strings.Contains(got, c.want) || len(got) > 600 || strings.Contains(got, "\n") {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
