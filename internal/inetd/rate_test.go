package inetd

import (
	"testing"
	"time"
)

func TestParseRate(t *testing.T) {
	valid := map[string]Rate{
		"50/s": {50, time.Second}, "50": {50, time.Second}, "600/m": {600, time.Minute}, "1/h": {1, time.Hour},
	}
	for text, want := range valid {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0/s", "-1/s", "1/d", "1/", "/s", "x/s", "1.5/s", "99999999999/s"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q: got %v, no error", text, got)
		}
	}
}

func TestBucketPausesAndRecovers(t *testing.T) {
	now := time.Now()
	b := newBucket(Rate{10, time.Second}, now)
	burst := 0
	for ; b.wait(now) == 0; burst++ {
		b.take()
	}
	if burst != 10 {
		t.Errorf("a burst of %d, want 10", burst)
	}
	if d := b.wait(now); d <= 0 || d > 100*time.Millisecond {
		t.Errorf("the next is due in %v, want at most 100ms", d)
	}
	// A minute of asking all the time: 10 a second, never stuck.
	started := 0
	for end := now.Add(time.Minute); now.Before(end); now = now.Add(time.Millisecond) {
		for b.wait(now) == 0 {
			b.take()
			started++
		}
	}
	if started < 599 || started > 600 {
		t.Errorf("%d in a minute, want 600", started)
	}
	// After a quiet time no more than one burst.
	now = now.Add(time.Hour)
	for burst = 0; b.wait(now) == 0; burst++ {
		b.take()
	}
	if burst != 10 {
		t.Errorf("a burst of %d after an hour, want 10", burst)
	}
}

func TestBucketWaitIsEnough(t *testing.T) {
	now := time.Now()
	for _, r := range []Rate{{1, time.Hour}, {7, time.Minute}, {999999, time.Second}} {
		b := newBucket(r, now)
		for b.wait(now) == 0 {
			b.take()
		}
		for range 10 { // one wait, or a second for what rounding has left
			now = now.Add(b.wait(now))
			if d := b.wait(now); d > time.Microsecond {
				t.Fatalf("%v: after the wait there are %v left", r, d)
			}
		}
	}
}

func TestNoRateNeverWaits(t *testing.T) {
	b := newBucket(Rate{}, time.Now())
	for range 1000 {
		if b.wait(time.Now()) != 0 {
			t.Fatal("waits")
		}
		b.take()
	}
}
