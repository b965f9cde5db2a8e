#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "preload.h"

void reset_connection(int fd)
{
	struct linger now = {1, 0};
	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	raw(SYS_close, fd);
}

// forward sends one queued connection on, waiting a little for room.
static bool forward(int to, int fd)
{
	char plain = 0;
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec io = {&plain, 1};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(sizeof fd)};
	memset(&control, 0, sizeof control);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	for (int try = 0; try < 50; try++) {
		struct { long s, ns; } pause = {0, 20 * 1000 * 1000};
		struct pollfd p = {.fd = to, .events = POLLOUT};
		long r = raw(SYS_sendmsg, to, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (r >= 0)
			return true;
		if (r != -EAGAIN && r != -ETOOMANYREFS && r != -EINTR)
			return false;
		raw(SYS_ppoll, &p, 1, &pause, NULL, 0);
	}
	return false;
}

void end_queue(int fd, struct listener *l)
{
	union address peer;
	int entered = errno, to = -2;
	unsigned reset = 0;
	for (;;) {
		int got = receive(fd, l, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (got == BAD)
			continue;
		if (got < 0)
			break;
		if (check(l, got, &peer) == BAD)
			continue;
		if (to == -2)
			to = successor(l);
		if (to >= 0 && forward(to, got)) {
			raw(SYS_close, got);
			continue;
		}
		reset_connection(got);
		reset++;
	}
	if (to >= 0)
		raw(SYS_close, to);
	if (reset > 0)
		say("warning: port %u: the last copy of the listener was closed with %u connections waiting: reset", (unsigned)l->outside, reset);
	errno = entered;
}
