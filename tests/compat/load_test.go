//go:build compat

package compat

import (
	"fmt"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// load is what a crowd of clients met.
type load struct {
	served, failed int
	took           time.Duration
	err            error // the first failure
}

func (l *load) add(o load) {
	l.served += o.served
	l.failed += o.failed
	l.took += o.took
	if l.err == nil {
		l.err = o.err
	}
}

// rate returns requests per second.
func (l load) rate() float64 { return float64(l.served) / l.took.Seconds() }

// patience is how long a client waits for its answer. A SYN that a full
// backlog dropped comes again after 1, 3 and 7 seconds.
const patience = 20 * time.Second

// crowd makes requests, each over a new connection, with a number of clients
// at once, until count are made or stop is closed. Between two requests a
// client pauses.
func (i *instance) crowd(count, clients int, pause time.Duration, stop <-chan struct{}) load {
	var (
		next, served, failed atomic.Int64
		first                sync.Once
		l                    load
		all                  sync.WaitGroup
	)
	began := time.Now()
	for range clients {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					time.Sleep(pause)
				}
				n := next.Add(1)
				if n > int64(count) {
					return
				}
				if err := i.once(&net.Dialer{Timeout: patience}, i.address(int(n)), patience); err != nil {
					failed.Add(1)
					first.Do(func() { l.err = err })
					continue
				}
				served.Add(1)
			}
		})
	}
	all.Wait()
	l.took = time.Since(began)
	l.served, l.failed = int(served.Load()), int(failed.Load())
	return l
}

// address returns where client n connects to: the families in turn.
func (i *instance) address(n int) string {
	if i.listens == "46" && n%2 == 1 {
		return fmt.Sprintf("[::1]:%d", i.port)
	}
	return fmt.Sprintf("127.0.0.1:%d", i.port)
}

var numbers = regexp.MustCompile(`[\[\]0-9a-f.:]*:\d{4,5}(->[\[\]0-9a-f.:]*:\d{4,5})?`)

// neutral returns an error's text without addresses.
func neutral(err error) string {
	if err == nil {
		return ""
	}
	return numbers.ReplaceAllString(err.Error(), "ADDRESS")
}
