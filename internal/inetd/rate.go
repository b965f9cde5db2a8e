package inetd

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rate is how many connections may be started in a time. The zero value sets
// no limit.
type Rate struct {
	Count int
	Per   time.Duration
}

var rateUnits = []struct {
	name string
	per  time.Duration
}{{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}}

// ParseRate reads "N/s", "N/m" or "N/h"; "N" is "N/s".
func ParseRate(text string) (Rate, error) {
	number, unit, given := strings.Cut(text, "/")
	if !given {
		unit = "s"
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 1e9 {
		return Rate{}, fmt.Errorf("rate %q: want a number of connections from 1 and a unit, as 50/s, 600/m or 3600/h", text)
	}
	for _, u := range rateUnits {
		if unit == u.name {
			return Rate{n, u.per}, nil
		}
	}
	return Rate{}, fmt.Errorf("rate %q: the unit is s, m or h", text)
}

func (r Rate) String() string {
	for _, u := range rateUnits {
		if r.Count > 0 && r.Per == u.per {
			return fmt.Sprintf("%d/%s", r.Count, u.name)
		}
	}
	return "none"
}

// bucket is a token bucket: it holds up to Count tokens, which is how many
// may start in a burst after a quiet time, and gets Count of them back in the
// course of each Per. It only ever delays: there is no state in which it
// stays shut.
type bucket struct {
	rate   Rate
	tokens float64
	at     time.Time // when tokens was right
}

func newBucket(r Rate, now time.Time) bucket {
	return bucket{rate: r, tokens: float64(r.Count), at: now}
}

// wait returns how long it is until the next token, 0 if there is one.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.rate.Count == 0 {
		return 0
	}
	perToken := b.rate.Per / time.Duration(b.rate.Count)
	if elapsed := now.Sub(b.at); elapsed > 0 {
		b.tokens = min(b.tokens+float64(elapsed)/float64(b.rate.Per)*float64(b.rate.Count), float64(b.rate.Count))
		b.at = now
	}
	if b.tokens >= 1 {
		return 0
	}
	return max(time.Duration((1-b.tokens)*float64(perToken)), time.Microsecond)
}

// take uses one token, which wait has found.
func (b *bucket) take() {
	if b.rate.Count > 0 {
		b.tokens--
	}
}

// giveBack returns a token of a start that did not happen.
func (b *bucket) giveBack() {
	if b.rate.Count > 0 {
		b.tokens++
	}
}
