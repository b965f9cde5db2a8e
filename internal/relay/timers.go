package relay

import "container/heap"

// timers are a worker's connections for which something is due, soonest
// first. A connection is in it once, with the soonest of what it waits for.
type timers []*connection

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].due < t[j].due }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].place, t[j].place = i, j
}
func (t *timers) Push(x any) {
	c := x.(*connection)
	c.place = len(*t)
	*t = append(*t, c)
}
func (t *timers) Pop() any {
	old := *t
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	c.place = -1
	return c
}

// set makes due what c waits for: at a time of the worker's clock, never with
// 0.
func (t *timers) set(c *connection, due int64) {
	switch {
	case due == 0 && c.place >= 0:
		heap.Remove(t, c.place)
		c.due = 0
	case due == 0:
	case c.place < 0:
		c.due = due
		heap.Push(t, c)
	case due != c.due:
		c.due = due
		heap.Fix(t, c.place)
	}
}
