package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// sample is one measurement of one variant.
type sample struct {
	loadResult
	cpu      float64        // µs per connection, or per GiB
	bytes    int64          // that were pumped, where it is about those
	extra    float64        // µs per connection of the processes shown apart
	resident map[string]int // KiB, by role
}

// variant is a row of a table: what is measured, and what came of it.
type variant struct {
	name    string
	clients int
	measure func() (sample, error)
	samples []sample
	err     error // why it did not run
}

// measureRounds measures groups of variants that are compared with each other,
// in an order shuffled each round: what changes on the machine meanwhile, and
// what one variant leaves to the next, then hits all alike. A variant that
// fails is left out from then on.
func (b *bench) measureRounds(title string, groups ...[]*variant) error {
	for round := range b.rounds {
		for _, group := range groups {
			order := slices.Clone(group)
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, v := range order {
				b.measure(v, fmt.Sprintf("%s, round %d of %d", title, round+1, b.rounds))
				if err := b.ctx.Err(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// measure takes one sample of a variant that has not failed yet.
func (b *bench) measure(v *variant, where string) {
	if v.err != nil {
		return
	}
	s, err := v.measure()
	if b.ctx.Err() != nil {
		return
	}
	if err != nil {
		v.err, b.failed = err, true
		fmt.Fprintf(b.log, "%s: %s: %v\n", where, v.name, err)
		return
	}
	v.samples = append(v.samples, s)
	fmt.Fprintf(b.log, "%s: %s, %d clients: %.0f/s, p99 %v, %.2f µs CPU, %d lost\n",
		where, v.name, v.clients, s.rate(), s.p99, s.cpu, s.allLost())
}

// figure is the median of a value over the samples, and its range.
type figure struct{ median, least, most float64 }

// of returns the figure of a value; the variant must have samples.
func (v *variant) of(value func(sample) float64) figure {
	values := make([]float64, len(v.samples))
	for i, s := range v.samples {
		values[i] = value(s)
	}
	slices.Sort(values)
	return figure{median(values), values[0], values[len(values)-1]}
}

// median takes sorted values.
func median(values []float64) float64 {
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// lost returns how many connections were lost in all rounds together.
func (v *variant) lost() string {
	kinds, total := map[string]int{}, 0
	for _, s := range v.samples {
		for kind, n := range s.lost {
			kinds[kind] += n
			total += n
		}
	}
	if total == 0 {
		return "0"
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		parts = append(parts, fmt.Sprintf("%d %s", kinds[kind], kind))
	}
	return strings.Join(parts, ", ")
}

// resident returns the largest memory seen of each role, in KiB.
func (v *variant) resident() map[string]int {
	most := map[string]int{}
	for _, s := range v.samples {
		for role, kib := range s.resident {
			most[role] = max(most[role], kib)
		}
	}
	return most
}

// The values that the tables show.
func cpuOf(s sample) float64   { return s.cpu }
func extraOf(s sample) float64 { return s.extra }
func rateOf(s sample) float64  { return s.rate() }
func p50Of(s sample) float64   { return microseconds(s.p50) }
func p99Of(s sample) float64   { return microseconds(s.p99) }
func p999Of(s sample) float64  { return microseconds(s.p999) }

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
