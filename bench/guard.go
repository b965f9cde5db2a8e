package main

import (
	"fmt"
	"os"
)

// Names of the variants; ratios refer to the first.
const (
	pumpNative    = "its own listener"
	pumpLent      = "lent, guard off"
	pumpGuarded   = "lent, guard on"
	guardClients  = 64
	guardTransfer = 4
)

// guardTables measures what the guard costs: its programs see every packet that
// comes to a socket which the binder has bound, wherever that has been passed to.
func (b *bench) guardTables() error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(b.log, "guard: takes root; left out")
		return nil
	}
	nginx := "/usr/sbin/nginx"
	var bulk, short []*variant
	for _, v := range []struct {
		name  string
		start func(s *server) error
		with  nginxStart
	}{
		{pumpNative, func(s *server) error { return s.pumpServer(b, "") }, (*server).native},
		{pumpLent, func(s *server) error { return s.pumpServer(b, "off") }, lentBy("off")},
		{pumpGuarded, func(s *server) error { return s.pumpServer(b, "required") }, lentBy("required")},
	} {
		bulk = append(bulk, &variant{name: v.name, clients: guardTransfer, measure: func() (sample, error) { return b.samplePumpAt(v.start, guardTransfer) }})
		if _, err := os.Stat(nginx); err == nil {
			short = append(short, &variant{name: v.name, clients: guardClients, measure: func() (sample, error) {
				return b.sampleServer(func() (*server, error) { return b.startNginx(nginx, v.with) }, tree, loadSpec{clients: guardClients, count: b.count, limit: b.limit})
			}})
		}
	}
	if err := b.measureRounds("guard", bulk, short); err != nil {
		return err
	}
	b.title("The guard", fmt.Sprintf("Bulk: %d streams from a client to a server that reads, on loopback; CPU of the server in s per GiB, with what the kernel does for it. Short: nginx, two workers, %d clients, a connection for each request; CPU in µs per connection.", guardTransfer, guardClients))
	b.head("server", "load", "GiB/s or conn/s", "of the first", "CPU", "of the first", "lost")
	for _, v := range bulk {
		if v.err != nil {
			b.failedRow(v)
			continue
		}
		b.row(v.name, "bulk", exact(v.of(bytesOf)), ratio(v, bulk[0], bytesOf), exact(v.of(perGiB)), ratio(v, bulk[0], perGiB), v.lost())
	}
	for _, v := range short {
		if v.err != nil {
			b.failedRow(v)
			continue
		}
		b.row(v.name, "short", whole(v.of(rateOf)), ratio(v, short[0], rateOf), exact(v.of(cpuOf)), ratio(v, short[0], cpuOf), v.lost())
	}
	return nil
}

type nginxStart func(s *server, b *bench, command []string) (*process, error)

// lentBy starts nginx where its listener is lent by a binder with that guard.
func lentBy(guard string) nginxStart {
	return func(s *server, b *bench, command []string) (*process, error) {
		return s.borrowing(b, command, "--guard", guard)
	}
}

// pumpServer starts the reading end of the pump, on its own listener or, by the
// preload library, on one that a binder with that guard lends.
func (s *server) pumpServer(b *bench, guard string) error {
	command := []string{b.tool("pump"), "-s", "-p", fmt.Sprint(s.port)}
	if guard == "" {
		return s.measure(b, command[0], command[1:]...)
	}
	p, err := s.borrowing(b, command, "--guard", guard)
	if err == nil {
		s.measured = []int{p.pid}
	}
	return err
}
