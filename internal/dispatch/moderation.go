package dispatch

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// napTime is how long the worker lets connections gather where many come.
	// The kernel's timer slack comes on top: 50 µs by default, see
	// PR_SET_TIMERSLACK in prctl(2).
	napTime = 100 * time.Microsecond
	// rushRate, in connections per second, is where naps begin: two and more
	// come in the time of one.
	rushRate = 16000
	// rushWindow is the least time that a rate is taken over.
	rushWindow = 4 * time.Millisecond
)

// moderation decides when to nap, as network adapters moderate their
// interrupts: waking up for each connection costs the dispatcher and the
// receiver more than moving it, and the processors that wake up and fall
// asleep serve nobody meanwhile. Connections under a limit of rate don't count:
// who set one expects floods, in which others are to wait no longer.
type moderation struct {
	came  int           // connections since the last wait
	count int           // and since the window's beginning
	begun time.Duration // the window, in the worker's time
	rush  bool          // at the end of the window before
}

// due says whether to nap now, before the next wait: connections come faster
// than rushRate, and not one by one. A client that waits for its answer before
// it comes again is never kept waiting so.
func (m *moderation) due(now time.Duration) bool {
	came := m.came
	m.came = 0
	m.count += came
	if took := now - m.begun; took >= rushWindow {
		m.rush = float64(m.count) >= rushRate*took.Seconds()
		m.count, m.begun = 0, now
	}
	return m.rush && came > 1
}

// nap sleeps without telling the Go scheduler, which would take the processor
// away. A signal ends it early.
func nap() {
	t := unix.NsecToTimespec(int64(napTime))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
}
