package binder

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// notify tells the service manager (sd_notify(3)); without one it does
// nothing.
func (b *binder) notify(states ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(states, "\n")); err != nil {
		b.log.Warn("can't notify the service manager", "reason", err)
	}
}

// monotonic is the MONOTONIC_USEC that goes with RELOADING=1.
func monotonic() string {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000)
}

func (b *binder) statusLine() string {
	return fmt.Sprintf("STATUS=serving %d listeners, %d rules", len(b.active.listeners), len(b.active.plan.Table.Rules))
}
