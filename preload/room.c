#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/resource.h>

#include "preload.h"

// A descriptor for which the receiver has no number left is lost with its
// datagram, and looking first (MSG_PEEK) would hand one connection to two
// processes that accept at the same time. So accept asks for a number before
// it receives: in a process in which any hook has ever seen a number near the
// limit. A low one later proves nothing, since the kernel gives the lowest.

static _Atomic int limit;    // RLIMIT_NOFILE when it was last asked
static _Atomic bool crowded; // a number near it has been seen

static bool is_near(int fd, int of) { return fd >= of - (of / 4 > 1024 ? 1024 : of / 4); }

void number_seen(int fd)
{
	struct rlimit r;
	if (!is_near(fd, atomic_load_explicit(&limit, memory_order_relaxed)) || raw(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &r) < 0)
		return;
	int now = r.rlim_cur < INT_MAX ? (int)r.rlim_cur : INT_MAX;
	if (now != atomic_exchange(&limit, now))
		atomic_store(&crowded, false);
	if (is_near(fd, now))
		atomic_store(&crowded, true);
}

bool room(int fd)
{
	if (!atomic_load_explicit(&crowded, memory_order_relaxed) && atomic_load_explicit(&limit, memory_order_relaxed))
		return true;
	long spare = raw(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0);
	if (spare < 0)
		return spare != -EMFILE;
	raw(SYS_close, spare);
	number_seen((int)spare);
	return true;
}
