// Package resident keeps a long-running process small. It needs no privilege.
package resident

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Trimmer returns a function that gives back the pages of the program file
// that start-up has touched (madvise(2), MADV_DONTNEED): they are clean, and
// what is needed again comes back from the page cache. A process that only
// moves descriptors then is as small as it should be, though its file also
// holds the command line and the configuration. Trimmer reads /proc; the
// function it returns makes no other call than madvise. Failure is harmless.
func Trimmer() func() {
	type extent struct{ from, to uintptr }
	var clean []extent
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return func() {}
	}
	defer maps.Close()
	var e extent
	file := false
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			file = len(fields) >= 6 && fields[4] != "0" && (fields[1] == "r-xp" || fields[1] == "r--p")
			fmt.Sscanf(fields[0], "%x-%x", &e.from, &e.to)
		case file && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0":
			// Nothing here was ever changed, so nothing is lost; a table that
			// the loader relocated and then protected is left alone.
			clean = append(clean, e)
		}
	}
	return func() {
		for _, e := range clean {
			unix.RawSyscall(unix.SYS_MADVISE, e.from, e.to-e.from, unix.MADV_DONTNEED)
		}
	}
}
