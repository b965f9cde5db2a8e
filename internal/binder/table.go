package binder

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/dispatch"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// listener is a listening socket that the binder owns.
type listener struct {
	id          uint32 // for the dispatcher, never used twice
	description listen.Description
	fd          int    // -1: closed
	steering    int    // what brings it its connections; -1: nothing has to
	bound       uint16 // port, also where the kernel chose it; 0: none
	namespace   uint64 // inode; 0: unknown
	guarded     bool   // passed on, it can't be turned around
	standing    *standing
	allowed     *allowed           // to borrow it
	base        dispatch.Counts    // under earlier tables
	handOff     dispatch.Histogram // under earlier tables
}

// table is a configuration made ready to be installed: what is in force, or
// what a reload wants to put in force. Start-up and reload differ in nothing
// but where the first one comes from.
type table struct {
	id           uint32
	cfg          *config.Config
	plan         *dispatch.Plan
	destinations []config.Destination
	listeners    []*listener
	allowed      []*allowed // by listener
	planFD       int
	countersFD   int
	counters     *dispatch.Counters
	before       earlier
	maps         []*mapFile // owned: each table has its share
}

// makeTable compiles cfg for the given listeners, in the same order; maps are
// the contents of its tables, in order, and go to the table. The caller owns the
// table and closes it.
func (b *binder) makeTable(cfg *config.Config, listeners []*listener, maps []*mapFile) (*table, error) {
	rules, destinations, err := cfg.Table()
	if err != nil {
		releaseAll(maps)
		return nil, err
	}
	b.lastTable++
	t := &table{id: b.lastTable, cfg: cfg, destinations: destinations, listeners: listeners, planFD: -1, countersFD: -1}
	t.plan = &dispatch.Plan{
		LogLevel: b.h.Options.LogLevel, LogFormat: b.h.Options.LogFormat, LogConnections: b.h.Options.LogConnections,
		HoldTotal: holdTotal(cfg), Table: rules,
	}
	b.shareMaps(t, maps)
	for i, l := range listeners {
		lend := cfg.Listeners[i].Lend
		who, err := allow(lend.Users, lend.Groups)
		if err != nil {
			t.close()
			return nil, fmt.Errorf("listener %s: %w", l.description.Name, err)
		}
		t.allowed = append(t.allowed, who)
		p := planOf(l)
		p.Limit = cfg.Listeners[i].Limit
		p.Kept = l.standing.under(verdictOn(cfg, i)).state != Connection
		t.plan.Listeners = append(t.plan.Listeners, p)
	}
	err = t.makeFiles()
	if err == nil {
		err = b.trackSessions(t)
	}
	if err != nil {
		t.close()
		return nil, err
	}
	t.counters.Trace(len(b.tracers) > 0)
	return t, nil
}

func (t *table) makeFiles() error {
	encoded, err := t.plan.Encode()
	if err != nil {
		return fmt.Errorf("encode the table: %w", err)
	}
	if len(encoded) > dispatch.MaxPlan {
		return fmt.Errorf("the table takes %d bytes, at most %d", len(encoded), dispatch.MaxPlan)
	}
	if t.planFD, err = privsep.SealedFile(encoded); err != nil {
		return err
	}
	if t.countersFD, err = dispatch.NewCountersFile(t.plan); err != nil {
		return err
	}
	t.counters, err = dispatch.MapCounters(t.plan, t.countersFD)
	return err
}

func (t *table) close() {
	for _, fd := range []int{t.planFD, t.countersFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, m := range t.maps {
		m.release()
	}
	t.counters.Unmap()
}

// indexOf returns the place of a listener, also under an earlier name.
func (t *table) indexOf(l *listener) int {
	for i, own := range t.listeners {
		if own.id == l.id {
			return i
		}
	}
	return -1
}

// listenerByID returns a listener of the table, or nil.
func (t *table) listenerByID(id uint32) *listener {
	for _, l := range t.listeners {
		if l.id == id {
			return l
		}
	}
	return nil
}

// names returns the listeners' names as the resolver needs them.
func (t *table) names() []string {
	var names []string
	for _, l := range t.listeners {
		names = append(names, l.description.Name)
	}
	return names
}

// planOf says what the dispatcher needs to know of a listener.
func planOf(l *listener) dispatch.ListenerPlan {
	d := l.description
	p := dispatch.ListenerPlan{ID: l.id, Name: d.Name, Port: d.Port, Address: d.Address.Unmap().WithZone("")}
	switch {
	case d.Network == "unix":
		p.Family, p.Address = privsep.Unix, netip.Addr{}
	case d.Both:
		p.Address = netip.Addr{}
	case d.Address.Unmap().Is4():
		p.Family = privsep.IPv4
	default:
		p.Family = privsep.IPv6
	}
	if d.AnyPort() {
		p.Port, p.Address = 0, netip.Addr{} // any port and address is delivered
	}
	return p
}

// holdTotal is hold_total, by default half of RLIMIT_NOFILE: the rest is for
// listeners, sinks and what is in hand.
func holdTotal(cfg *config.Config) int {
	if cfg.HoldTotal > 0 {
		return cfg.HoldTotal
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return rule.MaxListeners
	}
	return int(min(lim.Cur/2, 1<<20))
}

// sendTable gives a verified dispatcher all listeners, the maps that it has
// not, and the table. Until it says that the table is in force, the resolver
// answers for the one before.
func (b *binder) sendTable(c *child, t *table) error {
	for i, l := range t.listeners {
		if t.plan.Listeners[i].Kept {
			continue // openKept follows, should that have changed
		}
		fd, err := b.dispatchable(l)
		if err != nil {
			return err
		}
		c.link.send(privsep.Message{Kind: privsep.Listener, Table: t.id, ID: l.id, FDs: []int{fd}})
	}
	for _, m := range t.maps {
		if c.maps[m.id] {
			continue
		}
		fd, err := duplicate(m.fd)
		if err != nil {
			return err
		}
		c.link.send(privsep.Message{Kind: privsep.Map, Table: t.id, ID: m.id, FDs: []int{fd}})
	}
	if err := b.sendSessions(c, t); err != nil {
		return err
	}
	plan, err := duplicate(t.planFD)
	if err != nil {
		return err
	}
	counters, err := duplicate(t.countersFD)
	if err != nil {
		unix.Close(plan)
		return err
	}
	c.sent = t.id
	c.link.send(privsep.Message{Kind: privsep.Table, Table: t.id, ID: t.id, FDs: []int{plan, counters}})
	return nil
}

func duplicate(fd int) (int, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return dup, nil
}

// targetPath shows where a target leads, for status and check.
func targetPath(d config.Destination) string {
	switch {
	case d.Paths != nil:
		return fmt.Sprintf("%d paths", d.Paths.Len())
	case len(d.Sockets) == 0:
		return ""
	}
	var paths []string
	for _, s := range d.Sockets {
		paths = append(paths, filepath.Clean(s.String())+dirMark(s))
	}
	return strings.Join(paths, ", ")
}

func dirMark(t rule.Template) string {
	if t.IsDir() {
		return "/"
	}
	return ""
}
