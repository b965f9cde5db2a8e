package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A flood has clients that come as fast as they can, of policy SCHED_IDLE
// (sched(7)): what is measured is what socketbox makes the others wait, not what the
// flood's own clients, which share their processors, take from them.
const (
	floodClients  = 16
	floodSources  = 1_000_000
	otherClients  = 2
	otherInterval = 10 * time.Millisecond
	floodTime     = 5 * time.Second  // of a flood, and of the others beside it
	allTime       = 10 * time.Minute // the longest that all sources may take
	perSource     = "500/s"          // more than the others ask for
)

// Names of the variants; ratios refer to the first.
const (
	noFlood       = "nobody floods"
	sourceFlood   = "one address, the rest waits"
	rejectedFlood = "one address, the rest is reset"
	networkFlood  = "the addresses of one /64, the rest waits"
	rejectedNet   = "the addresses of one /64, the rest is reset"
	allFlood      = "1,000,000 addresses, each a source"
)

// floodTable measures what a flood of a listener with a limit per source does to
// other clients of that listener, and to the dispatcher's memory. Clients and
// listener are in a namespace of their own.
func (b *bench) floodTable() error {
	if b.reference {
		fmt.Fprintln(b.log, "flood: socketbox alone has these limits; left out")
		return nil
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(b.log, "flood: takes root; left out")
		return nil
	}
	namespace, remove, err := b.floodNamespace()
	if err != nil {
		return err
	}
	defer remove()
	one := loadSpec{source: "127.8.0.1", sources: 1}
	v6 := loadSpec{address: "2001:db8:ffff::1", source: "2001:db8:1:1::", sources: floodSources}
	short := []*variant{
		b.floodVariant(noFlood, namespace, "wait", nil),
		b.floodVariant(sourceFlood, namespace, "wait", &one),
		b.floodVariant(rejectedFlood, namespace, "reject", &one),
		b.floodVariant(networkFlood, namespace, "wait", &v6),
		b.floodVariant(rejectedNet, namespace, "reject", &v6),
	}
	if err := b.measureRounds("flood", short); err != nil {
		return err
	}
	long := &variant{name: allFlood, clients: otherClients}
	if err := b.floodFromAll(long, namespace); err != nil {
		return err
	}
	b.title("A flood", fmt.Sprintf("A listener with `per_source = %q` in a namespace; %d clients flood it as fast as they can, %d others come every %v from one other address. Latencies of the others in µs, and how many of them were lost; connections of the flood in a second, served or not. Aim: others' p99 at most twice that without a flood.",
		perSource, floodClients, otherClients, otherInterval))
	b.head("the flood comes from", "flood conn/s", "others' p50", "p99", "of the first", "p99.9", "lost", "dispatcher KiB")
	for _, v := range append(short, long) {
		if v.err != nil {
			b.failedRow(v)
			continue
		}
		b.row(v.name, whole(v.of(extraOf)), whole(v.of(p50Of)), whole(v.of(p99Of)), ratio(v, short[0], p99Of), whole(v.of(p999Of)), v.lost(), fmt.Sprint(v.resident()["dispatcher"]))
	}
	return nil
}

// floodNamespace makes a network namespace in which a client may have any address
// of 127.0.0.0/8 and 2001:db8::/32; remove takes it away.
func (b *bench) floodNamespace() (name string, remove func(), err error) {
	name = fmt.Sprintf("socketbox-bench-%d", os.Getpid())
	run := func(command string) error {
		words := strings.Fields(strings.ReplaceAll(command, "NAME", name))
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, excerpt(out))
		}
		return nil
	}
	if err := run("ip netns add NAME"); err != nil {
		return "", nil, err
	}
	remove = func() {
		if err := run("ip netns del NAME"); err != nil {
			fmt.Fprintln(b.log, "flood:", err)
		}
	}
	for _, command := range []string{
		"ip -n NAME link set lo up",
		"ip -n NAME -6 route add local 2001:db8::/32 dev lo",
		"ip netns exec NAME sysctl -qw net.ipv6.ip_nonlocal_bind=1",
	} {
		if err := run(command); err != nil {
			remove()
			return "", nil, err
		}
	}
	return name, remove, nil
}

// floodVariant measures the others beside a flood of that time; nil is none.
func (b *bench) floodVariant(name, namespace, over string, flood *loadSpec) *variant {
	return &variant{name: name, clients: otherClients, measure: func() (sample, error) {
		s, err := b.startLimited(namespace, over)
		if err != nil {
			return sample{}, err
		}
		defer s.stop()
		if flood == nil {
			return b.sampleLoad(s, own, floodOthers(s, namespace))
		}
		running, err := b.startFlood(s, namespace, *flood, floodTime)
		if err != nil {
			return sample{}, err
		}
		defer running.stop()
		taken, err := b.sampleLoad(s, own, floodOthers(s, namespace))
		if err != nil {
			return sample{}, err
		}
		result, err := finishLoad(running)
		taken.extra = result.visits()
		return taken, err
	}}
}

// floodFromAll floods once, until every one of the flood's sources has been there and
// was served, and measures the others all the while: a sample for each floodTime.
func (b *bench) floodFromAll(v *variant, namespace string) error {
	s, err := b.startLimited(namespace, "wait")
	if err != nil {
		return err
	}
	defer s.stop()
	running, err := b.startFlood(s, namespace, loadSpec{source: "127.64.0.0", sources: floodSources}, allTime)
	if err != nil {
		return err
	}
	defer running.stop()
	for !running.hasEnded() {
		taken, err := b.sampleLoad(s, own, floodOthers(s, namespace))
		if err != nil {
			return err
		}
		v.samples = append(v.samples, taken)
		fmt.Fprintf(b.log, "flood, all sources: p99 %v beside it\n", taken.p99)
	}
	result, err := running.loadResult()
	if err != nil {
		return err
	}
	if result.ok != floodSources {
		return fmt.Errorf("%d of the flood's %d sources were served", result.ok, floodSources)
	}
	for i := range v.samples {
		v.samples[i].extra = result.visits()
	}
	return nil
}

// startLimited starts a binder whose listener in the namespace has a limit per source.
func (b *bench) startLimited(namespace, over string) (*server, error) {
	return b.startBeside(func(port int) string {
		return fmt.Sprintf("address = \":%d\"\nnetns = %q\nper_source = %q\nover = %q\n", port, namespace, perSource, over)
	})
}

// floodOthers are the clients that a flood may not disturb.
func floodOthers(s *server, namespace string) loadSpec {
	return loadSpec{port: s.port, clients: otherClients, count: floodSources, limit: floodTime, interval: otherInterval, within: inNamespace(namespace)}
}

// startFlood starts a flood, which ends once each of its sources has been there, or
// after limit.
func (b *bench) startFlood(s *server, namespace string, flood loadSpec, limit time.Duration) (*process, error) {
	flood.port, flood.clients, flood.count = s.port, floodClients, floodSources
	flood.limit = limit
	flood.within = append(inNamespace(namespace), "chrt", "--idle", "0")
	return b.startLoad(flood)
}

func inNamespace(name string) []string { return []string{"ip", "netns", "exec", name} }
