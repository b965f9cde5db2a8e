#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "preload.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

// The loan wire, version 1 (docs/protocol.md).
enum { REQUEST_SIZE = 12, ANSWER_SIZE = 8 + 240, LENT = 0, CONNECTIONS = 1 };

enum { PAUSE = 20, ANSWER_TIME = 5 }; // milliseconds between attempts, seconds for an answer

static int option_of(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof value;
	raw(SYS_getsockopt, fd, level, name, &value, &len);
	return value;
}

// fits says whether what was lent is what the daemon's own socket would be:
// whoever may write into the directory can answer there.
static bool fits(int lent, int own)
{
	int protocol = option_of(own, SOL_SOCKET, SO_PROTOCOL), domain = option_of(own, SOL_SOCKET, SO_DOMAIN);
	if (protocol == IPPROTO_MPTCP)
		protocol = IPPROTO_TCP; // what is lent is never MPTCP
	return option_of(lent, SOL_SOCKET, SO_DOMAIN) == domain && option_of(lent, SOL_SOCKET, SO_PROTOCOL) == protocol &&
	       option_of(lent, SOL_SOCKET, SO_ACCEPTCONN) == (protocol == IPPROTO_TCP) &&
	       (domain != AF_INET6 || option_of(lent, IPPROTO_IPV6, IPV6_V6ONLY) == option_of(own, IPPROTO_IPV6, IPV6_V6ONLY));
}

// trusted says whether the one who lends is whom SOCKETBOX_FROM names.
static bool trusted(int conn)
{
	struct ucred who;
	socklen_t len = sizeof who;
	return settings.from < 0 || (raw(SYS_getsockopt, conn, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0 && who.uid == (uid_t)settings.from);
}

static int dial(int dir, const char *name)
{
	struct sockaddr_un sun;
	struct timeval limit = {.tv_sec = ANSWER_TIME};
	int error = address_in(dir, name, &sun);
	if (error)
		return error;
	int fd = (int)raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	long r;
	do
		r = raw(SYS_connect, fd, &sun, sizeof sun);
	while (r == -EINTR);
	if (r == 0)
		return fd;
	raw(SYS_close, fd);
	return (int)r;
}

static long request(int conn, int own)
{
	char packet[REQUEST_SIZE] = {'S', 'B', 'X', 'L', 1}; // the backlog is set by the daemon's own listen
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof own)]; } control;
	struct iovec data = {packet, sizeof packet};
	struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	memset(&control, 0, sizeof control);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof own);
	memcpy(CMSG_DATA(c), &own, sizeof own);
	long r;
	do
		r = raw(SYS_sendmsg, conn, &m, MSG_NOSIGNAL);
	while (r == -EINTR);
	return r;
}

// answer reads the lender's answer: a socket, TAKE_CONNECTIONS, or -errno.
// -ECONNRESET says that he ended without one, -ECANCELED that he refused.
static int answer(int conn, int own, const char *name)
{
	char packet[ANSWER_SIZE + 1];
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec data = {packet, ANSWER_SIZE};
	struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	long n;
	do
		n = raw(SYS_recvmsg, conn, &m, MSG_CMSG_CLOEXEC);
	while (n == -EINTR);
	if (n <= 0)
		return n == 0 ? -ECONNRESET : (int)n;
	int fd = -1;
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof fd))
		memcpy(&fd, CMSG_DATA(c), sizeof fd);
	bool sound = n >= 8 && memcmp(packet, "SBXL\1", 5) == 0 && !(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
	int verdict = sound ? (unsigned char)packet[5] : -1;
	if (verdict == LENT && fd >= 0 && fits(fd, own))
		return fd;
	if (fd >= 0)
		raw(SYS_close, fd);
	packet[n] = 0;
	for (char *p = packet + 8; sound && *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	if (verdict == CONNECTIONS) {
		trace("%s: %s", name, packet + 8);
		if (settings.handoff != LOANS)
			return TAKE_CONNECTIONS;
	}
	say("error: borrow %s/%s: %s", settings.dir, name,
	    sound && n > 8 ? packet + 8 : verdict == LENT ? "what was lent is not the listener" : "what came is no answer");
	return -ECANCELED;
}

static int ask(int dir, int own, const char *name)
{
	int conn = dial(dir, name);
	if (conn < 0)
		return conn;
	if (!trusted(conn)) {
		raw(SYS_close, conn);
		say("error: borrow %s/%s: it is not uid %u who lends there", settings.dir, name, (unsigned)settings.from);
		return -ECANCELED;
	}
	long r = request(conn, own);
	int fd = r < 0 ? (int)r : answer(conn, own, name);
	raw(SYS_close, conn);
	return fd;
}

// expected says whether a loan may still come: the binder could make its socket
// here, and nobody has a receiver's name yet. For UDP nobody waits: a port of a
// client is bound as that of a server is.
static bool expected(int dir, int own, uint16_t port)
{
	static const char *const ends[] = {".sock", ".ipv4.sock", ".ipv6.sock"};
	struct stat st;
	char name[32];
	if (option_of(own, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM)
		return false;
	if (settings.handoff == LOANS)
		return true;
	if (look(dir, "", &st, AT_EMPTY_PATH) < 0 || ((st.st_mode & 0050) && !(st.st_mode & 0020)))
		return false;
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
		text(name, sizeof name, "%u%s", (unsigned)port, ends[i]);
		if (look(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			return false;
	}
	return true;
}

static void pause_for(long milliseconds)
{
	struct { long s, ns; } t = {milliseconds / 1000, milliseconds % 1000 * 1000000};
	raw(SYS_nanosleep, &t, 0);
}

int borrow(int own, uint16_t port)
{
	char name[32];
	int dir = settings.handoff == HANDOFFS ? -1 : open_directory();
	if (dir < 0)
		return TAKE_CONNECTIONS; // place says what is wrong
	text(name, sizeof name, "%u.listener", (unsigned)port);
	int r = -ENOENT;
	for (long waited = 0;; waited += PAUSE) {
		r = ask(dir, own, name);
		if (r != -ENOENT && r != -ECONNREFUSED && r != -ECONNRESET)
			break;
		if (waited >= settings.wait || !expected(dir, own, port))
			break;
		if (waited == 0)
			trace("port %u: waiting for %s", (unsigned)port, name);
		pause_for(PAUSE);
	}
	if (r >= 0 || r == TAKE_CONNECTIONS)
		return r;
	if (r == -ECANCELED)
		return -EACCES; // and it has been said why
	if (settings.handoff != LOANS || option_of(own, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM) {
		trace("%s: %s", name, error_text(-r));
		return TAKE_CONNECTIONS;
	}
	say("error: borrow %s/%s: %s; hint: start `socketbox bind`, or unset SOCKETBOX_HANDOFF", settings.dir, name, error_text(-r));
	return r;
}
