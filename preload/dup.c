#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

#include "preload.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1 << 1)
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1 << 2)
#endif

// copied notes that to is now a copy of from. errno is the caller's.
static int copied(int from, int to)
{
	if (to >= 0 && from != to) {
		fd_become(to, fd_state(from));
		number_seen(to);
	}
	return to;
}

EXPORT int socket(int domain, int type, int protocol)
{
	int fd = real()->socket(domain, type, protocol);
	if (fd >= 0) {
		fd_become(fd, NOTHING); // its number was closed unseen
		number_seen(fd);
	}
	return fd;
}

EXPORT int dup(int fd) { return copied(fd, real()->dup(fd)); }

// give_way prepares a number that a copy of fd is about to take.
static void give_way(int fd, int number)
{
	if (fd != number && fd_state(number) != NOTHING && raw(SYS_fcntl, fd, F_GETFD) >= 0)
		fd_leave(number);
}

EXPORT int dup2(int fd, int number)
{
	give_way(fd, number);
	return copied(fd, real()->dup2(fd, number));
}

EXPORT int dup3(int fd, int number, int flags)
{
	if (!(flags & ~O_CLOEXEC))
		give_way(fd, number);
	return copied(fd, real()->dup3(fd, number, flags));
}

EXPORT int fcntl(int fd, int command, ...)
{
	va_list args;
	va_start(args, command);
	void *arg = va_arg(args, void *);
	va_end(args);
	int r = real()->fcntl(fd, command, arg);
	if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
		copied(fd, r);
	return r;
}

EXPORT int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

// Daemons that close all that they do not know keep the way to their supervisor.
static bool is_kept(unsigned fd) { return settings.keep >= 0 && fd == (unsigned)settings.keep; }

EXPORT int close(int fd)
{
	if (is_kept((unsigned)fd))
		return 0;
	if (fd_state(fd) != NOTHING)
		fd_leave(fd);
	return real()->close(fd);
}

static void leave_range(unsigned first, unsigned last, unsigned flags);

// close_around is close_range but for what is_kept.
static long close_around(unsigned first, unsigned last, int flags)
{
	unsigned kept = (unsigned)settings.keep;
	if (settings.keep < 0 || first > kept || last < kept)
		return raw(SYS_close_range, first, last, flags);
	long r = first < kept ? raw(SYS_close_range, first, kept - 1, flags) : 0;
	return r == 0 && last > kept ? raw(SYS_close_range, kept + 1, last, flags) : r;
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	if (first <= last)
		leave_range(first, last, (unsigned)flags);
	return (int)fail(close_around(first, last, flags));
}

EXPORT void closefrom(int first)
{
	unsigned from = first < 0 ? 0 : (unsigned)first;
	leave_range(from, ~0u, 0);
	if (close_around(from, ~0u, 0) == 0)
		return;
	for (unsigned fd = from; fd < MAX_FDS; fd++) // before Linux 5.9
		if (!is_kept(fd))
			raw(SYS_close, fd);
}

static void leave_range(unsigned first, unsigned last, unsigned flags)
{
	if (flags & CLOSE_RANGE_CLOEXEC)
		return;
	for (int fd = fd_next(first); fd >= 0 && (unsigned)fd <= last; fd = fd_next((unsigned)fd + 1))
		fd_leave(fd);
}

EXPORT int shutdown(int fd, int how)
{
	struct listener *l = fd_listener(fd);
	if (!l)
		return real()->shutdown(fd, how);
	if (how == SHUT_WR)
		return 0; // of a TCP listener it changes nothing
	if (how != SHUT_RD && how != SHUT_RDWR)
		return (int)fail(-EINVAL);
	struct listener *base = listener_base(l);
	atomic_fetch_or(&base->flags, DOWN);
	unplace(base);
	return (int)fail(raw(SYS_shutdown, fd, SHUT_RD));
}
