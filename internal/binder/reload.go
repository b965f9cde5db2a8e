package binder

import (
	"errors"
	"fmt"
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
	text, err := []byte(nil), error(nil)
	if path := b.h.Options.Config; path != "" {
		if text, err = ReadConfigFile(path); err != nil {
			err = withHint(err, "the binder runs as another user than root: `socketbox reload` as root reads the file for it")
		}
	} else {
		err = errors.New("started without a configuration file: nothing to reload")
	}
	finish := func(err error) {
		if err != nil {
			b.log.Error("reload failed, the old configuration stays in force", "reason", err)
		}
	}
	if err != nil {
		b.notify("RELOADING=1", monotonic())
		b.counting(finish)(err)
		b.notify("READY=1", b.statusLine())
		return
	}
	b.beginReload(text, nil, finish)
}

// beginReload puts a new configuration in force, or leaves everything as it
// is and says why: done is called exactly once. opened holds listening
// sockets that the caller opened, by index in the new configuration; it owns
// them. What is missing is opened here.
func (b *binder) beginReload(text []byte, opened map[int]brought, done func(error)) {
	b.notify("RELOADING=1", monotonic())
	done = b.counting(done)
	r, err := b.prepareReload(text, opened)
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

func (b *binder) prepareReload(text []byte, opened map[int]brought) (*reload, error) {
	r := &reload{}
	for _, in := range opened {
		r.opened = append(r.opened, &listener{fd: in.fd})
	}
	fail := func(err error) (*reload, error) {
		for _, l := range r.opened {
			unix.Close(l.fd)
		}
		return nil, err
	}
	switch {
	case b.reload != nil:
		return fail(errors.New("another reload is under way"))
	case b.child == nil || b.child.table == 0 || b.draining || b.yield != nil:
		return fail(errors.New("not serving at the moment, try again"))
	}
	cfg, err := b.parseAnew(text)
	if err != nil {
		return fail(err)
	}
	r.opened = nil
	listeners, err := b.matchListeners(cfg, opened, r)
	if err != nil {
		return fail(err)
	}
	if r.next, err = b.makeTable(cfg, listeners); err != nil {
		return fail(err)
	}
	return r, nil
}

// parseAnew reads a new text of the configuration and refuses what only a
// restart can change.
func (b *binder) parseAnew(text []byte) (*config.Config, error) {
	h := b.h
	h.Text = text
	cfg, err := h.config()
	if err != nil {
		return nil, err
	}
	old := b.active.cfg
	for _, k := range []struct{ key, old, new string }{{"user", old.User, cfg.User}, {"dir", old.Dir, cfg.Dir}, {"guard", old.Guard, cfg.Guard}} {
		if k.old != k.new {
			return nil, fmt.Errorf("%s changes from %q to %q, which needs a restart", k.key, k.old, k.new)
		}
	}
	return cfg, nil
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
				unix.Close(in.fd)
			}
		case brought:
			all[i] = b.newListener(d, in.fd, in.namespace)
			r.opened = append(r.opened, all[i])
			// A blocking listener would stop the dispatcher at its first
			// empty backlog.
			if err := errors.Join(listen.Matches(in.fd, d), unix.SetNonblock(in.fd, true)); err != nil {
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
	fds, err := listen.OpenAll(missing)
	if err != nil {
		return withHint(err, "the binder has no privileges: `socketbox reload` as root opens new listeners for it")
	}
	for k, fd := range fds {
		l := b.newListener(missing[k], fd, 0)
		all[where[k]] = l
		r.opened = append(r.opened, l)
	}
	return nil
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
	b.active = r.next
	old.close()
	for _, l := range r.closing {
		unix.Close(l.fd)
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
	b.log.Info("configuration reloaded", "listeners", len(b.active.listeners), "rules", len(b.active.plan.Table.Rules))
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
		unix.Close(l.fd)
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
