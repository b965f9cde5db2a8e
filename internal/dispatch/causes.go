package dispatch

import (
	"sync/atomic"
	"unsafe"
)

// Cause is why a connection that was accepted was reset and counted as failed.
type Cause uint8

// The causes. Their numbers are of one build: they cross no file and no wire.
const (
	CauseAbsent Cause = iota
	CauseBusy
	CauseHoldConnections
	CauseHoldTotal
	CauseNoDirectory
	CauseRefused
	CausePaths
	CauseDied
	CauseStopped
	CauseSessions
	CauseRate
	numCauses
)

// maxCauses is the room in a file of counters.
const maxCauses = 16

// causeNames are the causes as status --json and metrics spell them, and as
// the log does.
var causeNames = [numCauses]struct{ name, text string }{
	CauseAbsent:          {"absent", "nobody has received for longer than hold.time"},
	CauseBusy:            {"busy", "its receiver was full for longer than hold.busy"},
	CauseHoldConnections: {"hold_connections", "hold.connections reached"},
	CauseHoldTotal:       {"hold_total", "hold_total reached"},
	CauseNoDirectory:     {"no_directory", "no such socket directory"},
	CauseRefused:         {"refused", "the kernel refuses to pass it"},
	CausePaths:           {"too_many_paths", "too many paths are waited for"},
	CauseSessions:        {"max_sessions", "max_sessions was reached for longer than hold.busy"},
	CauseRate:            {"rate", "more wait already than its rate lets pass"},
	CauseDied:            {"dispatcher_died", "the dispatcher died with it in its hands"},
	CauseStopped:         {"stopped", "socketbox was told to end at once"},
}

// Name is the cause as status --json and metrics spell it.
func (c Cause) Name() string {
	if c >= numCauses {
		return "unknown"
	}
	return causeNames[c].name
}

// String is the cause as the log spells it.
func (c Cause) String() string {
	if c >= numCauses {
		return "unknown"
	}
	return causeNames[c].text
}

// resetTexts are the log's words for a reset of each cause, put together once:
// a flood is reset a connection at a time.
var resetTexts = func() (texts [numCauses]string) {
	for i := range texts {
		texts[i] = "connection reset: " + Cause(i).String()
	}
	return texts
}()

// Causes counts failed connections by Cause.
type Causes [maxCauses]uint64

const causesSize = int(unsafe.Sizeof(Causes{}))

// Snapshot reads the causes while the dispatcher goes on writing them: those
// that happened, by name; nil if none did.
func (c *Causes) Snapshot() map[string]uint64 {
	var found map[string]uint64
	for i := range numCauses {
		if n := atomic.LoadUint64(&c[i]); n > 0 {
			if found == nil {
				found = map[string]uint64{}
			}
			found[i.Name()] = n
		}
	}
	return found
}
