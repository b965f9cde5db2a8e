package dispatch

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Counts are the numbers kept for one listener, rule or target. Each
// connection that was accepted is in exactly one of Delivered, Rejected,
// Failed and Waiting.
type Counts struct {
	Accepted  uint64 `json:"accepted"`
	Delivered uint64 `json:"delivered"`
	Held      uint64 `json:"held"`     // had to wait before it was delivered or failed
	Waiting   uint64 `json:"waiting"`  // now
	Rejected  uint64 `json:"rejected"` // by a rule or its limit
	Failed    uint64 `json:"failed"`   // reset because its target could not take it
	_         [2]uint64
}

// Add returns the sum of two counts.
func (c Counts) Add(o Counts) Counts {
	return Counts{
		Accepted: c.Accepted + o.Accepted, Delivered: c.Delivered + o.Delivered, Held: c.Held + o.Held,
		Waiting: c.Waiting + o.Waiting, Rejected: c.Rejected + o.Rejected, Failed: c.Failed + o.Failed,
	}
}

const countsSize = int(unsafe.Sizeof(Counts{}))

// Counters is what a dispatcher writes into a memory file and the binder reads:
// it outlives the dispatcher. In order: the trace; the Counts of listeners, "no
// rule", rules, targets; the Causes of each target; the Histograms of listeners
// (accept to hand-off) and of targets (hold).
type Counters struct {
	mapped    []byte
	trace     *trace
	all       []Counts
	causes    []Causes
	times     []Histogram
	listeners int
	rules     int
}

// slots returns how many Counts, Causes and Histograms a plan needs.
func (p *Plan) slots() (counts, causes, times int) {
	listeners, targets := len(p.Listeners), len(p.Table.Targets)
	return listeners + 1 + len(p.Table.Rules) + targets, targets, listeners + targets
}

// countersSize is the size in bytes of the file that p needs.
func (p *Plan) countersSize() int {
	counts, causes, times := p.slots()
	return traceSize + counts*countsSize + causes*causesSize + times*histogramSize
}

// NewCountersFile returns a memory file with room for the counters of p, whose
// size can't change any more. The caller owns it.
func NewCountersFile(p *Plan) (int, error) { return newFile("socketbox-counters", p.countersSize()) }

// newFile returns a memory file that is to be mapped and that can't shrink
// under who has mapped it.
func newFile(name string, size int) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size %s: %w", name, err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal %s: %w", name, err)
	}
	return fd, nil
}

// mapFile maps a file that newFile made.
func mapFile(fd, size int) ([]byte, error) {
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("the file is not sealed (%w)", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != int64(size) {
		return nil, fmt.Errorf("%d bytes, not %d (%w)", st.Size, size, err)
	}
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// MapCounters maps the counters of p from fd, which stays the caller's.
func MapCounters(p *Plan, fd int) (*Counters, error) {
	b, err := mapFile(fd, p.countersSize())
	if err != nil {
		return nil, fmt.Errorf("map counters: %w", err)
	}
	counts, causes, times := p.slots()
	c := &Counters{mapped: b, listeners: len(p.Listeners), rules: len(p.Table.Rules), trace: (*trace)(unsafe.Pointer(&b[0]))}
	c.all = unsafe.Slice((*Counts)(unsafe.Pointer(&b[traceSize])), counts)
	causesAt := traceSize + counts*countsSize
	timesAt := causesAt + causes*causesSize
	c.causes = unsafe.Slice((*Causes)(unsafe.Pointer(&b[causesAt])), causes)
	c.times = unsafe.Slice((*Histogram)(unsafe.Pointer(&b[timesAt])), times)
	return c, nil
}

// Unmap ends the mapping; the counters can't be used any more.
func (c *Counters) Unmap() {
	if c == nil || c.mapped == nil {
		return
	}
	unix.Munmap(c.mapped)
	*c = Counters{}
}

// Listener returns the counts of listener i of the plan.
func (c *Counters) Listener(i int) *Counts { return &c.all[i] }

// Rule returns the counts of rule i; -1 is "no rule took it".
func (c *Counters) Rule(i int) *Counts { return &c.all[c.listeners+1+i] }

// Target returns the counts of target i.
func (c *Counters) Target(i int) *Counts { return &c.all[c.listeners+1+c.rules+i] }

// Causes returns why connections of target i failed.
func (c *Counters) Causes(i int) *Causes { return &c.causes[i] }

// HandOff returns the times from accept to hand-off of listener i.
func (c *Counters) HandOff(i int) *Histogram { return &c.times[i] }

// Hold returns the times that connections were on hold for target i.
func (c *Counters) Hold(i int) *Histogram { return &c.times[c.listeners+i] }

// Snapshot reads the counts while the dispatcher goes on writing them.
func (c *Counts) Snapshot() Counts {
	return Counts{
		Accepted: atomic.LoadUint64(&c.Accepted), Delivered: atomic.LoadUint64(&c.Delivered),
		Held: atomic.LoadUint64(&c.Held), Waiting: atomic.LoadUint64(&c.Waiting),
		Rejected: atomic.LoadUint64(&c.Rejected), Failed: atomic.LoadUint64(&c.Failed),
	}
}

// settle counts what an earlier dispatcher held when it died as failed: the
// kernel reset it.
func (c *Counters) settle() {
	for i := range c.causes {
		c.causes[i][CauseDied] += c.Target(i).Waiting
	}
	for i := range c.all {
		c.all[i].Failed += c.all[i].Waiting
		c.all[i].Waiting = 0
	}
}

// tally is the three counts that one connection moves.
type tally [3]*Counts

func (t *tally) accepted() {
	for _, c := range t {
		c.Accepted++
	}
}

func (t *tally) delivered() {
	for _, c := range t {
		c.Delivered++
	}
}

func (t *tally) rejected() {
	for _, c := range t {
		c.Rejected++
	}
}

func (t *tally) failed() {
	for _, c := range t {
		c.Failed++
	}
}

// waits counts a connection that begins (+1) or ends (-1) to wait.
func (t *tally) waits(delta int) {
	for _, c := range t {
		c.Waiting += uint64(delta)
		if delta > 0 {
			c.Held++
		}
	}
}

// heldAgain takes back that a connection was counted as held twice.
func (t *tally) heldAgain() {
	for _, c := range t {
		c.Held--
	}
}
