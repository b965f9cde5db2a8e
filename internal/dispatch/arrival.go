package dispatch

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// An arrival is a table on its way. It is read and compiled apart from the
// worker, on another thread: a map of a million entries takes a second, in which
// the table before it serves. The worker then has nothing to do but to swap
// pointers.

// collectPercent is the worker's setting of the garbage collector: its own
// heap is tiny, and what little garbage there is (a connection that waits for
// its turn) is collected at 2 MB. While maps are compiled, which makes garbage of
// several times their size, it is collectOften.
const (
	collectPercent = 50
	collectOften   = 30
)

// arrival is a table that is complete, or why it is refused.
type arrival struct {
	id       uint32
	plan     *Plan
	counters *Counters
	maps     map[uint32]*rule.Map // by ID
	rules    *rule.Compiled
	err      error
}

// parcel is what an arrival is made of. It owns the descriptors.
type parcel struct {
	id             uint32
	plan, counters int
	known          map[uint32]*rule.Map // of the table in force
	fresh          map[uint32]int       // descriptors of maps that are not known
}

// expect begins to install table m.ID; finishInstall ends it. It owns m.FDs:
// the plan and the counters.
func (w *worker) expect(m privsep.Message) error {
	if w.coming != nil {
		closeAll(m.FDs)
		return fmt.Errorf("%w: a table while another is on its way", privsep.ErrProtocol)
	}
	p := parcel{id: m.ID, plan: m.FDs[0], counters: m.FDs[1], known: maps.Clone(w.maps), fresh: w.mapStash}
	w.mapStash = map[uint32]int{}
	w.coming = make(chan *arrival, 1)
	go func() {
		w.coming <- p.open()
		unix.Write(w.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}()
	return nil
}

// open makes an arrival of p. Nothing of the worker is touched.
func (p *parcel) open() *arrival {
	defer closeAll([]int{p.plan, p.counters})
	a := &arrival{id: p.id, maps: map[uint32]*rule.Map{}}
	if len(p.fresh) > 0 {
		debug.SetGCPercent(collectOften)
		defer debug.SetGCPercent(collectPercent)
	}
	a.err = a.fill(p)
	for _, fd := range p.fresh {
		unix.Close(fd)
	}
	return a
}

func (a *arrival) fill(p *parcel) error {
	b, err := privsep.ReadFile(p.plan, MaxPlan)
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if a.plan, err = DecodePlan(b); err != nil {
		return err
	}
	var ordered []*rule.Map
	for i, id := range a.plan.Maps {
		m := p.known[id]
		if fd, fresh := p.fresh[id]; fresh {
			if m, err = readMap(fd, a.plan.Table, i); err != nil {
				return err
			}
		}
		if m == nil {
			return fmt.Errorf("map %s did not come", a.plan.Table.Maps[i].Name)
		}
		a.maps[id] = m
		ordered = append(ordered, m)
	}
	a.rules = a.plan.Table.Compile(ordered...)
	a.counters, err = MapCounters(a.plan, p.counters)
	return err
}

// readMap compiles map i of t from a memory file, which it maps for as long as
// that takes. fd stays the caller's.
func readMap(fd int, t *rule.Table, i int) (*rule.Map, error) {
	info := t.Maps[i]
	fail := func(err error) (*rule.Map, error) { return nil, fmt.Errorf("map %s: %w", info.Name, err) }
	b, unmap, err := privsep.MapSealed(fd, rule.MaxEncodedMap)
	if err != nil {
		return fail(err)
	}
	defer unmap()
	m, err := rule.CompileMap(b, len(t.Targets), t.Targets[info.Target].Places)
	if err != nil {
		return fail(err)
	}
	return m, nil
}

// awaitInstall ends an installation that is under way, if there is one: what
// follows must not overtake it.
func (w *worker) awaitInstall() {
	if w.coming != nil {
		w.finishInstall()
	}
}

// finishInstall puts the table that has been made ready in force; start-up is
// the first time. Whatever is wrong with it leaves the old table in force, and
// the binder is told.
func (w *worker) finishInstall() {
	a := <-w.coming
	w.coming = nil
	grown := len(w.maps) > 0 || len(a.maps) > 0
	if a.err == nil {
		a.err = w.missing(a.plan)
	}
	if a.err == nil {
		w.log = w.setLog(a.plan)
		w.swap(a)
	} else {
		w.log.Error("table refused", "table", a.id, "reason", a.err)
		w.tell(privsep.Message{Kind: privsep.Installed, ID: a.id, Value: 1})
	}
	for id, fd := range w.stash {
		unix.Close(fd) // not in the table that it was sent for
		delete(w.stash, id)
	}
	if a.err == nil {
		w.askAhead()
	}
	if !grown {
		w.trim()
		return
	}
	go func() { // what the old maps took is given back, also apart from the worker
		runtime.GC()
		debug.FreeOSMemory()
		w.trim()
	}()
}

// missing says what a plan needs that has not come: a descriptor of a listener, the
// file of sessions.
func (w *worker) missing(plan *Plan) error {
	for _, l := range plan.Listeners {
		old := w.listeners[l.ID]
		if !l.Kept && w.stash[l.ID] == 0 && (old == nil || old.fd < 0) {
			return fmt.Errorf("no descriptor came for listener %s", l.Name)
		}
	}
	if w.sessions == nil && newGates(plan.Table) != nil {
		return errors.New("rules limit sessions, and no file for them came")
	}
	return nil
}
