package inetd

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/inetd/spawn"
)

// ParseLimit reads "NAME=SOFT[:HARD]", as nofile=1024:4096 or core=unlimited.
// One number sets both. Sizes may have a suffix K, M, G or T (of 1024).
func ParseLimit(text string) (spawn.Limit, error) {
	name, values, ok := strings.Cut(text, "=")
	if !ok {
		return spawn.Limit{}, fmt.Errorf("limit %q: want NAME=SOFT or NAME=SOFT:HARD", text)
	}
	resource, ok := spawn.Resources[strings.TrimPrefix(strings.ToLower(name), "rlimit_")]
	if !ok {
		return spawn.Limit{}, fmt.Errorf("limit %q: unknown name; want one of %s", text, strings.Join(spawn.ResourceNames(), ", "))
	}
	softText, hardText, two := strings.Cut(values, ":")
	soft, err := parseLimitValue(softText)
	if err != nil {
		return spawn.Limit{}, fmt.Errorf("limit %q: %w", text, err)
	}
	hard := soft
	if two {
		if hard, err = parseLimitValue(hardText); err != nil {
			return spawn.Limit{}, fmt.Errorf("limit %q: %w", text, err)
		}
	}
	if soft > hard {
		return spawn.Limit{}, fmt.Errorf("limit %q: the soft limit is above the hard one", text)
	}
	return spawn.Limit{Resource: resource, Rlimit: unix.Rlimit{Cur: soft, Max: hard}}, nil
}

func parseLimitValue(text string) (uint64, error) {
	if text == "unlimited" || text == "infinity" {
		return unix.RLIM_INFINITY, nil
	}
	number, shift := text, 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte("KMGT", text[n-1]&^0x20); i >= 0 {
			number, shift = text[:n-1], 10*(i+1)
		}
	}
	value, err := strconv.ParseUint(number, 10, 64)
	if err != nil || value > (unix.RLIM_INFINITY-1)>>shift {
		return 0, fmt.Errorf("%q is no number, size or \"unlimited\"", text)
	}
	return value << shift, nil
}
