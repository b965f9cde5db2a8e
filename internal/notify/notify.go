// Package notify tells the service manager how it goes (sd_notify(3)), if
// there is one. Whoever started the program decides that; it needs no
// privilege.
package notify

import (
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// State tells assignments, one a line. Without a service manager, or where it
// does not listen, nothing happens.
func State(state string) { daemon.SdNotify(false, state) }

// Reloaded answers a reload of a Type=notify-reload unit that is over at once.
func Reloaded() {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		State(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
		State("READY=1")
	}
}
