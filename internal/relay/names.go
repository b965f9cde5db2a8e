package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// nameLife is how long a name's addresses are used: a connection's look-up
	// is at most this old. A crowd of clients then asks once a second.
	nameLife = time.Second
	// lookups bounds how many names are asked for at once, and with it the
	// descriptors that this takes.
	lookups = 16
	// maxNames bounds what is remembered; templates can make any number.
	maxNames = 4096
)

// names turns names to addresses, for all workers. The resolver is Go's: it
// reads /etc/resolv.conf and /etc/hosts of the process, again when they
// change, and asks from the process's own network namespace.
type names struct {
	resolver net.Resolver
	slots    chan struct{}

	mu    sync.Mutex
	known map[string]*name
}

// name is a look-up, running or done.
type name struct {
	waiters []func([]netip.Addr, error) // while it runs
	done    time.Time                   // zero while it runs
	addrs   []netip.Addr
}

func newNames() *names {
	return &names{
		resolver: net.Resolver{PreferGo: true},
		slots:    make(chan struct{}, lookups),
		known:    make(map[string]*name),
	}
}

// lookUp calls then with the addresses of host, in any goroutine, perhaps at
// once. limit bounds the time of a look-up that it begins.
func (n *names) lookUp(host string, limit time.Duration, then func([]netip.Addr, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := n.known[host]; got != nil {
		switch {
		case got.done.IsZero():
			got.waiters = append(got.waiters, then)
			return
		case time.Since(got.done) < nameLife:
			go then(got.addrs, nil)
			return
		}
	}
	if len(n.known) >= maxNames {
		n.forgetDone()
	}
	n.known[host] = &name{waiters: []func([]netip.Addr, error){then}}
	go n.ask(host, limit)
}

// ask asks the resolver and tells all who wait.
func (n *names) ask(host string, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var addrs []netip.Addr
	var err error
	select {
	case n.slots <- struct{}{}:
		addrs, err = n.resolver.LookupNetIP(ctx, "ip", host)
		<-n.slots
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		err = fmt.Errorf("look up %s: %w", host, err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	n.mu.Lock()
	got := n.known[host]
	if err != nil {
		delete(n.known, host) // asked again by the next connection
	}
	waiters := got.waiters
	got.waiters, got.done, got.addrs = nil, time.Now(), addrs
	n.mu.Unlock()
	for _, then := range waiters {
		then(addrs, err)
	}
}

// forget makes every name be looked up again.
func (n *names) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetDone()
}

func (n *names) forgetDone() {
	for host, got := range n.known {
		if !got.done.IsZero() {
			delete(n.known, host)
		}
	}
}

// interleave orders addresses for a race of both families (RFC 8305): the
// resolver's first one, then one of the other family, and so on in turn.
func interleave(addrs []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr
	first := 0
	for i, a := range addrs {
		family := 0
		if a.Is4() {
			family = 1
		}
		if i == 0 {
			first = family
		}
		families[family] = append(families[family], a)
	}
	mixed := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(families[0]), len(families[1])) {
		for _, family := range []int{first, 1 - first} {
			if i < len(families[family]) {
				mixed = append(mixed, families[family][i])
			}
		}
	}
	return mixed
}
