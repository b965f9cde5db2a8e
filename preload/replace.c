#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "preload.h"

// A daemon may have made copies of its socket, or registered it with epoll,
// before it bound it. The kernel tells both in /proc; where there is none,
// only the descriptor itself is replaced.

#define MAX_COPIES 32
#define MAX_REGISTRATIONS 64

struct registration {
	int epoll, fd;
	struct epoll_event event;
};

struct scene {
	int copies, registrations;
	int copy[MAX_COPIES];
	struct registration registration[MAX_REGISTRATIONS];
};

// ---- reading /proc

// each_fd calls f for every open descriptor of this process.
static void each_fd(void (*f)(int fd, void *arg), void *arg)
{
	char buffer[2048];
	struct entry {
		uint64_t ino, off;
		unsigned short len;
		unsigned char type;
		char name[];
	};
	long dir = raw(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), n;
	if (dir < 0)
		return;
	while ((n = raw(SYS_getdents64, dir, buffer, sizeof buffer)) > 0) {
		for (long at = 0; at < n;) {
			unsigned short len;
			const char *name = buffer + at + offsetof(struct entry, name);
			memcpy(&len, buffer + at + offsetof(struct entry, len), sizeof len);
			at += len;
			int fd = 0;
			for (; *name >= '0' && *name <= '9'; name++)
				fd = fd * 10 + (*name - '0');
			if (!*name && fd != dir)
				f(fd, arg);
		}
	}
	raw(SYS_close, dir);
}

static bool same_socket(int a, int b)
{
	struct stat x, y;
	return raw(SYS_newfstatat, a, "", &x, AT_EMPTY_PATH) == 0 && raw(SYS_newfstatat, b, "", &y, AT_EMPTY_PATH) == 0 &&
	       x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void note_copy(int fd, void *arg)
{
	struct scene *s = arg;
	if (fd != s->copy[0] && s->copies < MAX_COPIES && same_socket(fd, s->copy[0]))
		s->copy[s->copies++] = fd;
}

static const char *skip_to(const char *at, const char *label)
{
	const char *found = strstr(at, label);
	if (!found)
		return NULL;
	for (found += strlen(label); *found == ' '; found++) {
	}
	return found;
}

static uint64_t read_number(const char *at, unsigned base)
{
	uint64_t n = 0;
	for (;; at++) {
		unsigned digit = *at >= '0' && *at <= '9' ? (unsigned)(*at - '0') : *at >= 'a' && *at <= 'f' ? (unsigned)(*at - 'a' + 10) : 16;
		if (digit >= base)
			return n;
		n = n * base + digit;
	}
}

// note_line reads a line of fdinfo: "tfd: 5 events: 19 data: 5 …".
static void note_line(struct scene *s, int epoll, const char *line)
{
	const char *tfd = skip_to(line, "tfd:"), *events = skip_to(line, "events:"), *data = skip_to(line, "data:");
	if (!tfd || !events || !data)
		return;
	int fd = (int)read_number(tfd, 10);
	for (int i = 0; i < s->copies; i++) {
		if (s->copy[i] != fd || s->registrations == MAX_REGISTRATIONS)
			continue;
		struct registration *r = &s->registration[s->registrations++];
		*r = (struct registration){epoll, fd, {.events = (uint32_t)read_number(events, 16)}};
		r->event.data.u64 = read_number(data, 16);
	}
}

static void note_lines(struct scene *s, int epoll, int info)
{
	char buffer[1024];
	size_t have = 0;
	long n;
	while ((n = raw(SYS_read, info, buffer + have, sizeof buffer - 1 - have)) > 0) {
		char *line = buffer, *end;
		have += (size_t)n;
		buffer[have] = 0;
		while ((end = strchr(line, '\n'))) {
			*end = 0;
			note_line(s, epoll, line);
			line = end + 1;
		}
		have -= (size_t)(line - buffer);
		memmove(buffer, line, have);
		if (have == sizeof buffer - 1)
			return; // no line is that long
	}
}

static void note_epoll(int fd, void *arg)
{
	static const char kind[] = "anon_inode:[eventpoll]";
	char path[48], link[sizeof kind];
	text(path, sizeof path, "/proc/self/fd/%d", fd);
	if (raw(SYS_readlinkat, AT_FDCWD, path, link, sizeof link) != sizeof kind - 1 || memcmp(link, kind, sizeof kind - 1) != 0)
		return;
	text(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	long info = raw(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return;
	note_lines(arg, fd, (int)info);
	raw(SYS_close, info);
}

// ---- putting the new socket in place

static void copy_flags(int from, int to)
{
	long flags = raw(SYS_fcntl, from, F_GETFL);
	if (flags < 0)
		return;
	if (flags & O_ASYNC) {
		raw(SYS_fcntl, to, F_SETOWN, raw(SYS_fcntl, from, F_GETOWN));
		raw(SYS_fcntl, to, F_SETSIG, raw(SYS_fcntl, from, F_GETSIG));
	}
	raw(SYS_fcntl, to, F_SETFL, flags);
}

// Only a registration that the kernel still knew is made again.
static void unregister(struct scene *s)
{
	int kept = 0;
	for (int i = 0; i < s->registrations; i++)
		if (raw(SYS_epoll_ctl, s->registration[i].epoll, EPOLL_CTL_DEL, s->registration[i].fd, &s->registration[i].event) == 0)
			s->registration[kept++] = s->registration[i];
	s->registrations = kept;
}

static void reregister(const struct scene *s)
{
	for (int i = 0; i < s->registrations; i++) {
		const struct registration *r = &s->registration[i];
		long e = raw(SYS_epoll_ctl, r->epoll, EPOLL_CTL_ADD, r->fd, &r->event);
		trace("epoll %d: descriptor %d registered again%s", r->epoll, r->fd, e < 0 ? ": failed" : "");
	}
}

static long put(int fd, int receiving)
{
	long flags = raw(SYS_fcntl, fd, F_GETFD);
	if (flags < 0)
		return flags;
	return raw(SYS_dup3, receiving, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0);
}

int replace(int fd, int receiving, struct listener *l)
{
	struct scene s;
	s.registrations = 0;
	s.copies = 1;
	s.copy[0] = fd;
	each_fd(note_copy, &s);
	each_fd(note_epoll, &s);
	if (!l || l->base == l->number)
		copy_flags(fd, receiving);
	unregister(&s);
	long r = 0;
	for (int i = 0; i < s.copies && r >= 0; i++) {
		fd_leave(s.copy[i]);
		r = put(s.copy[i], receiving);
		if (r >= 0 && l) {
			atomic_store(&l->state, 2);
			fd_become(s.copy[i], l->number);
		}
	}
	raw(SYS_close, receiving);
	reregister(&s);
	if (l && r >= 0)
		trace("bind: descriptor %d and %d copies, port %u, receives on %u", fd, s.copies - 1, (unsigned)port_of(&l->bound), (unsigned)l->outside);
	return r < 0 ? (int)r : 0;
}
