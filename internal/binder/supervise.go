package binder

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
)

const (
	// readyTime is how long a new dispatcher may take to confine itself.
	readyTime = 10 * time.Second
	// respawns is how many dispatchers may die one after another before the
	// binder pauses respawnPause between them; calmTime makes it forget.
	respawns     = 32
	respawnPause = time.Second
	calmTime     = 10 * time.Second
	// endTime is how long a dispatcher that has closed the pair may take to end.
	endTime = time.Second
)

// child is a running dispatcher.
type child struct {
	cmd       *exec.Cmd
	link      *link
	started   time.Time
	verified  bool
	table     uint32          // in force
	sent      uint32          // last one sent
	maps      map[uint32]bool // IDs of those that it has
	remembers bool            // it has the file of sessions
	drained   bool
	reason    error // why the binder ended it
}

// childEvent is something that a dispatcher did: sent a message, broke the
// protocol, or ended.
type childEvent struct {
	child   *child
	message privsep.Message
	err     error
	ended   bool
	status  error // of Wait, if ended
}

// spawn starts a dispatcher and the goroutine that listens to it.
func (b *binder) spawn() error {
	cmd, channel, err := privsep.Spawn()
	if err != nil {
		return err
	}
	l, err := newLink(channel)
	if err == nil {
		if err = b.confine(cmd.Process.Pid); err != nil {
			l.close()
		}
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return fmt.Errorf("start the dispatcher: %w", err)
	}
	c := &child{cmd: cmd, link: l, started: time.Now()}
	b.child = c
	go b.attend(c)
	time.AfterFunc(readyTime, func() { b.calls <- func() { b.overdue(c) } })
	return nil
}

// attend reports all that a dispatcher says, and only then its end: the last
// words of one that ends may be connections that it gives back.
func (b *binder) attend(c *child) {
	b.listenTo(c)
	late := time.AfterFunc(endTime, func() { c.cmd.Process.Kill() })
	status := c.cmd.Wait()
	late.Stop()
	b.fromChild <- childEvent{child: c, ended: true, status: status}
}

func (b *binder) listenTo(c *child) {
	for {
		m, ok, err := c.link.receive()
		if err != nil {
			b.fromChild <- childEvent{child: c, err: err}
			return
		}
		if !ok {
			return
		}
		b.fromChild <- childEvent{child: c, message: m}
	}
}

// overdue ends a dispatcher that has not come up in time.
func (b *binder) overdue(c *child) {
	if b.child == c && c.table == 0 {
		b.condemn(c, errors.New("not ready in time"))
	}
}

// condemn kills a dispatcher that can't be trusted or used any more; another
// one follows when its end is reported.
func (b *binder) condemn(c *child, reason error) {
	if c.reason == nil {
		c.reason = reason
	}
	c.link.close()
	c.cmd.Process.Kill()
}

// hear treats one event of a dispatcher. Anything that the protocol doesn't
// allow ends the dispatcher.
func (b *binder) hear(e childEvent) error {
	switch {
	case e.child != b.child:
		closeAll(e.message.FDs)
		return nil
	case e.ended:
		return b.bury(e)
	case e.err != nil:
		b.condemn(e.child, e.err)
		return nil
	}
	if err := b.obey(e.child, e.message); err != nil {
		b.condemn(e.child, err)
	}
	return nil
}

// obey carries out a message of the dispatcher. Messages about a table that
// is not in force any more are late, not wrong.
func (b *binder) obey(c *child, m privsep.Message) error {
	current := c.table != 0 && m.Table == c.table
	switch m.Kind {
	case privsep.Ready:
		return b.greet(c)
	case privsep.Installed:
		return b.installed(c, m)
	case privsep.Want:
		if current {
			return b.resolver.want(m)
		}
	case privsep.Stuck:
		if current {
			b.resolver.stuck(m)
		}
	case privsep.Drop:
		if current {
			b.resolver.drop(m.ID)
		}
	case privsep.Held:
		return b.keepHeld(m)
	case privsep.Drained:
		c.drained = true
	}
	return nil
}

// greet verifies a dispatcher that says it is confined, by looking at every
// thread of it, and only then gives it the listeners and the table.
func (b *binder) greet(c *child) error {
	if c.verified {
		return fmt.Errorf("%w: ready twice", privsep.ErrProtocol)
	}
	if err := privsep.Verify(c.cmd.Process.Pid, b.h.Verify); err != nil {
		return err
	}
	c.verified = true
	if b.draining {
		return nil
	}
	return b.sendTable(c, b.active)
}

// bury notes a dispatcher's end and starts the next one, on the same
// listeners: meanwhile clients wait in the backlog.
func (b *binder) bury(e childEvent) error {
	c := e.child
	c.link.close()
	b.child = nil
	if b.draining {
		return b.bury1(c, e.status)
	}
	if b.yield != nil {
		b.yield.done() // whatever it gave back
		return nil
	}
	b.log.Error("dispatcher ended, starting another", "pid", c.cmd.Process.Pid, "reason", reasonOf(c, e.status))
	b.failReload(errors.New("the dispatcher ended while it took the new table"))
	if !b.everServed && c.table == 0 {
		return fmt.Errorf("dispatcher does not start: %w", reasonOf(c, e.status))
	}
	if time.Since(c.started) > calmTime {
		b.deaths = 0
	}
	if b.deaths++; b.deaths > respawns {
		time.AfterFunc(respawnPause, func() { b.calls <- func() { b.respawn() } })
		return nil
	}
	b.respawn()
	return nil
}

// bury1 is the end of the last dispatcher.
func (b *binder) bury1(c *child, status error) error {
	if !c.drained && status != nil { // it ends with 0 only when it has delivered everything
		b.log.Warn("dispatcher ended before everything held was delivered", "reason", reasonOf(c, status))
	}
	return errStopped
}

func (b *binder) respawn() {
	if b.child != nil || b.draining {
		return
	}
	if err := b.spawn(); err != nil {
		b.log.Error("can't start a dispatcher, trying again", "reason", err)
		time.AfterFunc(respawnPause, func() { b.calls <- func() { b.respawn() } })
		return
	}
	b.restarts++
}

func reasonOf(c *child, status error) error {
	if c.reason != nil {
		return c.reason
	}
	var exit *exec.ExitError
	if errors.As(status, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signal() == unix.SIGSYS {
			return errors.New("killed by its seccomp filter: it made a system call that it may not (the kernel's audit log names it)")
		}
	}
	if status == nil {
		return errors.New("it exited by itself")
	}
	return status
}
