package metrics

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"socketbox/internal/binder"
	"socketbox/internal/dispatch"
)

// Collector asks for the status at each scrape. It keeps nothing: what counts
// is in the instance.
type Collector struct {
	// Fetch returns the status.
	Fetch func() (*binder.Status, error)
	// Failed hears why there was none.
	Failed func(error)

	mu sync.Mutex // one question at a time: the control socket takes 16
}

// Describe sends every description (prometheus.Collector).
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d
	}
}

// Collect sends what the status says; socketbox_up alone is 0 where nobody
// answers (prometheus.Collector).
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.Fetch()
	if err != nil {
		c.Failed(err)
		ch <- gauge(up, 0)
		return
	}
	ch <- gauge(up, 1)
	collectInstance(ch, s)
	for i := range s.Listeners {
		collectListener(ch, &s.Listeners[i])
	}
	for i := range s.Rules {
		r := &s.Rules[i]
		labels := []string{strconv.Itoa(r.Number), r.Place, r.Target}
		collectCounts(ch, ruleCounts, &r.Counts, labels...)
	}
	live, absent := pathsOf(s)
	for i := range s.Targets {
		t := &s.Targets[i]
		collectCounts(ch, targetCounts, &t.Counts, t.Name)
		for cause, n := range t.Causes {
			ch <- counter(targetFailures, n, t.Name, cause)
		}
		ch <- gauge(targetPaths, float64(live[t.Name]), t.Name, "live")
		ch <- gauge(targetPaths, float64(absent[t.Name]), t.Name, "absent")
		collectTimes(ch, targetHold, t.Hold, t.Name)
	}
}

func collectInstance(ch chan<- prometheus.Metric, s *binder.Status) {
	ch <- gauge(startTime, float64(s.Since.UnixNano())/1e9)
	ch <- gauge(dispatcherUp, truth(s.Dispatcher != 0))
	ch <- counter(restarts, s.Restarts)
	ch <- counter(reloads, s.Reloads.Succeeded, "success")
	ch <- counter(reloads, s.Reloads.Failed, "failure")
	ch <- gauge(reloadOK, truth(s.Reloads.Error == ""))
	if s.Reloads.Last != nil {
		ch <- gauge(reloadTime, float64(s.Reloads.Last.UnixNano())/1e9)
	}
	ch <- gauge(holdLimit, float64(s.HoldTotal))
	ch <- gauge(guardOn, truth(s.GuardState.On))
	r := s.GuardState.Refusals
	for action, n := range map[string]uint64{"connect": r.Connect, "bind": r.Bind, "listen": r.Listen, "send": r.Send} {
		ch <- counter(refusals, n, action)
	}
	for _, p := range s.Processes {
		ch <- gauge(processOK, truth(p.Problem == ""), p.Role)
	}
}

func collectListener(ch chan<- prometheus.Metric, l *binder.ListenerStatus) {
	collectCounts(ch, listenerCounts, &l.Counts, l.Name)
	collectTimes(ch, handOff, l.HandOff, l.Name)
	ch <- gauge(guarded, truth(l.Guarded), l.Name)
	ch <- gauge(lent, truth(l.State == binder.Lent), l.Name)
	ch <- counter(loans, l.Loans, l.Name)
	if l.Backlog > 0 {
		ch <- gauge(acceptQueue, float64(l.Queue), l.Name)
		ch <- gauge(acceptQueueLimit, float64(l.Backlog), l.Name)
	}
}

// collectCounts sends the counts of one listener, rule or target.
func collectCounts(ch chan<- prometheus.Metric, d countDescs, c *dispatch.Counts, labels ...string) {
	ch <- counter(d.accepted, c.Accepted, labels...)
	ch <- counter(d.held, c.Held, labels...)
	ch <- gauge(d.waiting, float64(c.Waiting), labels...)
	for outcome, n := range map[string]uint64{"delivered": c.Delivered, "rejected": c.Rejected, "failed": c.Failed} {
		ch <- counter(d.ended, n, append(append([]string{}, labels...), outcome)...)
	}
}

// collectTimes sends a histogram; an empty one too, so that it is there before
// the first connection.
func collectTimes(ch chan<- prometheus.Metric, d *prometheus.Desc, t *binder.Times, labels ...string) {
	buckets := map[float64]uint64{}
	for _, b := range dispatch.Bounds {
		buckets[b.Seconds()] = 0
	}
	count, sum := uint64(0), 0.0
	if t != nil {
		count, sum = t.Count, t.Sum
		for _, b := range t.Buckets {
			buckets[b.Bound] = b.Count
		}
	}
	ch <- prometheus.MustNewConstHistogram(d, count, sum, buckets, labels...)
}

// pathsOf counts the resolved paths of each target.
func pathsOf(s *binder.Status) (live, absent map[string]int) {
	live, absent = map[string]int{}, map[string]int{}
	for _, p := range s.Paths {
		n := absent
		if p.Live {
			n = live
		}
		for _, name := range p.Targets {
			n[name]++
		}
	}
	return live, absent
}

func truth(v bool) float64 {
	if v {
		return 1
	}
	return 0
}

func gauge(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(d *prometheus.Desc, v uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}
