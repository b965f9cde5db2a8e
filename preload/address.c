#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "preload.h"

socklen_t address_size(const union address *a)
{
	return a->sa.sa_family == AF_INET ? sizeof a->in : sizeof a->in6;
}

void give(struct sockaddr *to, socklen_t *len, const union address *a, socklen_t size)
{
	if (!to)
		return;
	memcpy(to, a, *len < size ? *len : size);
	*len = size;
}

bool is_mapped(const union address *a)
{
	return a->sa.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr);
}

// stand_in returns an address of 240.0.0.0/4, which is nobody's, for one of
// IPv6: always the same for the same, and for different ones with luck (28
// bits). It names a client to a daemon of IPv4 and proves nothing.
static uint32_t stand_in(const struct in6_addr *a)
{
	uint64_t h = 0xcbf29ce484222325;
	for (int i = 0; i < 16; i++)
		h = (h ^ a->s6_addr[i]) * 0x100000001b3;
	h ^= h >> 32;
	h *= 0x9e3779b97f4a7c15;
	uint32_t bits = (uint32_t)(h >> 36);
	return 0xf0000000 | (bits == 0x0fffffff ? 0 : bits); // never the broadcast address
}

static void to_ipv4(union address *a)
{
	union address v4 = {.in = {.sin_family = AF_INET, .sin_port = a->in6.sin6_port}};
	if (is_mapped(a))
		memcpy(&v4.in.sin_addr, &a->in6.sin6_addr.s6_addr[12], 4);
	else
		v4.in.sin_addr.s_addr = htonl(stand_in(&a->in6.sin6_addr));
	*a = v4;
}

static void to_ipv6(union address *a)
{
	union address v6 = {.in6 = {.sin6_family = AF_INET6, .sin6_port = a->in.sin_port}};
	v6.in6.sin6_addr.s6_addr[10] = v6.in6.sin6_addr.s6_addr[11] = 0xff;
	memcpy(&v6.in6.sin6_addr.s6_addr[12], &a->in.sin_addr, 4);
	*a = v6;
}

void show_as(int state, union address *a)
{
	if (state == SHOWN_AS_6 && a->sa.sa_family == AF_INET)
		to_ipv6(a);
	else if (state == SHOWN_AS_4 && a->sa.sa_family == AF_INET6)
		to_ipv4(a);
}

// shown answers for an accepted connection of another family than its
// listener.
static int shown(long number, int fd, struct sockaddr *to, socklen_t *len)
{
	union address a;
	socklen_t size = sizeof a;
	long r = raw(number, fd, &a, &size);
	if (r < 0)
		return (int)fail(r);
	if ((int)*len < 0)
		return (int)fail(-EINVAL);
	if (a.sa.sa_family == AF_INET || a.sa.sa_family == AF_INET6) {
		show_as(fd_state(fd), &a);
		size = address_size(&a);
	}
	give(to, len, &a, size);
	return 0;
}

// bound_name answers for a listener, unless the number has come to be
// something else unseen.
static bool bound_name(int fd, struct sockaddr *to, socklen_t *len)
{
	struct listener *l = fd_listener(fd);
	union address a;
	socklen_t size = sizeof a;
	if (!l || (int)*len < 0 || raw(SYS_getsockname, fd, &a, &size) < 0)
		return false;
	if (a.sa.sa_family != AF_UNIX) {
		fd_become(fd, NOTHING);
		return false;
	}
	give(to, len, &l->bound.address, address_size(&l->bound.address));
	return true;
}

EXPORT int getsockname(int fd, struct sockaddr *to, socklen_t *len)
{
	if (!to || !len)
		return real()->getsockname(fd, to, len);
	if (fd_state(fd) >= SHOWN_AS_6)
		return shown(SYS_getsockname, fd, to, len);
	if (bound_name(fd, to, len))
		return 0;
	socklen_t given = *len;
	int r = real()->getsockname(fd, to, len);
	if (r != 0 || given < sizeof(sa_family_t) || to->sa_family != AF_UNIX)
		return r;
	if (recover(fd)) {
		*len = given;
		bound_name(fd, to, len);
	}
	return 0;
}

EXPORT int getpeername(int fd, struct sockaddr *to, socklen_t *len)
{
	if (!to || !len || fd_state(fd) < SHOWN_AS_6)
		return real()->getpeername(fd, to, len);
	return shown(SYS_getpeername, fd, to, len);
}
