package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Clients of the many-listeners table.
var manyClients = []int{8, 64}

// Clients on the fourth listener, and the pause of each trickle's one client.
var fourthClients = []int{1, 8}

const trickleInterval = 10 * time.Millisecond

// listenersTables measures one dispatcher that has more than one listener.
func (b *bench) listenersTables() error {
	if b.reference {
		fmt.Fprintln(b.log, "listeners: socketbox alone has this table; left out")
		return nil
	}
	if err := b.manyTable(); err != nil {
		return err
	}
	return b.trickleTable()
}

// manyTable measures many listeners, visited in turn, beside one.
func (b *bench) manyTable() error {
	var groups [][]*variant
	for _, clients := range manyClients {
		groups = append(groups, []*variant{b.manyVariant(1, clients), b.manyVariant(b.listeners, clients)})
	}
	if err := b.measureRounds("many listeners", groups...); err != nil {
		return err
	}
	b.title("Many listeners", "One binder with one target; the connections visit its listeners in turn. Latencies in µs.")
	b.printListeners("of one", groups)
	return nil
}

func (b *bench) manyVariant(listeners, clients int) *variant {
	name := fmt.Sprintf("%d listeners", listeners)
	if listeners == 1 {
		name = "1 listener"
	}
	start := func() (*server, error) { return b.startListeners(listeners, 1) }
	return &variant{name: name, clients: clients, measure: func() (sample, error) {
		return b.sampleServer(start, own, loadSpec{ports: listeners, clients: clients, count: b.count, limit: b.limit})
	}}
}

// trickleTable measures the fourth of four listeners, each with a target of
// its own, while the other three have a client now and then, and alone.
func (b *bench) trickleTable() error {
	var groups [][]*variant
	for _, clients := range fourthClients {
		groups = append(groups, []*variant{
			{name: "alone", clients: clients, measure: func() (sample, error) { return b.sampleFourth(clients, 0) }},
			{name: "with three trickles", clients: clients, measure: func() (sample, error) { return b.sampleFourth(clients, 3) }},
		})
	}
	if err := b.measureRounds("trickle", groups...); err != nil {
		return err
	}
	b.title("Three listeners with a trickle", fmt.Sprintf("The fourth of four listeners; on each of the others one client connects, is served and pauses for %v, or nobody does. Latencies in µs; CPU is all of the dispatcher's by the fourth's connections; what the trickles lose counts as lost.", trickleInterval))
	b.printListeners("of alone", groups)
	return nil
}

// sampleFourth measures the last of four listeners.
func (b *bench) sampleFourth(clients, trickles int) (sample, error) {
	s, err := b.startListeners(4, 4)
	if err != nil {
		return sample{}, err
	}
	defer s.stop()
	l := loadSpec{port: s.port + 3, clients: clients, count: min(warmUp, b.count), limit: b.limit}
	if _, err := b.load(l); err != nil {
		return sample{}, err
	}
	running, err := b.startTrickles(s.port, trickles)
	defer stopAll(running)
	if err != nil {
		return sample{}, err
	}
	l.count = b.count
	taken, err := b.sampleLoad(s, own, l)
	if err != nil {
		return sample{}, err
	}
	return taken, addTrickleLosses(taken, running)
}

// startTrickles starts one slow client on each of the first ports.
func (b *bench) startTrickles(port, trickles int) (running []*process, err error) {
	const spare = 5 * time.Second
	limit := b.limit + spare
	for i := range trickles {
		p, err := b.startLoad(loadSpec{
			port: port + i, clients: 1, limit: limit,
			count: int(limit / trickleInterval), interval: trickleInterval,
		})
		if err != nil {
			return running, err
		}
		running = append(running, p)
	}
	return running, nil
}

func stopAll(running []*process) {
	for _, p := range running {
		p.stop()
	}
}

// addTrickleLosses ends the trickles and adds what they lost to the sample.
func addTrickleLosses(s sample, running []*process) error {
	for _, p := range running {
		r, err := finishLoad(p)
		if err != nil {
			return err
		}
		if n := r.allLost(); n > 0 {
			s.lost["of the trickles"] += n
		}
	}
	return nil
}

// startListeners starts one binder with consecutive ports as listeners, which
// share the targets evenly: one for all, or one each.
func (b *bench) startListeners(listeners, targets int) (_ *server, err error) {
	s := &server{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	var paths []string
	for range targets {
		path, err := s.startReceiver(b)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	if s.port, err = freePorts(listeners); err != nil {
		return nil, err
	}
	config, err := b.writeConfig("socketbox.toml", listenersConfig(s.port, listeners, paths))
	if err != nil {
		return nil, err
	}
	return s, s.addBinder(b, s.port+listeners-1, "--config", config)
}

// listenersConfig writes the configuration of a binder: one listener per port,
// one rule per target, or a rule for all if there is one target.
func listenersConfig(port, listeners int, paths []string) string {
	var text strings.Builder
	for i := range listeners {
		fmt.Fprintf(&text, "[[listener]]\nname = \"l%d\"\naddress = \"127.0.0.1:%d\"\n\n", i, port+i)
	}
	if len(paths) == 1 {
		fmt.Fprintf(&text, "[[rule]]\ntarget = %q\n", filepath.ToSlash(paths[0]))
		return text.String()
	}
	for i, path := range paths {
		fmt.Fprintf(&text, "[[rule]]\nlistener = \"l%d\"\ntarget = %q\n\n", i, path)
	}
	return text.String()
}

// printListeners prints groups of variants, each beside the group's first.
func (b *bench) printListeners(of string, groups [][]*variant) {
	b.head("variant", "clients", "CPU µs", "conn/s", "p50", "p99", of, "lost")
	var all []*variant
	for _, group := range groups {
		for _, v := range group {
			all = append(all, v)
			if v.err != nil {
				b.failedRow(v)
				continue
			}
			b.row(v.name, fmt.Sprint(v.clients), exact(v.of(cpuOf)), whole(v.of(rateOf)),
				whole(v.of(p50Of)), whole(v.of(p99Of)), ratio(v, group[0], p99Of), v.lost())
		}
	}
	b.printResident(all)
}
