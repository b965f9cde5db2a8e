package binder

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/dispatch"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
	"socketbox/internal/sockdiag"
)

// This file counts sessions truly although the dispatcher has let their sockets
// go: the kernel tells the binder when a socket ends, and the binder tells the
// dispatcher. docs/decisions/0010-sessions.md has the argument.

const (
	// eventPause is how long the binder lets events gather after some came: a
	// wake-up for each would cost more than all the rest of the count.
	eventPause = 2 * time.Millisecond
	// eventRoom is the buffer for events that is asked for, in bytes; an event
	// takes about 1 KiB. Where the caller may not have that much, it is net.core.rmem_max.
	eventRoom = 2 << 20
	// maxBehind bounds what waits for a dispatcher that does not read: past it,
	// ends are not queued but looked for again once it does.
	maxBehind = 4096
	// behindPause is how long the binder waits then.
	behindPause = time.Second
	// againPause is how often the binder recounts while connections wait, and
	// againShare bounds what that costs: a fiftieth of one processor.
	againPause = time.Second
	againShare = 50
)

// tracker is the binder's part in counting sessions.
type tracker struct {
	file     *dispatch.Sessions // nil until a table has limits
	fd       int
	where    map[uint32]*diag // of listeners that ever had sessions, by ID
	listened map[*diag]bool   // somebody reads its events

	running atomic.Bool // a recount
	again   atomic.Bool // and another one, as soon as it is done
	lost    atomic.Uint64
	counts  atomic.Uint64 // recounts
	took    atomic.Int64  // the last one, nanoseconds
	ticking bool          // lookAgain runs
}

// limitsSessions says whether rules of t limit sessions.
func (t *table) limitsSessions() bool {
	for i := range t.plan.Table.Rules {
		if !t.plan.Table.Rules[i].Sessions.IsZero() {
			return true
		}
	}
	return false
}

// limited returns the listeners whose connections a rule with a limit may take.
func (t *table) limited() []*listener {
	var all []*listener
	for i, l := range t.listeners {
		if l.description.Network == listen.TCP && limitedAt(t.plan.Table, i) {
			all = append(all, l)
		}
	}
	return all
}

func limitedAt(t *rule.Table, listener int) bool {
	for i := range t.Rules {
		r := &t.Rules[i]
		if !r.Sessions.IsZero() && (r.Listeners == nil || containsInt(r.Listeners, listener)) {
			return true
		}
	}
	return false
}

func containsInt(list []int, v int) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// trackSessions gets ready to count the sessions of t, before it is in force.
// Where that is impossible the table is refused: a limit that does not hold is
// none.
func (b *binder) trackSessions(t *table) error {
	if !t.limitsSessions() {
		return nil
	}
	tr := &b.tracker
	if tr.file == nil {
		fd, err := dispatch.NewSessionsFile()
		if err != nil {
			return err
		}
		if tr.file, err = dispatch.MapSessions(fd); err != nil {
			unix.Close(fd)
			return err
		}
		tr.fd, tr.where, tr.listened = fd, map[uint32]*diag{}, map[*diag]bool{}
	}
	for _, l := range t.limited() {
		d := b.diagOf(l)
		if d == nil {
			return withHint(fmt.Errorf("max_sessions: sessions of listener %s can't be counted: its network namespace can't be looked into", l.description.Name),
				"start or reload as root; Linux 5.14 or newer is needed")
		}
		tr.where[l.id] = d
		port := l.description.Port
		if l.description.AnyPort() {
			port = 0
		}
		if err := d.hear(port); err != nil {
			return fmt.Errorf("max_sessions: %w", err)
		}
		if !tr.listened[d] {
			tr.listened[d] = true
			go b.attendEvents(d)
		}
		if !tr.ticking {
			tr.ticking = true
			go b.lookAgain()
		}
	}
	return nil
}

// settleSessions follows a table that has come in force: without limits nothing
// is heard any more; with limits what lives already is counted.
func (b *binder) settleSessions() {
	if b.tracker.file == nil {
		return
	}
	if !b.active.limitsSessions() {
		for d := range b.tracker.listened {
			if err := d.deafen(); err != nil {
				b.log.Warn("sessions", "reason", err)
			}
		}
		return
	}
	if b.before < 0 && b.yield == nil { // else first comes what the instance before has on hold
		b.seedSessions()
	}
}

// sendSessions gives a new dispatcher the file, ahead of the first table that
// needs it.
func (b *binder) sendSessions(c *child, t *table) error {
	if c.remembers || !t.limitsSessions() {
		return nil
	}
	fd, err := duplicate(b.tracker.fd)
	if err != nil {
		return err
	}
	c.remembers = true
	c.link.send(privsep.Message{Kind: privsep.Sessions, Table: t.id, FDs: []int{fd}})
	return nil
}

// attendEvents reads what the kernel tells of the ends of sockets, for as long as
// the process lives.
func (b *binder) attendEvents(d *diag) {
	buf := make([]byte, sockdiag.EventBuffer)
	missed := false
	for {
		var ended []uint64
		var err error
		waitErr := d.raw.Read(func(fd uintptr) bool {
			err = sockdiag.ReadEvents(int(fd), buf, privsep.MaxCookies, func(s *sockdiag.Socket) {
				if len(ended) < privsep.MaxCookies {
					ended = append(ended, s.Cookie)
				}
			})
			return len(ended) > 0 || missed || !errors.Is(err, unix.EAGAIN)
		})
		if waitErr != nil {
			return
		}
		if len(ended) > 0 {
			b.calls <- func() { b.tellEnded(ended) }
		}
		switch {
		case err == nil: // there may be more
		case errors.Is(err, sockdiag.ErrLost):
			missed = true
		case !errors.Is(err, unix.EAGAIN):
			b.log.Error("what the kernel says of sockets is not understood", "reason", err)
			time.Sleep(time.Second)
			missed = true
		default:
			if missed { // only now: until it has been read empty the kernel drops events without a word
				missed = false
				b.tracker.lost.Add(1)
				b.recountSessions(0)
			}
			time.Sleep(eventPause)
		}
	}
}

// lookAgain recounts now and then while connections wait for sessions to end. The
// kernel may keep the socket of one that its daemon has closed for a minute, if the
// client does not close its side (tcp_fin_timeout, tcp(7)): such a session is over.
func (b *binder) lookAgain() {
	tr := &b.tracker
	for {
		time.Sleep(max(againPause, againShare*time.Duration(tr.took.Load())))
		b.calls <- func() {
			if b.sessionsAwaited() {
				b.recountSessions(0)
			}
		}
	}
}

// sessionsAwaited says whether connections of a rule with a limit wait.
func (b *binder) sessionsAwaited() bool {
	for i := range b.active.plan.Table.Rules {
		if !b.active.plan.Table.Rules[i].Sessions.IsZero() && b.active.counters.Rule(i).Snapshot().Waiting > 0 {
			return true
		}
	}
	return b.active.gateClosed(b.tracker.file)
}

// gateClosed says whether all sessions of a rule are taken, so that clients may
// wait in a backlog.
func (t *table) gateClosed(file *dispatch.Sessions) bool {
	if !t.limitsSessions() || file == nil {
		return false
	}
	live := map[int32]int{}
	file.Each(func(s *dispatch.Session) { live[s.Rule]++ })
	for i := range t.plan.Table.Rules {
		if limit := t.plan.Table.Rules[i].Sessions; limit.Max > 0 && live[int32(i)] >= limit.Max {
			return true
		}
	}
	return false
}

// tellEnded tells the dispatcher that sockets are gone.
func (b *binder) tellEnded(cookies []uint64) {
	c := b.child
	if c == nil || !c.remembers {
		return // the next one begins with a recount
	}
	if c.link.behind() > maxBehind {
		b.tracker.lost.Add(1)
		b.recountSessions(behindPause)
		return
	}
	for len(cookies) > 0 {
		n := min(len(cookies), privsep.MaxCookies)
		c.link.send(privsep.Message{Kind: privsep.Ended, Ended: cookies[:n]})
		cookies = cookies[n:]
	}
}

// recountSessions looks, beside the loop, which of the sessions that the
// dispatcher remembers are gone: events were lost, or nobody was there to hear
// them. One at a time; asked for meanwhile, it is done once more.
func (b *binder) recountSessions(after time.Duration) {
	tr := &b.tracker
	tr.again.Store(true)
	if !tr.running.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(after, func() {
		b.calls <- func() { go b.recount(maps.Clone(tr.where)) }
	})
}

func (b *binder) recount(where map[uint32]*diag) {
	tr := &b.tracker
	for tr.again.Swap(false) {
		tr.counts.Add(1)
		begun := time.Now()
		var remembered []dispatch.Session
		tr.file.Each(func(s *dispatch.Session) { remembered = append(remembered, *s) })
		gone, err := goneOf(remembered, where)
		tr.took.Store(int64(time.Since(begun)))
		if err != nil {
			b.log.Error("sessions can't be counted", "reason", err)
		}
		if len(gone) > 0 {
			b.calls <- func() { b.tellEnded(gone) }
		}
	}
	tr.running.Store(false)
	if tr.again.Load() { // asked for between the two lines above
		b.recountSessions(0)
	}
}

// goneOf returns those of sessions whose sockets are no more. What a list of the
// namespace's sockets does not have is asked for by name: a list that is made
// while sockets come and go may lack one.
func goneOf(sessions []dispatch.Session, where map[uint32]*diag) ([]uint64, error) {
	by := map[*diag][]*dispatch.Session{}
	for i := range sessions {
		if d := where[sessions[i].Listener]; d != nil {
			by[d] = append(by[d], &sessions[i])
		}
	}
	var gone []uint64
	for d, sessions := range by {
		live := map[uint64]bool{}
		err := d.dump(sockdiag.Query{States: sockdiag.Connections}, func(s *sockdiag.Socket) error {
			if !s.Ended() {
				live[s.Cookie] = true
			}
			return nil
		})
		if err != nil {
			return gone, err
		}
		for _, s := range sessions {
			if !live[s.Cookie] && !d.lives(s) {
				gone = append(gone, s.Cookie)
			}
		}
	}
	return gone, nil
}

// lives asks for one session's socket, of either family that it may have.
func (d *diag) lives(s *dispatch.Session) bool {
	socket := sockdiag.Socket{Cookie: s.Cookie, Local: s.Local(), Remote: s.Remote()}
	families := []uint8{unix.AF_INET6}
	if s.Remote().Addr().Is4() {
		families = []uint8{unix.AF_INET, unix.AF_INET6} // the latter where IPV6_ADDRFORM was refused
	}
	for _, socket.Family = range families {
		if _, err := d.alive(&socket); !errors.Is(err, sockdiag.ErrGone) {
			return true
		}
	}
	return false
}

// seedSessions counts, beside the loop, what lives and is not remembered: handed
// off before a limit was set, or by an earlier instance.
func (b *binder) seedSessions() {
	c, active := b.child, b.active
	places := map[*diag]*places{}
	for _, l := range active.listeners {
		if d := b.diagOf(l); d != nil {
			if places[d] == nil {
				places[d] = newPlaces()
			}
			places[d].add(l)
		}
	}
	limited := map[*diag]map[uint16]bool{}
	for _, l := range active.limited() {
		if l.description.AnyPort() {
			continue // nothing tells its connections from others then
		}
		d := b.tracker.where[l.id]
		if limited[d] == nil {
			limited[d] = map[uint16]bool{}
		}
		limited[d][l.description.Port] = true
	}
	go func() {
		var found []dispatch.Session
		for d, ports := range limited {
			for port := range ports {
				found = append(found, d.sessionsAt(port, places[d], b.log)...)
			}
		}
		b.calls <- func() {
			if b.child == c && c != nil && len(found) > 0 {
				b.sendForeign(c, found)
				go b.tellGone(found, maps.Clone(b.tracker.where))
			}
			b.recountSessions(0)
		}
	}()
}

// tellGone tells the dispatcher, which has just been given sessions to count, of
// those whose end it was told before it knew them.
func (b *binder) tellGone(given []dispatch.Session, where map[uint32]*diag) {
	gone, err := goneOf(given, where)
	if err != nil {
		b.log.Error("sessions can't be counted", "reason", err)
	}
	if len(gone) > 0 {
		b.calls <- func() { b.tellEnded(gone) }
	}
}

// sessionsAt lists the connections to a port that some process has, as sessions of
// the listeners that they came by.
func (d *diag) sessionsAt(port uint16, p *places, log *slog.Logger) []dispatch.Session {
	var found []dispatch.Session
	err := d.dump(sockdiag.Query{States: sockdiag.Connections, LocalPort: port}, func(s *sockdiag.Socket) error {
		if l := p.of(s.Local); l != nil && s.Inode != 0 && len(found) < rule.MaxSessions {
			found = append(found, dispatch.NewSession(s.Cookie, l.id, unmapped(s.Remote), unmapped(s.Local)))
		}
		return nil
	})
	if err != nil {
		log.Error("sessions that live already can't be counted", "port", port, "reason", err)
	}
	return found
}

// sendForeign has the dispatcher count sessions that it does not remember.
func (b *binder) sendForeign(c *child, found []dispatch.Session) {
	fd, err := privsep.SealedFile(dispatch.EncodeSessions(found))
	if err != nil {
		b.log.Error("sessions that live already can't be counted", "reason", err)
		return
	}
	c.link.send(privsep.Message{Kind: privsep.Sessions, Value: privsep.Foreign, FDs: []int{fd}})
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
