package logging

import (
	"sync"
	"time"
)

// Limiter lets each message through at most once in a time: for lines that
// something outside can cause as often as it likes. The zero value is ready,
// for one line a second. It may be used by several goroutines.
type Limiter struct {
	Every time.Duration // 0: a second

	mu   sync.Mutex
	seen map[string]*occurrence
}

type occurrence struct {
	logged time.Time
	left   uint64
}

// maxMessages bounds what a Limiter remembers; messages are constants, so it
// is never reached but by a mistake.
const maxMessages = 1000

// Allow tells whether message may be logged now, and how many of it were left
// out since it was the last time.
func (l *Limiter) Allow(message string, now time.Time) (left uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	every := l.Every
	if every == 0 {
		every = time.Second
	}
	o := l.seen[message]
	if o == nil {
		if l.seen == nil || len(l.seen) >= maxMessages {
			l.seen = make(map[string]*occurrence)
		}
		l.seen[message] = &occurrence{logged: now}
		return 0, true
	}
	if now.Sub(o.logged) < every {
		o.left++
		return 0, false
	}
	left = o.left
	*o = occurrence{logged: now}
	return left, true
}
