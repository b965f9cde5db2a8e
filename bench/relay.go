package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	relayClients = 64
	pumpTime     = 2 * time.Second
	gibibyte     = 1 << 30
)

// pumpStreams are the numbers of connections that the throughput is measured
// with.
var pumpStreams = []int{1, 16}

// proxy is a program that connects its clients on with another port.
type proxy struct {
	name  string
	start func(s *server, b *bench, from, to int) error
}

// relayTables measure socketbox-relay beside what Debian has for the same: bytes
// per second and per CPU time, and new connections.
func (b *bench) relayTables() error {
	proxies, notes := b.proxies()
	var throughput, connections [][]*variant
	for _, streams := range pumpStreams {
		var group []*variant
		for _, p := range proxies {
			group = append(group, &variant{name: p.name, clients: streams, measure: func() (sample, error) { return b.samplePump(p, streams) }})
		}
		throughput = append(throughput, group)
	}
	var group []*variant
	for _, p := range proxies {
		group = append(group, &variant{name: p.name, clients: relayClients, measure: func() (sample, error) { return b.sampleProxied(p) }})
	}
	connections = append(connections, group)
	if err := b.measureRounds("relay", append(throughput, connections...)...); err != nil {
		return err
	}
	b.title("A relay: bytes", "One direction, as much as goes for 2 s, in pieces of 128 KiB; each stream is counted at both ends. CPU is that of the relaying processes alone.")
	b.head("variant", "streams", "GiB/s", "of the best", "CPU s per GiB", "of the best", "bad")
	for _, group := range throughput {
		b.pumpRows(group)
	}
	b.title("A relay: connections", "A new connection and one short HTTP request each, to nginx with two workers. CPU is that of the relaying processes alone, in µs per connection; latencies in µs.")
	b.head("variant", "clients", "conn/s", "of the best", "CPU µs", "of the best", "p50", "p99", "lost")
	for _, v := range group {
		b.proxiedRow(v, group)
	}
	for _, note := range notes {
		fmt.Fprintf(b.out, "\nLeft out: %s.\n", note)
	}
	return nil
}

// bytesOf, perGiB: what a throughput sample is about.
func bytesOf(s sample) float64 { return float64(s.bytes) / gibibyte / s.elapsed.Seconds() }
func perGiB(s sample) float64  { return s.cpu / 1e6 }

// best returns the others' best median: the first variant is no proxy, the last
// is socketbox-relay.
func best(group []*variant, value func(sample) float64, more bool) float64 {
	found := 0.0
	for _, v := range group[1 : len(group)-1] {
		if len(v.samples) == 0 {
			continue
		}
		if m := v.of(value).median; found == 0 || (m > found) == more {
			found = m
		}
	}
	return found
}

func ofBest(v *variant, group []*variant, value func(sample) float64, more bool) string {
	b := best(group, value, more)
	if b == 0 || v == group[0] {
		return "-"
	}
	return fmt.Sprintf("%.2f", v.of(value).median/b)
}

func (b *bench) pumpRows(group []*variant) {
	for _, v := range group {
		if v.err != nil {
			b.failedRow(v)
			continue
		}
		cpu, ofCPU := "-", "-"
		if v != group[0] {
			cpu, ofCPU = hundredths(v.of(perGiB)), ofBest(v, group, perGiB, false)
		}
		b.row(v.name, fmt.Sprint(v.clients), hundredths(v.of(bytesOf)), ofBest(v, group, bytesOf, true), cpu, ofCPU, v.lost())
	}
}

func (b *bench) proxiedRow(v *variant, group []*variant) {
	if v.err != nil {
		b.failedRow(v)
		return
	}
	cpu, ofCPU := "-", "-"
	if v != group[0] {
		cpu, ofCPU = whole(v.of(cpuOf)), ofBest(v, group, cpuOf, false)
	}
	b.row(v.name, fmt.Sprint(v.clients), whole(v.of(rateOf)), ofBest(v, group, rateOf, true), cpu, ofCPU,
		whole(v.of(p50Of)), whole(v.of(p99Of)), v.lost())
}

func hundredths(f figure) string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", f.median, f.least, f.most)
}

// proxies returns those that can run here, and why others can't. The first is
// none, the last is ours.
func (b *bench) proxies() (all []proxy, notes []string) {
	all = []proxy{{"no relay", func(s *server, b *bench, from, to int) error { s.port = to; return nil }}}
	foreign := []struct {
		name, pkg, file string
		start           func(program string) func(s *server, b *bench, from, to int) error
	}{
		{"HAProxy, mode tcp", "haproxy", "usr/sbin/haproxy", startHAProxy},
		{"nginx stream", "libnginx-mod-stream", "usr/lib/nginx/modules/ngx_stream_module.so", startNginxStream},
		{"systemd-socket-proxyd", "systemd", "lib/systemd/systemd-socket-proxyd", startSocketProxyd},
		{"socat, fork", "socat", "usr/bin/socat", startSocat},
	}
	for _, f := range foreign {
		file, err := b.debianProgram(f.pkg, f.file)
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %v", f.name, err))
			continue
		}
		all = append(all, proxy{f.name, f.start(file)})
	}
	if !b.reference {
		all = append(all, proxy{"socketbox-relay", startRelay})
	}
	return all, notes
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func startRelay(s *server, b *bench, from, to int) error {
	return s.measure(b, b.program("socketbox-relay"), "--listen", local(from), "--to", local(to))
}

// startHAProxy starts it with a thread per processor, as it does by itself, and
// with splice(2) where it thinks that right.
func startHAProxy(program string) func(s *server, b *bench, from, to int) error {
	const text = `global
	maxconn 4000
defaults
	mode tcp
	option splice-auto
	timeout connect 5s
	timeout client 1m
	timeout server 1m
listen bench
	bind %s
	server backend %s
`
	return func(s *server, b *bench, from, to int) error {
		path, err := b.writeConfig("haproxy.cfg", fmt.Sprintf(text, local(from), local(to)))
		if err != nil {
			return err
		}
		return s.measure(b, program, "-db", "-f", path)
	}
}

func startNginxStream(module string) func(s *server, b *bench, from, to int) error {
	const text = `load_module MODULE; daemon off; worker_processes 2; pid DIR/pid; error_log stderr error;
events { worker_connections 4096; }
stream { server { listen FROM; proxy_pass TO; proxy_buffer_size 64k; proxy_half_close on; } }
`
	return func(s *server, b *bench, from, to int) error {
		path, err := b.writeConfig("stream.conf", "")
		if err != nil {
			return err
		}
		dir, config := filepath.Dir(path), strings.NewReplacer("MODULE", module, "DIR/pid", path+".pid", "FROM", local(from), "TO", local(to)).Replace(text)
		if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
			return err
		}
		master, err := s.add(b, "/usr/sbin/nginx", "-p", dir, "-c", path)
		if err != nil {
			return err
		}
		if err := s.await(b, "wait for nginx's workers", func() bool { return len(childrenTitled(master.pid, "nginx: worker process")) == 2 }); err != nil {
			return err
		}
		s.measured = childrenTitled(master.pid, "nginx: worker process")
		return nil
	}
}

func startSocketProxyd(program string) func(s *server, b *bench, from, to int) error {
	return func(s *server, b *bench, from, to int) error {
		return s.measure(b, "systemd-socket-activate", "-l", local(from), program, "--connections-max=4000", local(to))
	}
}

func startSocat(program string) func(s *server, b *bench, from, to int) error {
	return func(s *server, b *bench, from, to int) error {
		return s.measure(b, program, "-b", "131072", fmt.Sprintf("TCP4-LISTEN:%d,bind=127.0.0.1,reuseaddr,fork,backlog=1024", from), "TCP4:"+local(to))
	}
}

// measure starts the process whose CPU counts.
func (s *server) measure(b *bench, program string, args ...string) error {
	p, err := s.add(b, program, args...)
	if err == nil {
		s.measured = []int{p.pid}
	}
	return err
}

// front starts a proxy in front of s, whose port then is the proxy's.
func (s *server) front(b *bench, p proxy) error {
	from, err := freePorts(1)
	if err != nil {
		return err
	}
	to := s.port
	s.port, s.measured = from, nil
	return p.start(s, b, from, to)
}

// sampleProxied measures connections to nginx by way of a proxy.
func (b *bench) sampleProxied(p proxy) (sample, error) {
	return b.sampleServer(func() (*server, error) {
		s, err := b.startNginx("/usr/sbin/nginx", (*server).native)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(s.front(b, p), s.awaitServed(b, s.port)); err != nil {
			s.stop()
			return nil, err
		}
		return s, nil
	}, tree, loadSpec{clients: relayClients, count: b.count, limit: b.limit})
}

// samplePump measures bytes by way of a proxy.
func (b *bench) samplePump(p proxy, streams int) (sample, error) {
	return b.samplePumpAt(func(s *server) error {
		if _, err := s.add(b, b.tool("pump"), "-s", "-p", strconv.Itoa(s.port)); err != nil {
			return err
		}
		return s.front(b, p)
	}, streams)
}

// samplePumpAt measures bytes to what start starts on the server's port.
func (b *bench) samplePumpAt(start func(s *server) error, streams int) (_ sample, err error) {
	s := &server{}
	defer s.stop()
	if s.port, err = freePorts(1); err != nil {
		return sample{}, err
	}
	if err := start(s); err != nil {
		return sample{}, err
	}
	pump := func(t time.Duration) (sample, error) { return b.pump(s.port, streams, t) }
	if err := s.await(b, "wait for the relay", func() bool { _, err := pump(50 * time.Millisecond); return err == nil }); err != nil {
		return sample{}, err
	}
	before, err := readCPUs(s.measured)
	if err != nil {
		return sample{}, err
	}
	taken, err := pump(pumpTime)
	if err != nil {
		return sample{}, err
	}
	time.Sleep(100 * time.Millisecond) // until children have been waited for
	after, err := readCPUs(s.measured)
	if err != nil {
		return sample{}, err
	}
	taken.cpu = microseconds(sum(tree, before, after)) / (float64(taken.bytes) / gibibyte)
	return taken, s.alive()
}

// pump runs the pump program once.
func (b *bench) pump(port, streams int, t time.Duration) (sample, error) {
	p, err := b.start(b.tool("pump"), "-p", strconv.Itoa(port), "-c", strconv.Itoa(streams), "-t", strconv.FormatFloat(t.Seconds(), 'f', 3, 64))
	if err != nil {
		return sample{}, err
	}
	select {
	case <-p.ended:
	case <-time.After(t + startPatience):
		p.stop()
		return sample{}, errors.New("the pump did not end in time")
	}
	if p.err != nil {
		return sample{}, p.failure()
	}
	text, err := os.ReadFile(p.output)
	if err != nil {
		return sample{}, err
	}
	var bytes int64
	var seconds float64
	var bad int
	if _, err := fmt.Sscanf(string(text), "bytes=%d seconds=%f bad=%d", &bytes, &seconds, &bad); err != nil {
		return sample{}, fmt.Errorf("parse the pump's %q: %w", text, err)
	}
	taken := sample{bytes: bytes, loadResult: loadResult{elapsed: time.Duration(seconds * float64(time.Second)), lost: map[string]int{}}}
	if bad > 0 {
		taken.lost["streams"] = bad
	}
	return taken, nil
}
