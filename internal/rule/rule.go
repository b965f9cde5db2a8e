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
	MaxMaps      = 64      // each may have millions of entries
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
	Map       int            // index into Table.Maps, from 1: it says where; the rule takes only what it has. 0: none
	Reject    bool           // reset the connection; Target is 0 then
	Target    int            // index into Table.Targets; 0 where there is a Map
	Limit     Limit          // of the connections that it takes
	Sessions  Sessions       // of those, that live at once
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
	Name    string
	Keys    Keys
	Hold    Hold
	Places  int // paths to choose from; 0: one
	Balance Balance
}

// Balance says which of several places a connection goes to.
type Balance uint8

// The ways to choose among the places whose receivers live.
const (
	Failover   Balance = iota // the first
	RoundRobin                // one after another
	SourceHash                // by the client's address: always the same, as long as it lives
	ByMap                     // the one that the map names
	balances
)

// MapInfo is what a table says of a map, whose entries travel apart.
type MapInfo struct {
	Name   string
	Target int // of the entries that are paths: its places are the map's paths
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
	Maps    []MapInfo
	Rules   []Rule
}

// Conn is what a rule can look at. Addresses are unmapped; for a connection
// of a Unix listener they are invalid and Port is 0.
type Conn struct {
	Listener      int
	Port          uint16 // port that the client dialled
	Local, Remote netip.Addr

	by    *Map // that has been looked into: what follows is what it said
	found To
}
