package dispatch

import (
	"errors"
	"log/slog"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/resident"
)

// Run is the dispatcher's life: confine itself, say so, then do what the
// binder says until it ends. newLog makes the logger that a plan asks for.
func Run(newLog func(format, level string) *slog.Logger) error {
	// Service managers and terminals signal all processes at once; what the
	// dispatcher does about it is the binder's to say. That nobody reads the
	// log any more ends nothing.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGPIPE)
	runtime.LockOSThread()
	debug.SetGCPercent(collectPercent)
	control := privsep.Channel{FD: privsep.ControlFD}
	w, err := newWorker(control, func(p *Plan) *slog.Logger { return newLog(p.LogFormat, p.LogLevel) })
	if err != nil {
		return err
	}
	trim := resident.Trimmer()
	if err := privsep.ConfineDispatcher(); err != nil {
		return err
	}
	w.trim = trim
	w.tell(privsep.Message{Kind: privsep.Ready})
	if err := w.run(); !errors.Is(err, errEnd) {
		return err
	}
	return nil
}
