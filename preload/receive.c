#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>

#include "preload.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

// MAX_PAYLOAD bounds a datagram (docs/protocol.md): longer ones are damaged.
#define MAX_PAYLOAD 128

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(3 * sizeof(int)) + CMSG_LEN(sizeof(int))]; // SCM_CREDENTIALS, one descriptor
};

// The layout of SCM_CREDENTIALS (unix(7)).
struct credentials {
	uint32_t pid, uid, gid;
};

struct parcel {
	int fd, count;
	long uid;
};

// unpack never leaves more than one descriptor open: parcel.fd.
static void unpack(struct msghdr *m, struct parcel *p)
{
	*p = (struct parcel){-1, 0, -1};
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS) {
			struct credentials who;
			memcpy(&who, CMSG_DATA(c), sizeof who);
			p->uid = who.uid;
		}
		if (c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
			int fd;
			memcpy(&fd, (char *)c + at, sizeof fd);
			if (p->count++ == 0)
				p->fd = fd;
			else
				raw(SYS_close, fd);
		}
	}
}

static int refuse(struct listener *l, int fd, const char *why)
{
	if (fd >= 0)
		raw(SYS_close, fd);
	atomic_fetch_add(&l->bad, 1);
	trace("port %u: bad hand-off: %s", (unsigned)l->outside, why);
	return BAD;
}

// nothing_came says what a datagram without anything was: the end after
// shutdown, which looks like an empty one.
static int nothing_came(struct listener *l, int fd)
{
	struct { long s, ns; } now = {0, 0};
	struct pollfd p = {.fd = fd, .events = POLLRDHUP};
	if (raw(SYS_ppoll, &p, 1, &now, NULL, 0) == 1 && p.revents & POLLRDHUP)
		return ENDED;
	return refuse(l, -1, "empty datagram");
}

static int lost(struct listener *l)
{
	atomic_fetch_add(&l->lost, 1);
	number_seen(INT_MAX);
	say("error: port %u: a connection was lost, no descriptor was free for it; hint: raise RLIMIT_NOFILE", (unsigned)l->outside);
	errno = EMFILE;
	return -1;
}

int receive(int fd, struct listener *l, int flags)
{
	char payload[MAX_PAYLOAD];
	union control control;
	struct parcel p;
	struct iovec io = {payload, sizeof payload};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = &control};
	m.msg_controllen = settings.from >= 0 ? sizeof control.room : CMSG_LEN(sizeof(int));
	ssize_t n = real()->recvmsg(fd, &m, flags);
	if (n < 0)
		return -1;
	unpack(&m, &p);
	if (p.count == 0 && m.msg_flags & MSG_CTRUNC)
		return lost(l);
	if (n == 0)
		return p.count ? refuse(l, p.fd, "empty datagram") : nothing_came(l, fd);
	if (p.count == 0)
		return refuse(l, -1, "no descriptor");
	if (m.msg_flags & MSG_TRUNC)
		return refuse(l, p.fd, "datagram too long");
	if (m.msg_flags & MSG_CTRUNC || p.count > 1)
		return refuse(l, p.fd, "more than one descriptor");
	if (settings.from >= 0 && p.uid != settings.from)
		return refuse(l, p.fd, "sender is another user");
	return p.fd;
}

// A listening socket has no peer, nor has one that was reset meanwhile.
int check(struct listener *l, int fd, union address *peer)
{
	int protocol = 0;
	socklen_t len = sizeof protocol, size = sizeof *peer;
	if (raw(SYS_getsockopt, fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) < 0)
		return refuse(l, fd, "no socket");
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return refuse(l, fd, "no TCP socket");
	if (raw(SYS_getpeername, fd, peer, &size) < 0)
		return refuse(l, fd, "not connected");
	if (peer->sa.sa_family != AF_INET && peer->sa.sa_family != AF_INET6)
		return refuse(l, fd, "no internet address");
	return 0;
}
