package logging

import (
	"fmt"
	"io"
	"strings"
)

// hinter is an error that knows the next step for the administrator.
type hinter interface{ Hint() string }

// PrintError writes the last words of a program: a line `program: error: ...`
// for each line of the error's text (errors.Join makes one per error), then a
// line `hint: ...` for each next step that an error in its tree knows. It
// writes nothing for nil.
func PrintError(w io.Writer, program string, err error) {
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(w, "%s: error: %s\n", program, oneLine(line))
		}
	}
	printed := make(map[string]bool)
	for _, hint := range hints(err) {
		for line := range strings.Lines(hint) {
			line = strings.TrimSpace(line)
			if line != "" && !printed[line] {
				printed[line] = true
				fmt.Fprintf(w, "hint: %s\n", oneLine(line))
			}
		}
	}
}

// hints collects the hints of every error in the tree below err, outermost
// first. errors.As would stop at the first one of a joined error.
func hints(err error) []string {
	var found []string
	if h, ok := err.(hinter); ok {
		if text := h.Hint(); text != "" {
			found = append(found, text)
		}
	}
	switch wrapped := err.(type) {
	case interface{ Unwrap() error }:
		if inner := wrapped.Unwrap(); inner != nil {
			found = append(found, hints(inner)...)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range wrapped.Unwrap() {
			found = append(found, hints(inner)...)
		}
	}
	return found
}
