package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// maxErrors is how many errors of one file are reported: more than anyone
// reads, and a bound for a file that is no configuration at all.
const maxErrors = 100

// Error is one thing wrong in a configuration, and where.
type Error struct {
	Where string // "path:line:column", or the flag
	Err   error
	hint  string

	position position // orders the errors of a file
}

func (e *Error) Error() string { return e.Where + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the next step for whoever reads the error, "" if there is none.
func (e *Error) Hint() string { return e.hint }

// join sorts errors by their place in the file and joins them, one a line.
func join(found []*Error) error {
	slices.SortStableFunc(found, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.position.line, b.position.line), cmp.Compare(a.position.column, b.position.column))
	})
	var errs []error
	for i, e := range found {
		if i == maxErrors {
			errs = append(errs, fmt.Errorf("and %d errors more", len(found)-maxErrors))
			break
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}
