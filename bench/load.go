package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// loadSpec is what the load program shall do.
type loadSpec struct {
	address     string // "": 127.0.0.1
	port, ports int    // consecutive ports, taken in turn; ports 0 means one
	clients     int
	count       int           // connections at most
	limit       time.Duration // time at most
	interval    time.Duration // pause of each client between connections
	request     string        // what a client sends; "": the server speaks first
	source      string        // the first address that clients come from; "": the kernel's choice
	sources     int           // consecutive addresses, taken in turn
	within      []string      // words before the program's name: another namespace, another priority
}

// loadResult is what the load program printed.
type loadResult struct {
	ok       int
	lost     map[string]int // by kind, without those that are 0
	elapsed  time.Duration
	p50, p99 time.Duration // from connect to the end of the answer
	p999     time.Duration
}

func (r loadResult) allLost() int {
	n := 0
	for _, count := range r.lost {
		n += count
	}
	return n
}

// rate returns connections served per second.
func (r loadResult) rate() float64 {
	return float64(r.ok) / r.elapsed.Seconds()
}

// visits returns connections per second, whatever became of them.
func (r loadResult) visits() float64 {
	return float64(r.ok+r.allLost()) / r.elapsed.Seconds()
}

// startLoad starts the load program; finishLoad must follow.
func (b *bench) startLoad(l loadSpec) (*process, error) {
	args := []string{
		"-p", strconv.Itoa(l.port), "-k", strconv.Itoa(max(l.ports, 1)),
		"-c", strconv.Itoa(l.clients), "-m", strconv.Itoa(b.threads), "-n", strconv.Itoa(l.count),
		"-t", strconv.FormatFloat(l.limit.Seconds(), 'f', 3, 64),
		"-i", strconv.FormatInt(l.interval.Microseconds(), 10),
	}
	if l.address != "" {
		args = append(args, "-a", l.address)
	}
	if l.request != "" {
		args = append(args, "-q", l.request)
	}
	if l.source != "" {
		args = append(args, "-s", l.source, "-o", strconv.Itoa(l.sources))
	}
	words := append(append(slices.Clone(l.within), b.tool("load")), args...)
	return b.start(words[0], words[1:]...)
}

// load runs the load program to its end.
func (b *bench) load(l loadSpec) (loadResult, error) {
	p, err := b.startLoad(l)
	if err != nil {
		return loadResult{}, err
	}
	// The clients' own patience, which load.c bounds, comes on top.
	const grace = 15 * time.Second
	select {
	case <-p.ended:
	case <-time.After(l.limit + grace):
		p.stop()
		return loadResult{}, errors.New("the load did not end in time")
	case <-b.ctx.Done():
		p.stop()
		return loadResult{}, b.ctx.Err()
	}
	return p.loadResult()
}

// finishLoad ends a load program before its time.
func finishLoad(p *process) (loadResult, error) {
	p.stop()
	return p.loadResult()
}

// loadResult reads what an ended load program printed.
func (p *process) loadResult() (loadResult, error) {
	if p.err != nil {
		return loadResult{}, p.failure()
	}
	text, err := os.ReadFile(p.output)
	if err != nil {
		return loadResult{}, err
	}
	return parseLoad(string(text))
}

// parseLoad reads the last line, of key=value pairs; lines before it are
// clients' complaints.
func parseLoad(text string) (loadResult, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	r := loadResult{lost: map[string]int{}}
	for _, pair := range strings.Fields(lines[len(lines)-1]) {
		key, word, _ := strings.Cut(pair, "=")
		value, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return r, fmt.Errorf("parse the load's %q: %w", pair, err)
		}
		r.set(key, value)
	}
	if r.elapsed <= 0 {
		return r, fmt.Errorf("parse the load's line %q: no time", lines[len(lines)-1])
	}
	return r, nil
}

func (r *loadResult) set(key string, value float64) {
	switch key {
	case "ok":
		r.ok = int(value)
	case "seconds":
		r.elapsed = time.Duration(value * float64(time.Second))
	case "p50":
		r.p50 = time.Duration(value) * time.Microsecond
	case "p99":
		r.p99 = time.Duration(value) * time.Microsecond
	case "p999":
		r.p999 = time.Duration(value) * time.Microsecond
	default:
		if value > 0 {
			r.lost[key] = int(value)
		}
	}
}
