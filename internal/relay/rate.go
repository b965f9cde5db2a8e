package relay

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ParseBytesRate reads bytes per second: a number with K, M or G (of 1024) and
// "/s", if one likes, behind it, as 512K, 10M/s.
func ParseBytesRate(text string) (int64, error) {
	number, shift := strings.TrimSuffix(text, "/s"), 0
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMG", number[n-1]&^0x20); i >= 0 {
			number, shift = number[:n-1], 10*(i+1)
		}
	}
	value, err := strconv.ParseInt(number, 10, 64)
	if err != nil || value < 1 || value > math.MaxInt64>>(shift+1) {
		return 0, fmt.Errorf("rate %q: want bytes per second from 1, as 65536, 512K or 10M/s", text)
	}
	return value << shift, nil
}

// bucket bounds bytes per second. It holds what a tenth of a second brings, or
// one full read if that is more, so that a burst is bounded, too.
type bucket struct {
	rate   int64
	tokens float64
	at     int64 // when tokens was right, in nanoseconds
}

func newBucket(rate, now int64) bucket {
	b := bucket{rate: rate, at: now}
	b.tokens = b.most()
	return b
}

func (b *bucket) most() float64 { return max(float64(b.rate)/10, float64(copySize)) }

// allow returns how many bytes may go now, at most want; if none, it returns
// after how many nanoseconds to ask again. It takes nothing.
func (b *bucket) allow(want int, now int64) (n int, wait int64) {
	if elapsed := now - b.at; elapsed > 0 {
		b.tokens = min(b.most(), b.tokens+float64(elapsed)/float64(time.Second)*float64(b.rate))
		b.at = now
	}
	// Not byte by byte: a wake-up is worth a twentieth of a second, or a
	// full read.
	if least := min(float64(want), max(1, min(float64(b.rate)/20, copySize))); b.tokens < least {
		return 0, int64((least-b.tokens)/float64(b.rate)*float64(time.Second)) + 1
	}
	return min(want, int(b.tokens)), 0
}

func (b *bucket) take(n int) { b.tokens -= float64(n) }

// sharedBucket is a bucket for all workers.
type sharedBucket struct {
	mu sync.Mutex
	bucket
}

func (b *sharedBucket) allow(want int, now int64) (int, int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bucket.allow(want, now)
}

func (b *sharedBucket) take(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bucket.take(n)
}
