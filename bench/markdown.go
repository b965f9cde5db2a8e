package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// title prints a heading and the paragraph below it.
func (b *bench) title(heading, text string) {
	fmt.Fprintf(b.out, "\n## %s\n%s\n\n", heading, text)
}

// head prints the first two lines of a table.
func (b *bench) head(columns ...string) {
	fmt.Fprintf(b.out, "| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
}

// row prints one line of a table.
func (b *bench) row(cells ...string) {
	fmt.Fprintf(b.out, "| %s |\n", strings.Join(cells, " | "))
}

// failedRow prints why a variant has no figures.
func (b *bench) failedRow(v *variant) {
	b.row(v.name, fmt.Sprint(v.clients), fmt.Sprintf("did not run: %v", v.err))
}

// exact shows a median with two decimals and its range.
func exact(f figure) string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", f.median, f.least, f.most)
}

// whole shows a median and its range without decimals.
func whole(f figure) string {
	return fmt.Sprintf("%.0f (%.0f–%.0f)", f.median, f.least, f.most)
}

// ratio shows a median as a share of another variant's.
func ratio(v, base *variant, value func(sample) float64) string {
	if base == nil || len(base.samples) == 0 || base.of(value).median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v.of(value).median/base.of(value).median)
}

// printResident prints the largest memory seen of each variant's processes.
func (b *bench) printResident(variants []*variant) {
	most := map[string]map[string]int{}
	for _, v := range variants {
		for role, kib := range v.resident() {
			if most[v.name] == nil {
				most[v.name] = map[string]int{}
			}
			most[v.name][role] = max(most[v.name][role], kib)
		}
	}
	fmt.Fprintln(b.out, "\nResident memory (VmRSS) after a load, the largest seen:")
	fmt.Fprintln(b.out)
	b.head("variant", "process", "KiB")
	for _, name := range slices.Sorted(maps.Keys(most)) {
		for _, role := range slices.Sorted(maps.Keys(most[name])) {
			b.row(name, role, fmt.Sprint(most[name][role]))
		}
	}
}
