package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/logging"
	"socketbox/internal/notify"
	"socketbox/internal/peer"
	"socketbox/internal/resident"
)

// relay is one socketbox-relay: what its workers share.
type relay struct {
	settings
	o       Options
	log     *slog.Logger
	limiter logging.Limiter
	limits  limits
	names   *names
	workers []*worker
	sources []*source // the main goroutine's
	rateAll *sharedBucket
	limited bool // a rate is set

	start      time.Time // of the workers' clocks
	pipeBudget atomic.Int64
	signals    chan os.Signal
	running    sync.WaitGroup // workers
	stopping   bool
	netnsID    nsID   // of fixedNetNS, as it was entered
	replaced   bool   // the namespace has been made anew
	status     string // last told to the service manager
}

// Run receives and relays until it is told to end. It takes over the signals
// of the process.
func Run(o Options) error {
	r, err := newRelay(o)
	if err != nil {
		return err
	}
	defer r.shut()
	if err := r.open(); err != nil || len(r.sources) == 0 {
		return err
	}
	if err := limitExec(r.capabilities()); err != nil {
		return err
	}
	if err := r.startWorkers(); err != nil {
		return err
	}
	if err := r.confine(); err != nil {
		return err
	}
	r.ready()
	return r.loop()
}

func newRelay(o Options) (*relay, error) {
	r := &relay{o: o, log: o.Log, names: newNames(), start: time.Now()}
	var err error
	if r.settings, err = o.settings(); err != nil {
		return nil, err
	}
	if r.o.ConnectTimeout == 0 {
		r.o.ConnectTimeout = DefaultConnectTimeout
	}
	if o.RateAll > 0 {
		r.rateAll = &sharedBucket{bucket: newBucket(o.RateAll, 0)}
	}
	r.limited = o.Rate > 0 || o.RateAll > 0
	r.takeSignals()
	if err := r.budget(); err != nil {
		return nil, err
	}
	return r, nil
}

// reserve is how many descriptors stay free for everything but connections:
// sources, workers, look-ups of names, a second attempt now and then.
const reserve = 48

// budget divides the descriptors that this process may have: a connection
// takes two, and lends pipes, two each, while bytes are in them.
func (r *relay) budget() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("getrlimit RLIMIT_NOFILE: %w", err)
	}
	if files.Cur < files.Max { // Go has raised it at start, unless somebody asked for it since
		files.Cur = files.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
		unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	}
	limit := int(min(files.Cur, 1<<30))
	pipes := min(1024, limit/32)
	room := (limit - reserve - 2*pipes) / 2
	if room < 1 {
		return fmt.Errorf("RLIMIT_NOFILE %d: too few descriptors; want at least 64", limit)
	}
	r.pipeBudget.Store(int64(pipes))
	bound := min(room/4, 4096)
	r.limits = limits{max: room, perSource: r.o.MaxPerSource, bound: max(bound, 1), sources: map[peer.Source]*crowd{}}
	if r.o.MaxPerSource > 0 {
		r.limits.max = max(1, room-bound/2)
	}
	if r.o.Max > 0 {
		r.limits.max = min(r.limits.max, r.o.Max)
		if r.o.Max > r.limits.max {
			r.log.Warn("fewer connections at once than --max: each takes two descriptors", "max", r.limits.max, "RLIMIT_NOFILE", limit)
		}
	}
	return nil
}

// clock is the workers' time, in nanoseconds; never 0.
func (r *relay) clock() int64 { return int64(time.Since(r.start)) + 1 }

// startWorkers starts the threads, each in the namespace where it makes
// sockets.
func (r *relay) startWorkers() error {
	n := r.o.Threads
	if n == 0 {
		n = min(runtime.NumCPU(), 4)
	}
	// One thread more for Go code: names, signals, the collector. What is
	// alive is small, so collecting often is cheap.
	runtime.GOMAXPROCS(n + 1)
	debug.SetGCPercent(50)
	for range n {
		w, err := newWorker(r)
		if err != nil {
			return err
		}
		r.workers = append(r.workers, w)
	}
	entered := make(chan error, n)
	for _, w := range r.workers {
		r.running.Add(1)
		go r.work(w, entered)
	}
	var err error
	for range n {
		err = errors.Join(err, <-entered)
	}
	r.netnsID = r.workers[0].place.id
	return err
}

// work is a worker's thread. It is never given back: it may be in another
// namespace.
func (r *relay) work(w *worker, entered chan<- error) {
	defer r.running.Done()
	runtime.LockOSThread()
	w.now = r.clock()
	scheduleInBatches()
	err := w.settleIn()
	entered <- err
	if err != nil {
		return
	}
	for _, s := range r.sources {
		w.attend(s)
	}
	w.run()
	w.close()
}

// settleIn enters the namespace that all connections are made in, or gets
// ready to go back and forth.
func (w *worker) settleIn() (err error) {
	r := w.relay
	switch {
	case r.fixedNetNS != home:
		return w.place.enter(r.fixedNetNS)
	case r.netns.Keys() != 0:
		w.place.home, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	}
	return nil
}

// goWhere moves the thread to where the sockets of c are made.
func (w *worker) goWhere(c *connection) error {
	if w.relay.netns.Keys() == 0 {
		return nil // it is there
	}
	return w.place.enter(w.relay.netns.Expand(ruleFacts(&c.facts, c.listener)))
}

// lightest returns who shall serve one more connection: w itself, unless
// another has clearly less to do.
func (r *relay) lightest(w *worker) *worker {
	if len(r.workers) == 1 {
		return w
	}
	best, least := w, w.load.Load()
	limit := least - 2 - least/4
	for _, other := range r.workers {
		if load := other.load.Load(); load < limit && load < least {
			best, least = other, load
		}
	}
	return best
}

// roomOpened has the workers take connections again.
func (r *relay) roomOpened() {
	for _, w := range r.workers {
		if w.pausing.Load() {
			w.post(w.roomOpened)
		}
	}
}

// keepAlive has TCP probe a silent peer, whose host may have gone; on a Unix
// socket it does nothing.
func (r *relay) keepAlive(fd int) {
	setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	if idle := r.o.KeepAlive; idle > 0 {
		seconds := max(1, int(idle/time.Second))
		setInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds)
		setInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL, max(1, seconds/4))
	}
}

// ready tells that connections are taken from here on.
func (r *relay) ready() {
	resident.Trimmer()() // of what only the start needed
	r.log.Info("relaying", r.describe()...)
	notify.State("READY=1\nSTATUS=Relaying")
}

func (r *relay) describe() []any {
	var args []any
	for _, s := range r.sources {
		if s.receiver != nil {
			args = append(args, "socket", s.receiver.Path())
		} else {
			args = append(args, "listener", s.name)
		}
	}
	for i := range r.destinations {
		args = append(args, "to", r.destinations[i].text)
	}
	if r.o.NetNS != "" {
		args = append(args, "netns", r.o.NetNS)
	}
	return append(args, "max", r.limits.max, "threads", len(r.workers))
}
