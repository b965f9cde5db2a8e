package inetd

import (
	"log/slog"
	"time"

	"socketbox/internal/handoff"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/receive"
)

// Defaults of Options.
const (
	DefaultMax       = 64              // systemd's MaxConnections=
	DefaultKillAfter = 5 * time.Second // from TERM to KILL
)

// Options are what socketbox-inetd can be told.
type Options struct {
	Place   receive.Place   // where to receive
	Receive handoff.Options // rights of the socket, who may send

	Command []string // the program and its arguments
	Dir     string   // the children's directory; "": ours
	User    User     // whom the children run as
	Nice    *int
	Limits  []spawn.Limit
	Stderr  spawn.Stderr

	Max          int // children at once, at least 1
	MaxPerSource int // children at once for one client address; 0: no limit
	Rate         Rate

	Timeout   time.Duration // a child's longest life; 0: no limit
	KillAfter time.Duration // from TERM to KILL

	LogConnections bool
	Log            *slog.Logger
	Environ        []string // what to derive the children's environment from
}
