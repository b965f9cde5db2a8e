package dispatch

import (
	"testing"
	"time"
)

// come has n connections come together every so often for 20 ms, and returns
// the share of waits that begin with a nap.
func (m *moderation) come(now *time.Duration, n int, every time.Duration) float64 {
	naps, waits := 0, 0
	for end := *now + 20*time.Millisecond; *now < end; *now += every {
		m.came += n
		if m.due(*now) {
			naps++
		}
		waits++
	}
	return float64(naps) / float64(waits)
}

func TestModeration(t *testing.T) {
	const never, mostly = 0.0, 0.7
	var m moderation
	now := time.Hour
	for _, step := range []struct {
		name  string
		n     int
		every time.Duration
		least float64
		most  float64
	}{
		{"several, seldom", 16, 3 * time.Millisecond, never, never},
		{"one by one, as fast as one client can", 1, 50 * time.Microsecond, never, never},
		{"many", 4, 100 * time.Microsecond, mostly, 1},
		{"one by one again", 1, 50 * time.Microsecond, never, never},
		{"many again", 8, 200 * time.Microsecond, mostly, 1},
	} {
		if share := m.come(&now, step.n, step.every); share < step.least || share > step.most {
			t.Errorf("%s: %.2f of the waits began with a nap", step.name, share)
		}
	}
	now += time.Minute
	m.come(&now, 4, 100*time.Microsecond)
	now += time.Minute
	m.came = 4
	if m.due(now) {
		t.Error("a nap after a minute without connections")
	}
}
