package rule

import (
	"net/netip"
	"time"
)

// Limits of a table. They bound what a decoder may be made to allocate and
// keep a compiled table small beside the dispatcher's 6 MB; each is far above
// any table seen in use.
const (
	MaxRules     = 100_000 // one rule per tenant of a large shared host
	MaxTargets   = 65_536  // one per rule of a table that names paths
	MaxListeners = 4096    // one descriptor each; RLIMIT_NOFILE is the next limit
)

// PortRange is the ports First to Last, both included. First is at least 1.
type PortRange struct{ First, Last uint16 }

// Rule says where the connections go that fit all its keys. A zero-valued key
// fits every connection.
type Rule struct {
	Listeners []int          // indexes into the list of listeners; nil: any
	Local     []netip.Prefix // address that the client dialled, masked
	Remote    []netip.Prefix // address of the client, masked
	Ports     []PortRange    // port that the client dialled
	Reject    bool           // reset the connection; Target is 0 then
	Target    int            // index into Table.Targets
	Line      int            // line in the config file, 0 if there is none
}

// Hold bounds what is kept for a target that cannot take it now.
type Hold struct {
	Connections int           // per resolved path
	Time        time.Duration // while the target is absent
	Busy        time.Duration // while the target is there but full; 0: for ever
}

// Target is what the dispatcher needs to know of a target. The path is the
// binder's business.
type Target struct {
	Name string
	Keys Keys
	Hold Hold
}

// Keys is the set of facts of a connection that choose the resolved path of
// its target: connections that agree in them go to the same path.
type Keys uint8

const (
	KeyPort Keys = 1 << iota
	KeyLocal
	KeyRemote
	KeyFamily
	KeyListener

	allKeys = KeyPort | KeyLocal | KeyRemote | KeyFamily | KeyListener
)

// Table is a whole rule table. Targets[0] is always the main socket
// directory: where a connection goes that no rule takes.
type Table struct {
	Targets []Target
	Rules   []Rule
}

// Conn is what a rule can look at. Addresses are unmapped; for a connection
// of a Unix listener they are invalid and Port is 0.
type Conn struct {
	Listener      int
	Port          uint16 // port that the client dialled
	Local, Remote netip.Addr
}
