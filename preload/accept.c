#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>

#include "preload.h"

// face returns how the daemon shall see a connection of that family.
static int face(const struct listener *l, const union address *peer)
{
	if (peer->sa.sa_family == l->bound.family)
		return NOTHING;
	return l->bound.family == AF_INET6 ? SHOWN_AS_6 : SHOWN_AS_4;
}

static int admit(struct listener *l, int fd, union address *peer, int flags)
{
	int state = face(l, peer);
	if (state == SHOWN_AS_4 && settings.reject6 && !is_mapped(peer)) {
		reset_connection(fd);
		atomic_fetch_add(&l->rejected, 1);
		trace("port %u: rejected an IPv6 client (%u so far)", (unsigned)l->outside, atomic_load(&l->rejected));
		return BAD;
	}
	// Both ways: Linux's accept does not pass the flag on, a sender may.
	raw(SYS_fcntl, fd, F_SETFL, O_RDWR | (flags & SOCK_NONBLOCK ? O_NONBLOCK : 0));
	options_carry(l, fd, peer->sa.sa_family);
	show_as(state, peer);
	fd_become(fd, state);
	number_seen(fd);
	return 0;
}

// take is accept on a receiving socket: four system calls, one more for each
// option that the daemon has set on its listener, and two where descriptors
// are about to run out.
static int take(int fd, struct listener *l, struct sockaddr *to, socklen_t *len, int flags)
{
	union address peer;
	int entered = errno;
	if (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK) || !(atomic_load(&l->flags) & LISTENING))
		return (int)fail(-EINVAL);
	if (to && !len)
		return (int)fail(-EFAULT);
	for (;;) {
		if (!room(fd))
			return (int)fail(-EMFILE);
		int got = receive(fd, l, flags & SOCK_CLOEXEC ? MSG_CMSG_CLOEXEC : 0);
		if (got == BAD)
			continue;
		if (got == ENDED)
			return (int)fail(-EINVAL);
		if (got < 0)
			return -1;
		if (check(l, got, &peer) == BAD || admit(l, got, &peer, flags) == BAD)
			continue;
		if (to)
			give(to, len, &peer, address_size(&peer));
		errno = entered;
		trace("port %u: accepted %d", (unsigned)l->outside, got);
		return got;
	}
}

EXPORT int accept4(int fd, struct sockaddr *to, socklen_t *len, int flags)
{
	struct listener *l = fd_listener(fd);
	if (l) {
		int r = take(fd, l, to, len, flags);
		// A number that was closed unseen and used again.
		if (r >= 0 || (errno != ENOTCONN && errno != ENOTSOCK && errno != EBADF))
			return r;
		fd_become(fd, NOTHING);
	}
	int r = real()->accept4(fd, to, len, flags);
	if (r >= 0)
		fd_become(r, NOTHING);
	if (r >= 0 || errno != EOPNOTSUPP)
		return r;
	l = recover(fd);
	return l ? take(fd, l, to, len, flags) : (int)fail(-EOPNOTSUPP);
}

EXPORT int accept(int fd, struct sockaddr *to, socklen_t *len) { return accept4(fd, to, len, 0); }
