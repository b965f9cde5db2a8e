#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "preload.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static bool is_wildcard(const struct bound *b)
{
	struct in6_addr a = as_ipv6(b);
	static const uint8_t none[4];
	return IN6_IS_ADDR_UNSPECIFIED(&a) || (IN6_IS_ADDR_V4MAPPED(&a) && memcmp(&a.s6_addr[12], none, 4) == 0);
}

static bool same_address(const struct bound *a, const struct bound *b)
{
	struct in6_addr x = as_ipv6(a), y = as_ipv6(b);
	return IN6_ARE_ADDR_EQUAL(&x, &y);
}

// may_share tells whether the kernel would let both be bound at one time.
static bool may_share(const struct bound *a, const struct bound *b)
{
	return (a->reuseport && b->reuseport) || !(is_wildcard(a) || is_wildcard(b) || same_address(a, b));
}

int share_here(struct listener *l, int *share)
{
	struct listener *base = NULL;
	for (int n = 1; n <= MAX_LISTENERS; n++) {
		struct listener *o = listener_by_number(n);
		if (!o || o == l || atomic_load(&o->state) != 2 || o->outside != l->outside ||
		    kind_of(&o->bound) != kind_of(&l->bound) || !held_here(o) || atomic_load(&listener_base(o)->flags) & DOWN)
			continue;
		if (!may_share(&o->bound, &l->bound))
			return -EADDRINUSE;
		base = listener_base(o);
	}
	if (!base)
		return 0;
	long copy = raw(SYS_fcntl, fd_of_base(base->number), F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return copy == -EBADF ? 0 : (int)copy;
	*share = (int)copy;
	l->base = base->number;
	return 1;
}

// share_from takes a copy from a process of the same tree, where the kernel
// lets us (pidfd_getfd needs the right to trace it).
static int share_from(struct listener *l, struct listener *other, int *share)
{
	int pid = holder_alive(other);
	long process = pid ? raw(SYS_pidfd_open, pid, 0) : -ESRCH;
	if (process < 0)
		return 0;
	struct sockaddr_un sun;
	struct bound b;
	*share = -1;
	for (int fd = 0; fd < 1024 && *share < 0; fd++) {
		long copy = raw(SYS_pidfd_getfd, process, fd, 0);
		if (copy == -EPERM || copy == -ENOSYS)
			break;
		socklen_t len = sizeof sun;
		if (copy < 0)
			continue;
		if (raw(SYS_getsockname, copy, &sun, &len) == 0 && name_read(&sun, len, &b) && b.id == other->bound.id)
			*share = (int)copy;
		else
			raw(SYS_close, copy);
	}
	raw(SYS_close, process);
	if (*share < 0)
		return 0;
	l->base = other->number;
	return 1;
}

int probe(struct listener *l, int dir, const char *name, int *share)
{
	struct stat st;
	long r = look(dir, name, &st, AT_SYMLINK_NOFOLLOW);
	if (r == -ENOENT)
		return 0;
	if (r < 0 || !S_ISSOCK(st.st_mode))
		return r < 0 ? (int)r : -EADDRINUSE;
	int fd = connect_to(dir, name);
	if (fd == -ECONNREFUSED || fd == -ENOENT)
		return 0; // left by one who has ended; rename replaces it
	if (fd < 0)
		return fd;
	struct sockaddr_un sun;
	struct bound b;
	socklen_t len = sizeof sun;
	bool ours = raw(SYS_getpeername, fd, &sun, &len) == 0 && name_read(&sun, len, &b);
	raw(SYS_close, fd);
	if (!ours || !b.reuseport || !l->bound.reuseport)
		return -EADDRINUSE;
	struct listener *other = listener_by_id(b.id);
	if (other && share_from(l, other, share) == 1)
		return 1;
	if (st.st_uid != (uid_t)raw(SYS_geteuid))
		return -EADDRINUSE;
	if (other)
		say("warning: port %u: processes of one daemon that each bind it can't share it here; the last one gets all connections",
		    (unsigned)l->outside);
	return 0;
}
