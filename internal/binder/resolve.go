package binder

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

const (
	// settleTime is how long a better receiver is waited for before a less
	// specific one is used: a daemon binds its sockets one after another.
	settleTime = 200 * time.Millisecond
	// pollEvery is how often a receiver that connections wait for is looked
	// for, should inotify(7) have missed it.
	pollEvery = 250 * time.Millisecond
	// firstRetry is the pause before a socket that has just failed is tried
	// again unchanged; it doubles up to pollEvery.
	firstRetry = 10 * time.Millisecond
	// maxRoutes bounds what a dispatcher may ask for: twice what a sound one
	// remembers.
	maxRoutes = 2 * 8192
)

// resolver answers the dispatcher's question where a connection goes: it
// finds the receiving socket that serves a route, connects it, and notices
// when that changes. It holds no descriptor: they go to the dispatcher.
type resolver struct {
	log   *slog.Logger
	send  func(privsep.Message) // owns the message's descriptors
	watch *watcher
	now   func() time.Time

	table     uint32
	targets   []config.Destination
	listeners []string // names, by index in the plan

	routes   map[uint32]*route
	byPath   map[string]map[*route]bool // routes that have the path among theirs
	sinks    map[string]*sink           // by sink name
	sinkByID map[uint32]*sink
	lastSink uint32
	due      map[*route]time.Time // look again then
	denied   map[string]time.Time // when a refused access was last logged
}

// route is a question that the dispatcher asked.
type route struct {
	id     uint32
	target uint32   // index in targets
	dir    string   // that must exist
	nobody string   // name of the sink while no candidate is there
	paths  []string // most specific first
	chosen int      // index in paths; len(paths): none
	used   int      // the last that was chosen, also when it has gone since
	gone   time.Time
	sink   *sink
}

// sink is a resolved path, or, with an empty path, the want of one.
type sink struct {
	id       uint32
	version  uint32
	name     string
	path     string
	routes   map[*route]bool
	live     bool
	file     identity  // of the socket file when it was connected
	wanted   bool      // connections wait
	alive    time.Time // when it was connected last
	failures int
	retry    time.Time // not before
}

// identity tells one socket file from the next at the same path.
type identity struct {
	dev, ino uint64
	changed  unix.Timespec
}

func newResolver(log *slog.Logger, watch *watcher) *resolver {
	return &resolver{
		log: log, watch: watch, now: time.Now,
		routes: map[uint32]*route{}, byPath: map[string]map[*route]bool{},
		sinks: map[string]*sink{}, sinkByID: map[uint32]*sink{},
		due: map[*route]time.Time{}, denied: map[string]time.Time{},
	}
}

// reset forgets everything: table is in force now, and the dispatcher asks
// anew.
func (r *resolver) reset(table uint32, targets []config.Destination, listeners []string) {
	r.table, r.targets, r.listeners = table, targets, listeners
	clear(r.routes)
	clear(r.byPath)
	clear(r.sinks)
	clear(r.sinkByID)
	clear(r.due)
	r.watch.keep(nil)
}

// want answers a Want of the dispatcher. An error means that the dispatcher
// asked what it may not.
func (r *resolver) want(m privsep.Message) error {
	if len(r.routes) >= maxRoutes {
		return fmt.Errorf("%w: more than %d routes", privsep.ErrProtocol, maxRoutes)
	}
	if r.routes[m.ID] != nil {
		return fmt.Errorf("%w: route %d asked for twice", privsep.ErrProtocol, m.ID)
	}
	rt, err := r.expand(m)
	if err != nil {
		return err
	}
	r.routes[rt.id] = rt
	for _, p := range rt.paths {
		if r.byPath[p] == nil {
			r.byPath[p] = map[*route]bool{}
		}
		r.byPath[p][rt] = true
	}
	if err := r.watch.add(rt.dir); err != nil && !errors.Is(err, unix.ENOENT) {
		r.complain(rt.dir, err)
	}
	r.resolve(rt)
	return nil
}

// expand makes the paths of a route from the configuration and the facts that
// the dispatcher sent, which are checked: it may be in hostile hands.
func (r *resolver) expand(m privsep.Message) (*route, error) {
	if int(m.Key.Target) >= len(r.targets) || int(m.Key.Listener) > len(r.listeners) {
		return nil, fmt.Errorf("%w: target %d, listener %d", privsep.ErrProtocol, m.Key.Target, m.Key.Listener)
	}
	facts := rule.Facts{Port: m.Key.Port, Local: m.Key.Local, Remote: m.Key.Remote, Family: m.Key.Family.String()}
	if m.Key.Listener > 0 {
		facts.Listener = r.listeners[m.Key.Listener-1]
	}
	template, ok := r.targets[m.Key.Target].Place(int(m.Key.Place))
	if !ok {
		return nil, fmt.Errorf("%w: place %d of target %d", privsep.ErrProtocol, m.Key.Place, m.Key.Target)
	}
	rt := &route{id: m.ID, target: m.Key.Target}
	rt.dir, rt.paths = expandPaths(template, facts)
	if template.IsDir() {
		rt.nobody = fmt.Sprintf("nobody for port %d in %s", facts.Port, rt.dir)
	}
	rt.chosen, rt.used = len(rt.paths), len(rt.paths)
	return rt, nil
}

// drop forgets a route.
func (r *resolver) drop(id uint32) {
	rt := r.routes[id]
	if rt == nil {
		return
	}
	delete(r.routes, id)
	delete(r.due, rt)
	for _, p := range rt.paths {
		if delete(r.byPath[p], rt); len(r.byPath[p]) == 0 {
			delete(r.byPath, p)
		}
	}
	r.leave(rt)
	r.watch.remove(rt.dir)
}

// resolve decides where rt goes now, and tells the dispatcher if that is
// news: to the most specific receiver that lives; a dead socket file means
// that its daemon restarts, so it is waited for.
func (r *resolver) resolve(rt *route) {
	_, settling := r.due[rt]
	delete(r.due, rt)
	if !isDirectory(rt.dir) {
		r.send(privsep.Message{Kind: privsep.Route, Table: r.table, ID: rt.id})
		r.drop(rt.id)
		return
	}
	for i, path := range rt.paths {
		file, err := identityOf(path)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) {
				r.complain(path, err)
			}
			continue
		}
		if wait := r.settling(rt, i, file); wait > 0 {
			r.due[rt] = r.now().Add(wait)
			if !settling && rt.sink != nil {
				r.hope(rt.sink)
			}
			break
		}
		rt.chosen, rt.used = i, i
		s := r.sinkFor(path, path)
		if again := r.refresh(s, file); again > 0 {
			r.due[rt] = r.now().Add(again)
		}
		r.lead(rt, s)
		return
	}
	if rt.chosen < len(rt.paths) {
		rt.chosen, rt.gone = len(rt.paths), r.now()
	}
	if len(rt.paths) == 1 {
		s := r.sinkFor(rt.paths[0], rt.paths[0])
		r.absent(s)
		r.lead(rt, s)
		return
	}
	// Routes of both families of a port wait together, so that a listener
	// with nobody behind it needs to accept no more than one connection.
	r.lead(rt, r.sinkFor(rt.nobody, ""))
}

// settling returns how long candidate i of rt is not to be used yet, because
// a better one may be about to appear.
func (r *resolver) settling(rt *route, i int, file identity) time.Duration {
	switch {
	case i == 0, i == rt.used, rt.chosen < len(rt.paths) && i < rt.chosen:
		return 0 // the best, the same as before or back again, or better than that
	case rt.chosen < i:
		rt.gone, rt.chosen = r.now(), len(rt.paths)
	}
	since := time.Unix(file.changed.Unix())
	if rt.gone.After(since) {
		since = rt.gone
	}
	return settleTime - r.now().Sub(since)
}

// refresh connects s anew if its socket file is another than before, or if it
// failed and the time has come to try again. Access to a file that has just
// been made may be refused until its maker has set the rights: then refresh
// returns when to look again, and complains only if that has not helped.
func (r *resolver) refresh(s *sink, file identity) (again time.Duration) {
	now := r.now()
	if s.file != file {
		s.failures, s.retry = 0, time.Time{}
	}
	if s.live && s.file == file || now.Before(s.retry) {
		return 0
	}
	s.file = file
	fd, err := handoff.Connect(s.path)
	if err != nil {
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
			if again = settleTime - now.Sub(time.Unix(file.changed.Unix())); again <= 0 {
				r.complain(s.path, err)
			}
		}
		r.absent(s)
		r.backOff(s)
		return max(again, 0)
	}
	s.live, s.wanted, s.alive = true, false, now
	s.version++
	r.send(privsep.Message{Kind: privsep.Sink, Table: r.table, ID: s.id, Value: s.version, State: privsep.Live, FDs: []int{fd}})
	return 0
}

// absent tells the dispatcher to hold what goes to s.
func (r *resolver) absent(s *sink) {
	if !s.live && s.version > 0 {
		return
	}
	s.live = false
	s.version++
	r.send(privsep.Message{Kind: privsep.Sink, Table: r.table, ID: s.id, Value: s.version, State: privsep.Absent})
}

// hope tells the dispatcher that s, which it may have given up, is about to be
// served: connections are to be held again.
func (r *resolver) hope(s *sink) {
	if s.live {
		return
	}
	s.version++
	r.send(privsep.Message{Kind: privsep.Sink, Table: r.table, ID: s.id, Value: s.version, State: privsep.Absent})
}

// backOff puts the next attempt on an unchanged socket file off.
func (r *resolver) backOff(s *sink) {
	pause := min(firstRetry<<min(s.failures, 10), pollEvery)
	s.failures++
	s.retry = r.now().Add(pause)
}

// sinkFor returns the sink with that name, a new one, announced, if there is
// none.
func (r *resolver) sinkFor(name, path string) *sink {
	if s := r.sinks[name]; s != nil {
		return s
	}
	r.lastSink++
	s := &sink{id: r.lastSink, name: name, path: path, routes: map[*route]bool{}}
	r.sinks[name], r.sinkByID[s.id] = s, s
	if path == "" {
		r.absent(s)
	}
	return s
}

// lead makes s the sink of rt and tells the dispatcher.
func (r *resolver) lead(rt *route, s *sink) {
	if rt.sink == s {
		return
	}
	s.routes[rt] = true
	old := rt.sink
	rt.sink = s
	r.send(privsep.Message{Kind: privsep.Route, Table: r.table, ID: rt.id, Value: s.id})
	if old != nil {
		s.wanted = s.wanted || old.wanted && !s.live
		delete(old.routes, rt)
		r.forgetIfUnused(old)
	}
}

// leave takes rt from its sink. The dispatcher does the same on its side: a
// sink ends with its last route.
func (r *resolver) leave(rt *route) {
	if s := rt.sink; s != nil {
		rt.sink = nil
		delete(s.routes, rt)
		r.forgetIfUnused(s)
	}
}

func (r *resolver) forgetIfUnused(s *sink) {
	if len(s.routes) == 0 {
		delete(r.sinks, s.name)
		delete(r.sinkByID, s.id)
	}
}

// stuck notes that connections wait for sink m.ID, which has failed as of
// version m.Value, and looks at once whether that has changed.
func (r *resolver) stuck(m privsep.Message) {
	s := r.sinkByID[m.ID]
	if s == nil || s.version != m.Value {
		return
	}
	s.wanted = true
	if s.live {
		if s.live = false; r.now().Sub(s.alive) > time.Second {
			s.failures = 0
		}
		r.backOff(s)
		s.version++ // the dispatcher knows it as absent already
		r.send(privsep.Message{Kind: privsep.Sink, Table: r.table, ID: s.id, Value: s.version, State: privsep.Absent})
	}
	r.resolveAll(s)
}

func (r *resolver) resolveAll(s *sink) {
	for rt := range s.routes {
		r.resolve(rt)
	}
}

// changed notes that something happened at path, or to the directory path.
func (r *resolver) changed(path string) {
	for rt := range r.byPath[path] {
		r.resolve(rt)
	}
	if r.watch.has(path) {
		r.watch.renew(path)
		for _, rt := range r.routes {
			if rt.dir == path {
				r.resolve(rt)
			}
		}
	}
}

// tick looks again at what is due, and returns when to come back; zero if
// there is nothing to wait for.
func (r *resolver) tick() time.Time {
	now := r.now()
	for rt, at := range r.due {
		if !now.Before(at) {
			r.resolve(rt)
		}
	}
	next := time.Time{}
	for _, s := range r.sinks {
		if !s.wanted || s.live {
			continue
		}
		if s.retry.IsZero() || !now.Before(s.retry) {
			r.resolveAll(s)
			if s.live {
				continue
			}
			if !now.Before(s.retry) {
				s.retry = now.Add(pollEvery)
			}
		}
		next = earliest(next, s.retry)
	}
	for _, at := range r.due {
		next = earliest(next, at)
	}
	return next
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func identityOf(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return identity{}, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if err := unix.Stat(path, &st); err != nil {
			return identity{}, err
		}
	}
	return identity{dev: st.Dev, ino: st.Ino, changed: st.Ctim}, nil
}

func isDirectory(path string) bool {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// resolveEverything looks at all routes again, after events were lost.
func (r *resolver) resolveEverything() {
	for _, rt := range r.routes {
		r.resolve(rt)
	}
}
