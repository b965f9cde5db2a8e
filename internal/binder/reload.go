package binder

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/listen"
)

// reload is one that is under way: the dispatcher has the new table and has
// not answered yet.
type reload struct {
	next    *table
	opened  []*listener // new ones; closed if it fails
	closing []*listener // in force now and not in the next table
	done    func(error)
}

// reloadTime bounds how long the dispatcher may take to install a table.
const reloadTime = 60 * time.Second

// reloadFile is what HUP does: read the file and open new listeners with the
// binder's own rights.
func (b *binder) reloadFile() {
	b.notify("RELOADING=1", monotonic())
	go func() {
		c, err := b.readFiles()
		b.calls <- func() {
			b.beginReload(c, err, func(err error) {
				if err != nil {
					b.log.Error("reload failed, the old configuration stays in force", "reason", err)
				}
			})
		}
	}()
}

// beginReload puts a new configuration in force, or leaves everything as it
// is and says why: done is called exactly once. It owns c, which is nil where
// err says why there is none. Listeners that nobody brought are opened here.
func (b *binder) beginReload(c *candidate, err error, done func(error)) {
	var r *reload
	done = b.counting(done)
	if err == nil {
		r, err = b.prepareReload(c)
	}
	if err != nil {
		b.notify("READY=1", b.statusLine())
		done(err)
		return
	}
	r.done = func(err error) {
		b.reload = nil
		b.notify("READY=1", b.statusLine())
		done(err)
	}
	b.reload = r
	if err := b.sendTable(b.child, r.next); err != nil {
		b.failReload(err)
		return
	}
	time.AfterFunc(reloadTime, func() {
		b.calls <- func() {
			if b.reload == r {
				b.condemn(b.child, errors.New("it did not install a table in time"))
			}
		}
	})
}

// counting counts how a reload ends before it says so.
func (b *binder) counting(done func(error)) func(error) {
	return func(err error) {
		now := time.Now()
		b.reloads.Last, b.reloads.Error = &now, ""
		if err == nil {
			b.reloads.Succeeded++
		} else {
			b.reloads.Failed++
			b.reloads.Error = err.Error()
		}
		done(err)
	}
}

func (b *binder) prepareReload(c *candidate) (*reload, error) {
	err := b.checkRestart(c.cfg)
	switch {
	case b.reload != nil:
		err = errors.New("another reload is under way")
	case b.child == nil || b.child.table == 0 || b.draining || b.yield != nil:
		err = errors.New("not serving at the moment, try again")
	}
	if err != nil {
		c.discard()
		return nil, err
	}
	r := &reload{}
	listeners, err := b.matchListeners(c.cfg, c.opened, r)
	if err != nil {
		releaseAll(c.maps)
	} else {
		r.next, err = b.makeTable(c.cfg, listeners, c.maps)
	}
	if err != nil {
		for _, l := range r.opened {
			l.closeSockets()
		}
		return nil, err
	}
	return r, nil
}

// parseAnew reads a new text of the configuration. It runs beside the loop.
func (b *binder) parseAnew(text []byte) (*config.Config, error) {
	h := b.h
	h.Text = text
	return h.config()
}

// checkRestart refuses what only a restart can change.
func (b *binder) checkRestart(cfg *config.Config) error {
	old := b.active.cfg
	for _, k := range []struct{ key, old, new string }{{"user", old.User, cfg.User}, {"dir", old.Dir, cfg.Dir}, {"guard", old.Guard, cfg.Guard}} {
		if k.old != k.new {
			return fmt.Errorf("%s changes from %q to %q, which needs a restart", k.key, k.old, k.new)
		}
	}
	return nil
}

// matchListeners returns the listeners of cfg in order: those in force that
// are described alike stay untouched, the others come from opened or are
// opened here.
func (b *binder) matchListeners(cfg *config.Config, opened map[int]brought, r *reload) ([]*listener, error) {
	ds := cfg.Descriptions()
	all := make([]*listener, len(ds))
	used := map[*listener]bool{}
	var problems []error
	for i, d := range ds {
		l := b.findListener(d, used)
		in, brought := opened[i]
		switch {
		case l != nil:
			used[l] = true
			all[i] = l.renamed(d.Name)
			if brought {
				in.close()
			}
		case brought:
			all[i] = b.newListener(d, in.fd, in.namespace)
			all[i].steering = in.steering
			r.opened = append(r.opened, all[i])
			// A blocking listener would stop the dispatcher at its first
			// empty backlog.
			if err := errors.Join(listen.Matches(in.fd, d), unix.SetNonblock(in.fd, true), b.admit(all[i])); err != nil {
				problems = append(problems, fmt.Errorf("socket brought for %s: %w", d, err))
			}
		}
	}
	for _, l := range b.active.listeners {
		if !used[l] {
			r.closing = append(r.closing, l)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return all, b.openMissing(ds, all, r)
}

// openMissing opens with the binder's own rights what nobody brought.
func (b *binder) openMissing(ds []listen.Description, all []*listener, r *reload) error {
	var missing []listen.Description
	var where []int
	for i, l := range all {
		if l == nil {
			missing, where = append(missing, ds[i]), append(where, i)
		}
	}
	const hint = "the binder has no privileges: `socketbox reload` as root opens new listeners for it"
	fds, elders, err := openAll(missing, b.active.cfg.Dir)
	if err != nil {
		return withHint(err, hint)
	}
	steering, err := steerAll(missing, fds)
	if err != nil {
		closeAll(fds)
		return withHint(err, hint)
	}
	for k, fd := range fds {
		l := b.newListener(missing[k], fd, 0)
		l.standing.Elders = elders[l.key()]
		all[where[k]] = l
		r.opened = append(r.opened, l)
	}
	return takeSteering(r.opened[len(r.opened)-len(fds):], steering)
}

// findListener returns the listener in force that differs from d in name at
// most.
func (b *binder) findListener(d listen.Description, used map[*listener]bool) *listener {
	for _, l := range b.active.listeners {
		same := l.description
		same.Name = d.Name
		if same == d && !used[l] {
			return l
		}
	}
	return nil
}

// renamed returns l itself, or a copy with another name and the same socket.
func (l *listener) renamed(name string) *listener {
	if l.description.Name == name {
		return l
	}
	c := *l
	c.description.Name = name
	return &c
}

// commitReload makes the next table the one in force: the dispatcher has it.
func (b *binder) commitReload() {
	r := b.reload
	old := b.active
	r.next.inherit(old)
	b.moveTraces(r.next)
	b.active = r.next
	old.close()
	for _, l := range r.closing {
		b.part(l)
		if l.description.Network == "unix" {
			unix.Unlink(l.description.Path)
		}
		b.log.Info("no longer listening", "listener", l.description.Name, "address", l.description.String())
	}
	for _, l := range r.opened {
		b.log.Info("listening", "listener", l.description.Name, "address", l.description.String())
	}
	b.unstore(r.closing)
	b.store(r.opened)
	b.log.Info("configuration reloaded", append([]any{"listeners", len(b.active.listeners), "rules", len(b.active.plan.Table.Rules)}, b.active.mapSizes()...)...)
	if len(b.active.maps) > 0 {
		go debug.FreeOSMemory() // of the tables before
	}
	b.settleStates()
	b.settleLoans()
	b.scoutAll()
	r.done(nil)
}

// failReload gives a reload up that the dispatcher has not installed; the
// next dispatcher gets the table that was in force.
func (b *binder) failReload(reason error) {
	r := b.reload
	if r == nil {
		return
	}
	for _, l := range r.opened {
		l.closeSockets()
	}
	r.next.close()
	r.done(reason)
}

// inherit carries the counts of the table before over, by name. Connections
// that waited are counted anew by the dispatcher.
func (t *table) inherit(old *table) {
	for _, l := range t.listeners {
		for j, was := range old.listeners {
			if was.id == l.id {
				l.base = was.base.Add(settled(old.counters.Listener(j)))
				l.handOff = was.handOff.Add(old.counters.HandOff(j).Snapshot())
			}
		}
	}
	t.before = old.sum(settled)
}
