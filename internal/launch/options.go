package launch

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"socketbox/internal/inetd"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/privsep/isolate"
)

// Via is the way by which a daemon's listening sockets are answered.
type Via string

// The ways. ViaAuto chooses between preload and notify by looking at the
// program.
const (
	ViaAuto      Via = "auto"
	ViaPreload   Via = "preload"
	ViaNotify    Via = "notify"
	ViaListenFDs Via = "listen-fds"
	ViaNone      Via = "none"
)

// Vias are the values of --via, for help and completion.
var Vias = []string{string(ViaAuto), string(ViaPreload), string(ViaNotify), string(ViaListenFDs), string(ViaNone)}

// Restart says when a daemon that has ended is started again.
type Restart string

// The values of --restart.
const (
	RestartNo        Restart = "no"
	RestartOnFailure Restart = "on-failure"
	RestartAlways    Restart = "always"
)

// Restarts are the values of --restart, for help and completion.
var Restarts = []string{string(RestartNo), string(RestartOnFailure), string(RestartAlways)}

// DefaultKillAfter is the time from TERM to KILL for processes that a daemon
// left behind.
const DefaultKillAfter = 5 * time.Second

// DefaultWait is how long a bind waits for a listener that is neither lent nor
// handed off yet, while the socket directory is there: daemon and binder are
// started in either order.
const DefaultWait = 3 * time.Second

// Options are what a caller decides about a launch.
type Options struct {
	Command []string // the program, looked up in PATH, and its arguments
	Dir     string   // socket directory, an absolute path

	Ports   Ports
	Via     Via
	Library string // the preload library; "": looked for
	Wait    time.Duration
	FirstFD int    // of ViaListenFDs; 0: 3
	FDEnv   string // a variable for their numbers, as nginx's NGINX; "": none

	Isolate isolate.Options

	NewNet     bool   // a fresh network namespace
	NetNS      string // an existing one, by name or path
	NewUser    bool   // a user namespace
	MapRoot    bool   // there, the caller is uid and gid 0
	UIDs, GIDs []IDRange

	User       inetd.User
	KeepCaps   []uint
	DropCaps   bool
	NoNewPrivs bool
	Chdir      string
	Env        []string // NAME=VALUE, in addition to Environ
	Limits     []spawn.Limit

	Restart   Restart
	KillAfter time.Duration
	OnDemand  bool          // the daemon is started by its first client, and by the next one after it has ended
	Idle      time.Duration // with OnDemand, end it when no client has come for so long; 0: never

	Environ []string
	Log     *slog.Logger
}

// Ports says which of the daemon's ports are answered, and by which ports of
// socketbox.
type Ports struct {
	All   bool // every port but 0, each by its own
	Pairs []PortRange
}

// PortRange is a range of ports. Outside is the port of socketbox that answers
// the one port of the range, 0 for the same.
type PortRange struct{ First, Last, Outside uint16 }

// maxPorts is what the preload library takes, too (SOCKETBOX_PORTS).
const maxPorts = 64

// ParsePorts reads "80,443=8443,8000-8010" or "all": the daemon's port, and
// after "=" the one that its clients dial.
func ParsePorts(text string) (Ports, error) {
	if text == "" || text == "all" {
		return Ports{All: true}, nil
	}
	var p Ports
	for entry := range strings.SplitSeq(text, ",") {
		r, err := parsePortRange(entry)
		if err != nil {
			return Ports{}, fmt.Errorf("ports %q: %w", text, err)
		}
		p.Pairs = append(p.Pairs, r)
	}
	if len(p.Pairs) > maxPorts {
		return Ports{}, fmt.Errorf("ports %q: more than %d entries", text, maxPorts)
	}
	return p, nil
}

func parsePortRange(entry string) (r PortRange, err error) {
	inside, outside, mapped := strings.Cut(entry, "=")
	first, last, isRange := strings.Cut(inside, "-")
	if mapped && isRange {
		return r, fmt.Errorf("%q: a range can't be mapped", entry)
	}
	if !isRange {
		last = first
	}
	for _, n := range []struct {
		text string
		to   *uint16
	}{{first, &r.First}, {last, &r.Last}, {outside, &r.Outside}} {
		if n.to == &r.Outside && !mapped {
			continue
		}
		value, err := strconv.ParseUint(n.text, 10, 16)
		if err != nil || value == 0 {
			return r, fmt.Errorf("%q: want PORT, PORT=OUTSIDE or FIRST-LAST, of 1 to 65535", entry)
		}
		*n.to = uint16(value)
	}
	if r.Last < r.First {
		return r, fmt.Errorf("%q: the range ends before it begins", entry)
	}
	return r, nil
}

// Outside returns the port of socketbox that answers a bind to port, 0 for
// none: the bind is the kernel's, in the daemon's namespace.
func (p Ports) Outside(port uint16) uint16 {
	if p.All || port == 0 {
		return port
	}
	for _, r := range p.Pairs {
		if port >= r.First && port <= r.Last {
			if r.Outside != 0 {
				return r.Outside
			}
			return port
		}
	}
	return 0
}

// String is the form that ParsePorts and SOCKETBOX_PORTS read.
func (p Ports) String() string {
	if p.All {
		return "all"
	}
	var words []string
	for _, r := range p.Pairs {
		switch {
		case r.Outside != 0:
			words = append(words, fmt.Sprintf("%d=%d", r.First, r.Outside))
		case r.Last != r.First:
			words = append(words, fmt.Sprintf("%d-%d", r.First, r.Last))
		default:
			words = append(words, fmt.Sprint(r.First))
		}
	}
	return strings.Join(words, ",")
}

// each yields every port of the daemon that was named, and the one that
// answers it.
func (p Ports) each(yield func(inside, outside uint16) bool) {
	for _, r := range p.Pairs {
		for port := int(r.First); port <= int(r.Last); port++ {
			if !yield(uint16(port), p.Outside(uint16(port))) {
				return
			}
		}
	}
}
