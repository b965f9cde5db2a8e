#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/time.h>

#include "preload.h"

// A supervisor that starts this daemon again keeps its receiving sockets
// meanwhile, so that what waits in their queues waits for the next start. The
// descriptor that SOCKETBOX_KEEP numbers is one end of a SOCK_SEQPACKET pair: a
// packet to it is "SBXK", version 1, what is wanted, and the name of the
// receiving socket's file, with one descriptor: the receiving socket that is
// to be kept, or the end of a pair on which the one that was kept is answered.

enum { TAKE = 1, STORE = 2, HEAD = 6, PATIENCE = 2 }; // seconds

static long tell(char want, const char *name, int fd)
{
	char packet[HEAD + 32] = {'S', 'B', 'X', 'K', 1, want};
	size_t len = strlen(name);
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof fd)]; } control;
	struct iovec data = {packet, HEAD + len};
	struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	if (len > sizeof packet - HEAD)
		return -ENAMETOOLONG;
	memcpy(packet + HEAD, name, len);
	memset(&control, 0, sizeof control);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	long r;
	do
		r = raw(SYS_sendmsg, settings.keep, &m, MSG_NOSIGNAL);
	while (r == -EINTR);
	return r;
}

void keep(const char *name, int fd)
{
	if (settings.keep < 0)
		return;
	long r = tell(STORE, name, fd);
	if (r < 0)
		say("warning: %s is not kept over a restart: %s", name, error_text((int)-r));
}

static int answered(int fd)
{
	char byte;
	int got = -1;
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof got)]; } control;
	struct iovec data = {&byte, 1};
	struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	long n;
	do
		n = raw(SYS_recvmsg, fd, &m, MSG_CMSG_CLOEXEC);
	while (n == -EINTR);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof got))
		memcpy(&got, CMSG_DATA(c), sizeof got);
	return got;
}

int kept(const char *name)
{
	struct timeval limit = {.tv_sec = PATIENCE};
	int pair[2], fd = -1;
	if (settings.keep < 0 || raw(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	raw(SYS_setsockopt, pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	long r = tell(TAKE, name, pair[1]);
	raw(SYS_close, pair[1]);
	if (r >= 0)
		fd = answered(pair[0]);
	raw(SYS_close, pair[0]);
	return fd;
}
