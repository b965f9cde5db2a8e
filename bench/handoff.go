package main

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Connections before each measured load: the first ones pay for page faults
// and caches.
const warmUp = 500

// Names of the variants; ratios refer to the first.
const (
	cReference      = "C reference"
	cReferenceBatch = "C reference, SCHED_BATCH"
	oneAddress      = "socketbox, one address"
	bothFamilies    = "socketbox, both families"
)

// goals are the shares of the reference's figures that the project aims at.
// They are printed, not enforced: a busy machine must not fail a build.
var goals = []struct {
	clients   int
	cpu, rate float64 // at most, at least
}{
	{64, 0.60, 1.00},
	{8, 0.75, 1.00},
}

// handoffTable measures one dispatcher with one listener and one target.
func (b *bench) handoffTable() error {
	var groups [][]*variant
	for _, clients := range []int{1, 8, 64} {
		groups = append(groups, b.handoffVariants(clients))
	}
	if err := b.measureRounds("handoff", groups...); err != nil {
		return err
	}
	b.title("Hand-off", "CPU is that of the dispatching process alone, in µs per connection; p50 and p99 run from connect to the end of the answer, in µs.")
	b.head("variant", "clients", "CPU µs", "of C", "conn/s", "of C", "p50", "p99", "lost")
	var all []*variant
	for _, group := range groups {
		for _, v := range group {
			b.handoffRow(v, group[0])
			all = append(all, v)
		}
	}
	b.printBinder(all)
	b.printResident(all)
	for _, group := range groups {
		b.printGoals(group)
	}
	return nil
}

func (b *bench) handoffVariants(clients int) []*variant {
	starters := []struct {
		name  string
		start func() (*server, error)
	}{
		{cReference, func() (*server, error) { return b.startReference() }},
		{cReferenceBatch, func() (*server, error) { return b.startReference("-b") }},
		{oneAddress, func() (*server, error) { return b.startSocketbox("127.0.0.1") }},
		{bothFamilies, func() (*server, error) { return b.startSocketbox("") }},
	}
	if b.reference {
		starters = starters[:2]
	}
	var group []*variant
	for _, s := range starters {
		group = append(group, &variant{name: s.name, clients: clients, measure: func() (sample, error) {
			return b.sampleServer(s.start, own, loadSpec{clients: clients, count: b.count, limit: b.limit})
		}})
	}
	return group
}

// sampleServer starts a server, warms it up, loads it and stops it. part
// chooses what counts of a process's CPU time. The port is the server's.
func (b *bench) sampleServer(start func() (*server, error), part func(before, after cpuTime) time.Duration, l loadSpec) (sample, error) {
	s, err := start()
	if err != nil {
		return sample{}, err
	}
	defer s.stop()
	l.port, l.request = s.port, s.request
	warm := l
	warm.count = min(warmUp, l.count)
	if _, err := b.load(warm); err != nil {
		return sample{}, err
	}
	return b.sampleLoad(s, part, l)
}

// sampleLoad measures a running server under one load.
func (b *bench) sampleLoad(s *server, part func(before, after cpuTime) time.Duration, l loadSpec) (sample, error) {
	pids := append(append([]int{}, s.measured...), s.extra...)
	before, err := readCPUs(pids)
	if err != nil {
		return sample{}, err
	}
	result, err := b.load(l)
	if err != nil {
		return sample{}, err
	}
	// The dispatcher closes, and a parent waits, after the client has gone.
	time.Sleep(20 * time.Millisecond)
	after, err := readCPUs(pids)
	if err != nil {
		return sample{}, err
	}
	if err := s.alive(); err != nil {
		return sample{}, err
	}

	connections := float64(max(result.ok+result.allLost(), 1))
	n := len(s.measured)
	taken := sample{
		loadResult: result,
		cpu:        microseconds(sum(part, before[:n], after[:n])) / connections,
		extra:      microseconds(sum(part, before[n:], after[n:])) / connections,
		resident:   map[string]int{},
	}
	for role, pid := range s.resident {
		if taken.resident[role], err = residentKiB(pid); err != nil {
			return sample{}, err
		}
	}
	return taken, nil
}

// startReceiver starts the receiver on a new socket as part of a server.
func (s *server) startReceiver(b *bench) (path string, err error) {
	dir, err := b.socketDir()
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "bench.sock")
	if _, err := s.add(b, b.tool("receiver"), path); err != nil {
		return "", err
	}
	return path, s.awaitFile(b, path)
}

// withReceiver starts a receiver, and with run whatever is to hand connections of
// the server's port to the receiver's path.
func (b *bench) withReceiver(run func(s *server, path string) error) (*server, error) {
	s := &server{}
	path, err := s.startReceiver(b)
	if err == nil {
		s.port, err = freePorts(1)
	}
	if err == nil {
		err = run(s, path)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startReference starts the C reference with a receiver behind it.
func (b *bench) startReference(flags ...string) (*server, error) {
	return b.withReceiver(func(s *server, path string) error {
		ref, err := s.add(b, b.tool("ref"), append(flags, strconv.Itoa(s.port), path)...)
		if err != nil {
			return err
		}
		s.measured = []int{ref.pid}
		s.resident = map[string]int{"dispatcher": ref.pid}
		return s.awaitServed(b, s.port)
	})
}

// startSocketbox starts `socketbox bind` on one port of a host with a receiver
// behind it; the empty host is both families.
func (b *bench) startSocketbox(host string) (*server, error) {
	return b.withReceiver(func(s *server, path string) error {
		return s.addBinder(b, s.port, "--listen", net.JoinHostPort(host, strconv.Itoa(s.port)), "--target", path)
	})
}

// addBinder starts `socketbox bind`, waits until a client of port is served
// and notes whose CPU and memory are measured. Its socket directory is one of
// the bench, never the machine's.
func (s *server) addBinder(b *bench, port int, args ...string) error {
	dir, err := b.socketDir()
	if err != nil {
		return err
	}
	s.dir = filepath.Join(dir, "main")
	binder, err := s.add(b, b.program("socketbox"), append([]string{"bind", "--dir", s.dir}, args...)...)
	if err != nil {
		return err
	}
	if err := s.awaitServed(b, port); err != nil {
		return err
	}
	const title = "socketbox: dispatcher"
	dispatchers := childrenTitled(binder.pid, title)
	if len(dispatchers) != 1 {
		return fmt.Errorf("socketbox bind (pid %d) has %d children titled %q", binder.pid, len(dispatchers), title)
	}
	dispatcher := dispatchers[0]
	s.measured = append(s.measured, dispatcher)
	s.extra = append(s.extra, binder.pid)
	if s.resident == nil {
		s.resident = map[string]int{}
	}
	s.resident["binder"], s.resident["dispatcher"] = binder.pid, dispatcher
	return nil
}

func (b *bench) handoffRow(v, base *variant) {
	if v.err != nil {
		b.failedRow(v)
		return
	}
	b.row(v.name, fmt.Sprint(v.clients),
		exact(v.of(cpuOf)), ratio(v, base, cpuOf),
		whole(v.of(rateOf)), ratio(v, base, rateOf),
		whole(v.of(p50Of)), whole(v.of(p99Of)), v.lost())
}

// printBinder shows that what the dispatcher saves is not done by the binder.
func (b *bench) printBinder(variants []*variant) {
	most := 0.0
	for _, v := range variants {
		if v.err == nil {
			most = max(most, v.of(extraOf).median)
		}
	}
	if !b.reference {
		fmt.Fprintf(b.out, "\nCPU of the binder besides: at most %.2f µs per connection.\n", most)
	}
}

// printGoals compares the one-address variant of a group with the goals.
func (b *bench) printGoals(group []*variant) {
	i := slices.IndexFunc(group, func(v *variant) bool { return v.name == oneAddress })
	base := group[0]
	if i < 0 || group[i].err != nil || base.err != nil {
		return
	}
	cpu := group[i].of(cpuOf).median / base.of(cpuOf).median
	rate := group[i].of(rateOf).median / base.of(rateOf).median
	for _, goal := range goals {
		if goal.clients == base.clients {
			fmt.Fprintf(b.out, "\nGoals at %d clients: CPU per connection %.2f of the reference (at most %.2f: %s), connections/s %.2f (at least %.2f: %s).\n",
				goal.clients, cpu, goal.cpu, met(cpu <= goal.cpu), rate, goal.rate, met(rate >= goal.rate))
		}
	}
}

func met(yes bool) string {
	if yes {
		return "met"
	}
	return "missed"
}
