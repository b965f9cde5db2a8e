#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "preload.h"

// The life of a process: its start, its children, what it becomes by exec,
// and what it gives away.

__attribute__((constructor)) static void start(void)
{
	real();
	read_settings();
	table_open();
	open_directory();
	pthread_atfork(before_fork, NULL, after_fork);
}

// A program that ends without closing its listeners does so here, unless it
// is killed or calls _exit.
static void leave(int fd, struct listener *l)
{
	(void)l;
	fd_leave(fd);
}

__attribute__((destructor)) static void finish(void)
{
	each_listener_fd(leave);
	table_sweep();
}

// ---- exec

// A child of vfork has not been counted. If it takes a listener along, nobody
// may end that any more.
static void pin(int fd, struct listener *l)
{
	long flags = raw(SYS_fcntl, fd, F_GETFD);
	if (flags >= 0 && !(flags & FD_CLOEXEC))
		atomic_fetch_or(&listener_base(l)->flags, SHARED);
}

static void before_exec(void)
{
	if (!own_memory())
		each_listener_fd(pin);
}

EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
	before_exec();
	return real()->execve(path, argv, env);
}

EXPORT int execv(const char *path, char *const argv[]) { return execve(path, argv, environ); }

EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
	before_exec();
	return real()->execvpe(file, argv, env);
}

EXPORT int execvp(const char *file, char *const argv[]) { return execvpe(file, argv, environ); }

EXPORT int fexecve(int fd, char *const argv[], char *const env[])
{
	before_exec();
	return real()->fexecve(fd, argv, env);
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
		       char *const argv[], char *const env[])
{
	each_listener_fd(pin);
	return real()->posix_spawn(pid, path, actions, attributes, argv, env);
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
			char *const argv[], char *const env[])
{
	each_listener_fd(pin);
	return real()->posix_spawnp(pid, file, actions, attributes, argv, env);
}

// ---- SCM_RIGHTS

static void pin_passed(const struct cmsghdr *c)
{
	for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
		int fd;
		memcpy(&fd, (const char *)c + at, sizeof fd);
		struct listener *l = fd_listener(fd);
		if (l)
			atomic_fetch_or(&listener_base(l)->flags, SHARED);
	}
}

static void before_send(const struct msghdr *m)
{
	if (!m || !m->msg_control || m->msg_controllen < sizeof(struct cmsghdr))
		return;
	struct msghdr copy = *m;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&copy); c; c = CMSG_NXTHDR(&copy, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
			pin_passed(c);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	before_send(m);
	return real()->sendmsg(fd, m, flags);
}
