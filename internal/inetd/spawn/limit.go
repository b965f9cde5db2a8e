package spawn

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Resources are the names of resource limits, as in setrlimit(2) without the
// prefix.
var Resources = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// ResourceNames returns the keys of Resources, sorted.
func ResourceNames() []string { return slices.Sorted(maps.Keys(Resources)) }

func limitName(resource int) string {
	for name, r := range Resources {
		if r == resource {
			return "RLIMIT_" + strings.ToUpper(name)
		}
	}
	return fmt.Sprint(resource)
}

// originalFileLimit returns the limit of open files that this process was
// started with. Go's runtime raises the soft one to the hard one at start and
// gives the original back only to what it executes itself; select(2) in a
// child breaks above 1024.
//
// The only way to learn it: syscall.Exec restores the original before it
// tries to execute, and nothing undoes that when it fails. Ours is then
// raised again.
var originalFileLimit = sync.OnceValues(func() (unix.Rlimit, error) {
	var original unix.Rlimit
	syscall.Exec("", []string{""}, nil)
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &original); err != nil {
		return original, fmt.Errorf("getrlimit RLIMIT_NOFILE: %w", err)
	}
	raised := unix.Rlimit{Cur: original.Max, Max: original.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		return original, fmt.Errorf("setrlimit RLIMIT_NOFILE: %w", err)
	}
	return original, nil
})
