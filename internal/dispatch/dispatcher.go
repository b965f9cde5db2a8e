package dispatch

import (
	"errors"
	"log/slog"
	"runtime"
	"runtime/debug"

	"socketbox/internal/privsep"
)

// Run is the dispatcher's life: confine itself, say so, then do what the
// binder says until it ends. newLog makes the logger that a plan asks for.
func Run(newLog func(format, level string) *slog.Logger) error {
	runtime.LockOSThread()
	debug.SetGCPercent(400) // the heap is tiny and hardly grows
	control := privsep.Channel{FD: privsep.ControlFD}
	w, err := newWorker(control, func(p *Plan) *slog.Logger { return newLog(p.LogFormat, p.LogLevel) })
	if err != nil {
		return err
	}
	trim := privsep.Trimmer()
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
