package inetd

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/logging"
	"socketbox/internal/notify"
	"socketbox/internal/receive"
	"socketbox/internal/resident"
)

// server is one socketbox-inetd. Only its loop's goroutine touches it.
type server struct {
	o         Options
	log       *slog.Logger
	limited   logging.Limiter // of warnings that a client or sender can cause
	receiver  *handoff.Receiver
	spawner   *spawn.Spawner
	admission *admission
	signals   *signals

	childSignal childSignal
	lastStart   time.Time // of a child

	children  map[int]*child
	launching []*child  // whose program does not run yet
	timeouts  list.List // of *child, oldest first
	kills     queue[deadline]
	vars      []byte // of start

	pause    time.Duration // after a failed start
	stopping bool          // the first TERM or INT came: nothing is received any more
	forced   bool          // the second: nothing is started any more
	unbound  error         // why the path is not ours any more
	nextLook time.Time     // of the housekeeping
	status   string        // last told to the service manager
	counters counters
}

// counters count since the start.
type counters struct {
	received uint64 // connections
	bad      uint64 // datagrams that were none
	gone     uint64 // connections whose client had gone
	started  uint64 // children
	ended    uint64
	failed   uint64 // starts that failed, also those that were tried again
	lost     uint64 // connections that were reset
	timeouts uint64
}

// Run receives and serves until it is told to end. It takes over the signals
// of the process and waits for all its children, so there is one Run in a
// process, and nothing else that starts others.
func Run(o Options) error {
	s, err := newServer(o)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.open(); err != nil || s.receiver == nil {
		return err
	}
	s.ready()
	return s.loop()
}

func newServer(o Options) (*server, error) {
	// Two threads run Go code at a time: the loop, and whatever the runtime
	// does beside it. What is alive is small, so collecting often is cheap.
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(25)
	command, err := o.command()
	if err != nil {
		return nil, err
	}
	if err := closeOnExec(); err != nil {
		return nil, err
	}
	signals, err := newSignals()
	if err != nil {
		return nil, err
	}
	// After newSignals, which decides what children have to reset.
	spawner, err := spawn.New(command, o.environ())
	if err != nil {
		signals.close()
		return nil, startError(o.Command[0], err)
	}
	bound, err := holdBound()
	if err != nil {
		signals.close()
		spawner.Close()
		return nil, err
	}
	return &server{
		o: o, log: o.Log, signals: signals, spawner: spawner,
		admission: newAdmission(o.Max, o.MaxPerSource, bound, o.Rate, time.Now()),
		children:  make(map[int]*child),
	}, nil
}

// startError is what the rehearsal of a child found.
func startError(name string, err error) error {
	var step *spawn.StepError
	if !errors.As(err, &step) {
		return err
	}
	if step.Step == "execute" {
		return &CommandError{name, step.Err, 126}
	}
	return err
}

// command returns what the children execute.
func (o *Options) command() (spawn.Command, error) {
	path, err := FindCommand(o.Command[0], os.Getenv("PATH"))
	if err != nil {
		return spawn.Command{}, err
	}
	credential, err := o.User.credential()
	if err != nil {
		return spawn.Command{}, err
	}
	return spawn.Command{
		Path: path, Args: o.Command, Dir: o.Dir, User: credential,
		Nice: o.Nice, Limits: o.Limits, Stderr: o.Stderr,
	}, nil
}

// environ returns what all children have in their environment. The journal is
// theirs only together with our standard error.
func (o *Options) environ() []string {
	base := baseEnviron(o.Environ, o.User)
	if o.Stderr == spawn.StderrInherit {
		return base
	}
	return slices.DeleteFunc(base, func(v string) bool { return strings.HasPrefix(v, "JOURNAL_STREAM=") })
}

// closeOnExec keeps what we were started with, apart from 0, 1 and 2, from
// the children.
func closeOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	if err == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, ok := receive.ParseID(e.Name()); ok && fd > 2 {
			unix.CloseOnExec(int(fd))
		}
	}
	return nil
}

// maxHold bounds the connections that wait here for others of their source.
const maxHold = 4096

// holdBound leaves half of the descriptors for everything else.
func holdBound() (int, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("getrlimit RLIMIT_NOFILE: %w", err)
	}
	return int(min(files.Cur/2, maxHold)), nil
}

// openEvery is how often a directory that is not there is looked for.
const openEvery = 200 * time.Millisecond

// open opens the receiver; it waits for the directory. Told to end meanwhile,
// it leaves s.receiver nil.
func (s *server) open() error {
	told := false
	for {
		receiver, err := s.o.Place.Open(s.o.Receive)
		if err == nil {
			s.receiver = receiver
			return nil
		}
		if !errors.Is(err, receive.ErrNoDirectory) {
			return err
		}
		if !told {
			told = true
			s.log.Warn("waiting for the socket directory, which `socketbox bind` makes", "path", s.o.Place.Path)
			notify.State("STATUS=Waiting for the socket directory of " + s.o.Place.Path)
		}
		s.signals.wait(-1, openEvery)
		for sig := s.signals.next(); sig != nil; sig = s.signals.next() {
			if sig == unix.SIGTERM || sig == unix.SIGINT {
				s.log.Info("ended before the socket directory was there", "signal", signalName(sig))
				return nil
			}
		}
	}
}

// ready tells that connections are received from here on.
func (s *server) ready() {
	resident.Trimmer()() // of what only the start needed
	s.log.Info("receiving connections", "socket", s.receiver.Path(), "command", strings.Join(s.o.Command, " "),
		"max", s.o.Max, "max-per-source", s.o.MaxPerSource, "rate", s.o.Rate.String())
	notify.State("READY=1\nSTATUS=Receiving on " + s.receiver.Path())
}

// close closes everything; what still waits is reset.
func (s *server) close() {
	s.closeReceiver()
	s.signals.close()
	s.spawner.Close()
}
