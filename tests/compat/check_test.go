//go:build compat

package compat

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// sight is what a daemon says of a connection, and what is true. What it does
// not say is zero.
type sight struct {
	client, server         netip.AddrPort
	trueClient, trueServer netip.AddrPort
	note                   string // what must be as with the native daemon
}

// A cell of the table.
type cell struct {
	good   bool
	text   string // what is written if it is good or does not apply
	reason string // why it is red
}

func good(text string) cell               { return cell{good: true, text: text} }
func red(format string, args ...any) cell { return cell{reason: fmt.Sprintf(format, args...)} }
func (c cell) String() string {
	return map[bool]string{true: c.text, false: "RED: " + c.reason}[c.good]
}
func dialer(from string) *net.Dialer {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return d
}

// row is a daemon's line in the table.
type row struct {
	daemon *daemon
	cells  map[string]cell
	ratio  float64
}

const (
	cellIPv4    = "IPv4"
	cellIPv6    = "IPv6"
	cellAddress = "addresses"
	cellReload  = "reload"
	cellLoad    = "load"
	cellCrash   = "crash"
	cellSpecial = "special"
	cellLent    = "lent"
)

var columns = []string{cellIPv4, cellIPv6, cellAddress, cellReload, cellLoad, cellCrash, cellSpecial, cellLent}

// TestCompatibility runs every daemon and writes the table.
func TestCompatibility(t *testing.T) {
	var rows []*row
	whole := true
	for _, d := range daemons {
		ran := false
		t.Run(d.name, func(t *testing.T) {
			ran = true
			r := &row{daemon: d, cells: map[string]cell{}}
			rows = append(rows, r)
			r.fill(t)
		})
		whole = whole && ran
	}
	if *output == "" || *control {
		return
	}
	if !whole {
		t.Logf("not every daemon ran: %s stays as it is", *output)
		return
	}
	if err := os.WriteFile(*output, []byte(table(rows)), 0o644); err != nil {
		t.Error(err)
	}
}

// fill runs a daemon natively and preloaded and compares them. A red cell
// fails the test unless it is known to be red.
func (r *row) fill(t *testing.T) {
	defer func() {
		for _, c := range columns {
			got, ok := r.cells[c]
			if !ok {
				continue
			}
			known, isKnown := r.daemon.reds[c]
			switch {
			case !got.good && isKnown:
				r.cells[c] = red("%s", known)
				t.Logf("%s: known to be red (%s): %s", c, known, got.reason)
			case !got.good:
				t.Errorf("%s: %s", c, got.reason)
			case isKnown:
				t.Errorf("%s: said to be red (%s), but is not", c, known)
			default:
				t.Logf("%s: %s", c, got.text)
			}
		}
	}()
	native, err := start(t, r.daemon, false)
	if err == nil {
		err = native.serves()
	}
	if err != nil {
		t.Fatalf("natively: %v\n%s", err, native.log.tail(20))
	}
	loaded, err := start(t, r.daemon, !*control)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("natively:\n%s\npreloaded:\n%s", native.log.tail(30), loaded.log.tail(60))
		}
	})
	if err == nil {
		err = loaded.serves()
	}
	if err != nil {
		for _, c := range columns[:5] {
			r.cells[c] = red("it does not serve: %s", neutral(err))
		}
		return
	}
	r.families(native, loaded)
	r.load(native, loaded)
	r.reload(native, loaded)
	if r.daemon.special != nil {
		r.cells[cellSpecial] = special(native, loaded)
	}
	if !*control {
		r.cells[cellCrash] = crash(loaded)
		loaded.kill()
		r.cells[cellLent] = lent(t, r.daemon)
	}
}

// crash kills the daemon, lets clients come, and starts it again.
func crash(i *instance) cell {
	i.kill()
	result := make(chan load, 1)
	go func() { result <- i.crowd(20, 20, 0, nil) }()
	time.Sleep(300 * time.Millisecond)
	if err := i.begin(); err != nil {
		return red("%s", neutral(err))
	}
	if l := <-result; l.failed > 0 {
		return red("%d of 20 failed: %s", l.failed, neutral(l.err))
	}
	return good("served")
}

func special(native, loaded *instance) cell {
	if err := native.special(native); err != nil {
		return red("natively: %s", neutral(err))
	}
	if err := loaded.special(loaded); err != nil {
		return red("%s", neutral(err))
	}
	return good("yes")
}

// families checks that clients of both families are served and seen as they
// are.
func (r *row) families(native, loaded *instance) {
	addresses := good("true")
	say := func(c cell) {
		if addresses.good {
			addresses = c
		}
	}
	for _, family := range []string{"4", "6"} {
		if *control && family == "6" && r.daemon.listens == "4" {
			continue
		}
		name, from, server := cellIPv4, client4, server4
		if family == "6" {
			name, from, server = cellIPv6, client6, server6
		}
		if r.daemon.loopback {
			from = map[string]string{"4": "127.0.0.1", "6": "::1"}[family]
			server = from
		}
		s, err := loaded.report(loaded, dialer(from), server)
		if err != nil {
			r.cells[name] = red("%s", neutral(err))
			continue
		}
		r.cells[name] = good("served")
		if family == "6" && r.daemon.listens == "4" {
			r.cells[name] = good("served, as 240.0.0.0/4")
			if !netip.MustParsePrefix("240.0.0.0/4").Contains(s.client.Addr()) {
				say(red("an IPv6 client of an IPv4 listener is seen as %s", s.client.Addr()))
			}
			continue
		}
		n, err := native.report(native, dialer(from), server)
		if err != nil {
			say(red("natively: %s", neutral(err)))
			continue
		}
		say(same("client", s.client, s.trueClient, n.client))
		say(same("server", s.server, s.trueServer, n.server))
		if s.note != n.note {
			say(red("%q, natively %q", s.note, n.note))
		}
		addresses.text = told(s)
	}
	r.cells[cellAddress] = addresses
}

// told says which addresses a daemon tells.
func told(s *sight) string {
	part := func(name string, a netip.AddrPort) string {
		switch {
		case !a.Addr().IsValid() && a.Port() == 0:
			return name + " not told"
		case !a.Addr().IsValid():
			return name + " port true"
		case a.Port() == 0:
			return name + " true (no port told)"
		}
		return name + " true"
	}
	if s.client.Addr().IsValid() && s.client.Port() != 0 && s.server.Addr().IsValid() && s.server.Port() != 0 {
		return "true"
	}
	return part("client", s.client) + ", " + part("server", s.server)
}

// same compares what a daemon says of an address with the truth, and its form
// with that of the native daemon.
func same(what string, got, truth, native netip.AddrPort) cell {
	if got.Addr().IsValid() != native.Addr().IsValid() || got.Addr().Is4In6() != native.Addr().Is4In6() {
		return red("the %s address reads %v, natively %v", what, got.Addr(), native.Addr())
	}
	if got.Addr().IsValid() && got.Addr().Unmap() != truth.Addr().Unmap() {
		return red("the %s address is %v, the daemon says %v", what, truth.Addr(), got.Addr())
	}
	if got.Port() != 0 && truth.Port() != 0 && got.Port() != truth.Port() {
		return red("the %s port is another one than the daemon says", what)
	}
	return good("")
}

const (
	rounds  = 4   // of each load, native and preloaded in turn
	clients = 100 // at once
	// A load that is over sooner is repeated, else the rate says nothing.
	longEnough = time.Second
	repeats    = 8
)

func (r *row) load(native, loaded *instance) {
	count := r.daemon.requests
	if count == 0 {
		count = 2000
	}
	var n, l load
	for i := 0; i < rounds || i < rounds*repeats && n.took < longEnough; i++ {
		n.add(native.crowd(count/rounds, clients, 0, nil))
		l.add(loaded.crowd(count/rounds, clients, 0, nil))
	}
	r.ratio = l.rate() / n.rate()
	r.daemon.note(native, "natively %d of %d requests failed, %.0f/s (%v)", n.failed, n.served+n.failed, n.rate(), n.err)
	r.daemon.note(native, "handed off %d of %d requests failed, %.0f/s (%v), ratio %.2f", l.failed, l.served+l.failed, l.rate(), l.err, r.ratio)
	if l.failed > 0 {
		r.cells[cellLoad] = red("%d of %d failed (natively %d): %s", l.failed, l.served+l.failed, n.failed, neutral(l.err))
		return
	}
	text := "0 errors"
	if n.failed > 0 {
		text += " (some natively)"
	}
	r.cells[cellLoad] = good(text)
}

func (d *daemon) note(i *instance, format string, args ...any) {
	i.t.Helper()
	i.t.Logf(format, args...)
}

// reload makes the daemon reload three times while it serves.
func (r *row) reload(native, loaded *instance) {
	if r.daemon.reload == 0 && r.daemon.upgrade == nil {
		r.cells[cellReload] = good("–")
		return
	}
	n, err := native.reloadUnderLoad()
	if err != nil {
		r.cells[cellReload] = red("natively: %v", err)
		return
	}
	l, err := loaded.reloadUnderLoad()
	if err != nil {
		r.cells[cellReload] = red("%v", err)
		return
	}
	r.daemon.note(native, "reload: natively %d served, %d lost (%v); handed off %d served, %d lost (%v)", n.served, n.failed, n.err, l.served, l.failed, l.err)
	r.cells[cellReload] = lost(l, n)
}

// lost compares the requests that a reload cost with those of the native daemon.
func lost(l, n load) cell {
	switch {
	case l.failed > n.failed:
		return red("%d requests lost (natively %d): %s", l.failed, n.failed, neutral(l.err))
	case l.failed > 0:
		return good(fmt.Sprintf("%d lost (natively %d)", l.failed, n.failed))
	case n.failed > 0:
		return good("0 lost (some natively)")
	}
	return good("0 lost")
}

func (i *instance) reloadUnderLoad() (load, error) {
	before := i.reloads()
	stop := make(chan struct{})
	result := make(chan load, 1)
	go func() { result <- i.crowd(20_000, 4, time.Millisecond, stop) }()
	var err error
	for range 3 {
		time.Sleep(700 * time.Millisecond)
		e := error(nil)
		if i.upgrade != nil {
			e = i.upgrade(i)
		} else {
			e = i.signal(i.daemon.reload)
		}
		if err == nil {
			err = e
		}
	}
	time.Sleep(1500 * time.Millisecond)
	close(stop)
	l := <-result
	if err == nil && i.ended() {
		err = fmt.Errorf("the daemon ended: %s", i.log.tail(3))
	}
	if n := i.reloads() - before; err == nil && n != 3 {
		err = fmt.Errorf("of three reloads the daemon says %q to %d", i.reloaded, n)
	}
	return l, err
}
