package binder

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
	"socketbox/internal/resident"
)

// binder is the whole state of the binder; only its own goroutine touches it.
type binder struct {
	h        handover
	log      *slog.Logger
	control  int // listening control socket
	resolver *resolver
	watch    *watcher
	lookout  *lookout
	loans    *loanPaths

	nextElders time.Time // when elder sockets are looked at again
	started    time.Time

	active       *table // in force, or about to be for the first time
	lastTable    uint32
	lastListener uint32
	lastMap      uint32

	child         *child
	everServed    bool
	deaths        int // of dispatchers, one soon after the other
	restarts      uint64
	reloads       Reloads
	tracers       map[*watching]bool // commands that watch
	draining      bool
	drainingSince time.Time
	abandoning    bool
	reload        *reload // under way

	refusals  *privsep.RefusalCounter // of the guard; nil: there is none
	before    int                     // conversation with the instance to take over from, -1: none
	yield     *yielding               // to the instance that takes over, under way
	adopted   []held                  // for the next dispatcher that serves
	succeeded bool                    // another instance has taken over
	failed    error                   // ends the binder

	diags   map[uint64]*diag // of network namespaces, by their cookies
	tracker tracker

	fromChild chan childEvent
	calls     chan func() // work that another goroutine wants done here
}

// sameStop is how close together two TERM signals are one request: timeout(1)
// and some supervisors signal the process and then its group.
const sameStop = 100 * time.Millisecond

// errStopped ends the binder in good order.
var errStopped = errors.New("stopped")

// Run is the binder's life, from the exec by the privileged stage to the end.
func Run(newLog func(format, level string) *slog.Logger) error {
	state, fds, err := privsep.TakeState()
	if err != nil {
		return err
	}
	b, err := newBinder(state, fds, newLog)
	if err != nil {
		return err
	}
	if err := b.start(fds); err != nil {
		return err
	}
	defer b.end()
	if err := b.loop(); !errors.Is(err, errStopped) {
		return err
	}
	return nil
}

func newBinder(state []byte, fds []int, newLog func(format, level string) *slog.Logger) (*binder, error) {
	b := &binder{
		started: time.Now(), fromChild: make(chan childEvent, 64), calls: make(chan func(), 64),
		tracers: map[*watching]bool{},
	}
	if err := json.Unmarshal(state, &b.h); err != nil {
		return nil, fmt.Errorf("read inherited state: %w", err)
	}
	b.log = newLog(b.h.Options.LogFormat, b.h.Options.LogLevel)
	if err := privsep.ConfineBinder(); err != nil {
		return nil, err
	}
	return b, privsep.Verify(0, b.h.Verify)
}

// start makes the first table and the first dispatcher: start-up is the first
// reload.
func (b *binder) start(fds []int) error {
	fds, err := b.takeFDs(fds)
	if err != nil {
		return err
	}
	cfg, err := b.h.config()
	if err != nil {
		return err
	}
	rest := len(fds) - steered(cfg.Descriptions())
	if rest < 0 {
		return fmt.Errorf("read inherited state: %d descriptors", len(fds))
	}
	fds, steering := fds[:rest], fds[rest:]
	fds, maps, err := takeTables(cfg, fds)
	if err != nil {
		return err
	}
	if len(cfg.Listeners) != len(fds) {
		return fmt.Errorf("read inherited state: %d listeners, %d descriptors", len(cfg.Listeners), len(fds))
	}
	if b.watch, err = newWatcher(); err != nil {
		return err
	}
	b.resolver = newResolver(b.log, b.watch)
	if b.lookout, err = newLookout(); err != nil {
		return err
	}
	if b.loans, err = newLoanPaths(); err != nil {
		return err
	}
	var listeners []*listener
	for i, d := range cfg.Descriptions() {
		l := b.newListener(d, fds[i], at(b.h.Namespaces, i))
		if was, known := b.h.Standings[l.key()]; known {
			l.standing = &was
		}
		if elders, beside := b.h.Elders[l.key()]; beside {
			l.standing.Elders = elders
		}
		listeners = append(listeners, l)
	}
	if err := takeSteering(listeners, steering); err != nil {
		return err
	}
	if b.active, err = b.makeTable(cfg, listeners, maps); err != nil {
		return err
	}
	b.settleStates()
	if b.before < 0 { // else it is still the predecessor who answers
		if err := b.serveControl(); err != nil {
			return err
		}
	}
	return b.spawn()
}

// takeFDs takes the control socket, the conversation with a predecessor and the
// sock_diag sockets off the inherited descriptors, and returns the rest.
func (b *binder) takeFDs(fds []int) ([]int, error) {
	b.before = -1
	head := 1
	if b.h.Predecessor != 0 {
		head = 2
	}
	guard := 0
	if b.h.Guard != nil {
		guard = 1
	}
	if b.h.Diags < 0 || len(fds) <= head+guard+b.h.Diags {
		return nil, fmt.Errorf("read inherited state: %d descriptors", len(fds))
	}
	b.control = fds[0]
	if head == 2 {
		b.before = fds[1]
		if err := unix.SetNonblock(b.before, true); err != nil {
			return nil, fmt.Errorf("conversation with the instance before: %w", err)
		}
	}
	fds = fds[head:]
	if guard > 0 {
		var err error
		if b.refusals, err = privsep.MapRefusals(fds[0]); err != nil {
			return nil, err
		}
		unix.Close(fds[0])
		fds = fds[1:]
	}
	return fds[b.h.Diags:], b.takeDiags(fds[:b.h.Diags])
}

// takeTables takes the files of tables, the last ones, off the inherited
// descriptors, and returns the rest.
func takeTables(cfg *config.Config, fds []int) ([]int, []*mapFile, error) {
	n := len(fds) - len(cfg.Tables)
	if n < 0 {
		return nil, nil, fmt.Errorf("read inherited state: %d tables, %d descriptors", len(cfg.Tables), len(fds))
	}
	maps, err := loadTables(cfg, fds[n:])
	return fds[:n], maps, err
}

// loop treats one event after another until the binder is to end.
func (b *binder) loop() error {
	signal.Ignore(unix.SIGPIPE) // that nobody reads the log any more ends nothing
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1)
	timer := time.NewTimer(time.Hour)
	for {
		setTimer(timer, earliestOf(b.resolver.tick(), b.scoutTime(), b.loans.retry, b.nextElders))
		var err error
		select {
		case s := <-signals:
			err = b.signalled(s)
		case e := <-b.fromChild:
			err = b.hear(e)
		case call := <-b.calls:
			call()
			if err = b.failed; b.succeeded {
				err = errStopped
			}
		case e := <-b.watch.Events:
			b.resolver.changed(e.Name)
		case e := <-b.watch.Errors:
			b.log.Warn("watching directories, looking at them all again", "reason", e)
			b.resolver.resolveEverything()
		case e := <-b.loans.watch.Events:
			b.loanEvent(e.Name)
		case e := <-b.loans.watch.Errors:
			b.log.Warn("watching directories of loans, looking at them all again", "reason", e)
			b.settleLoans()
			b.scoutAll()
		case <-timer.C:
			b.loansDue()
		}
		if err != nil {
			return err
		}
	}
}

// earliestOf returns the earliest of several times that are not zero.
func earliestOf(times ...time.Time) time.Time {
	next := time.Time{}
	for _, t := range times {
		if !t.IsZero() {
			next = earliest(next, t)
		}
	}
	return next
}

func setTimer(t *time.Timer, at time.Time) {
	if at.IsZero() {
		t.Reset(time.Hour)
		return
	}
	t.Reset(max(time.Until(at), time.Millisecond))
}

func (b *binder) signalled(s os.Signal) error {
	switch s {
	case unix.SIGHUP:
		b.reloadFile()
	case unix.SIGUSR1:
		b.dump()
	case unix.SIGTERM:
		if !b.draining {
			b.drain()
			if b.child == nil {
				return errStopped
			}
			return nil
		}
		if time.Since(b.drainingSince) < sameStop {
			return nil
		}
		fallthrough
	default: // a second TERM, or INT: now
		return b.abandon()
	}
	return nil
}

// abandonTime is how long a dispatcher may take to reset what it holds.
const abandonTime = time.Second

// abandon has the dispatcher reset what is on hold, so that its clients don't
// take the end for an answer, and end; its end is the binder's.
func (b *binder) abandon() error {
	if b.abandoning || b.child == nil {
		return errStopped
	}
	b.log.Info("ending at once", "waiting", b.totals().Waiting)
	b.abandoning, b.draining = true, true
	b.child.link.send(privsep.Message{Kind: privsep.Abandon})
	time.AfterFunc(abandonTime, func() { b.calls <- func() { b.failed = errStopped } })
	return nil
}

// drain has the dispatcher take what is in the backlogs, deliver what is on
// hold, and end; its end is the binder's. The binder's own copies of the
// listeners are closed, so that nobody is let in after the dispatcher is done.
func (b *binder) drain() {
	b.decideWaiting()
	b.draining, b.drainingSince = true, time.Now()
	b.notify("STOPPING=1", "STATUS=delivering what is held")
	b.log.Info("stopping: delivering what is held")
	b.stopLending()
	if b.child != nil {
		b.child.link.send(privsep.Message{Kind: privsep.Drain})
	}
	for _, l := range b.active.listeners {
		b.part(l)
	}
}

// end is the last that a binder does: it leaves no dispatcher and, where it
// may, no control socket behind.
func (b *binder) end() {
	if b.succeeded || b.before >= 0 {
		b.suspendLending()
	} else {
		b.stopLending()
	}
	if !b.succeeded && b.before < 0 { // else the paths are another instance's
		unix.Unlink(b.h.Control)
		for _, l := range b.active.listeners {
			if l.description.Network == "unix" {
				unix.Unlink(l.description.Path)
			}
		}
	}
	if c := b.child; c != nil {
		c.link.close()
		c.cmd.Process.Kill()
	}
}

// newListener makes a listener of fd. namespace is where a process with more
// rights has seen it, 0 if nobody has.
func (b *binder) newListener(d listen.Description, fd int, namespace uint64) *listener {
	if namespace == 0 {
		namespace = listen.Namespace(fd)
	}
	b.lastListener++
	return &listener{
		id: b.lastListener, description: d, fd: fd, steering: -1, namespace: namespace, guarded: isGuarded(d, fd),
		bound: boundPort(fd), standing: &standing{Since: time.Now()},
	}
}

// installed notes that a dispatcher has table m.ID in force, or not.
func (b *binder) installed(c *child, m privsep.Message) error {
	if !c.verified || m.ID != c.sent {
		return fmt.Errorf("%w: installed table %d, not %d", privsep.ErrProtocol, m.ID, c.sent)
	}
	if m.Value != 0 {
		return fmt.Errorf("it refused table %d", m.ID)
	}
	c.table = m.ID
	if b.reload != nil && b.reload.next.id == m.ID {
		b.commitReload()
	}
	c.noteMaps(b.active)
	b.resolver.send = c.link.send
	b.resolver.reset(m.ID, b.active.destinations, b.active.names())
	b.openKept()
	b.adoptHeld()
	b.settleSessions()
	if b.everServed {
		return nil
	}
	b.everServed = true
	if b.before >= 0 {
		go b.succeed(b.before)
		return nil
	}
	b.announce()
	return nil
}

// dispatcher returns the pid of the dispatcher, 0 while there is none.
func (b *binder) dispatcher() int {
	if b.child == nil {
		return 0
	}
	return b.child.cmd.Process.Pid
}

// succession tells the service manager that the main process is another now.
func (b *binder) succession() []string {
	if b.h.Predecessor == 0 {
		return nil
	}
	return []string{fmt.Sprintf("MAINPID=%d", os.Getpid())}
}

// announce says that the binder serves.
func (b *binder) announce() {
	for _, l := range b.active.listeners {
		b.log.Info("listening", "listener", l.description.Name, "address", l.description.String())
	}
	b.before = -1
	b.beginLending()
	b.log.Info("serving", "pid", os.Getpid(), "uid", os.Geteuid(), "dispatcher", b.dispatcher(),
		"directory", b.active.cfg.Dir, "control", b.h.Control)
	b.store(b.active.listeners)
	b.notify(append(b.succession(), "READY=1", b.statusLine())...)
	debug.FreeOSMemory()
	resident.Trimmer()()
}
