#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

#include "preload.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

// Some runtimes make their system calls by number.
EXPORT long syscall(long number, ...)
{
	long a[6];
	va_list args;
	va_start(args, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	int fd = (int)a[0];
	switch (number) {
	case SYS_bind:
		return bind(fd, (const struct sockaddr *)a[1], (socklen_t)a[2]);
	case SYS_listen:
		return listen(fd, (int)a[1]);
#ifdef SYS_accept
	case SYS_accept:
		return accept(fd, (struct sockaddr *)a[1], (socklen_t *)a[2]);
#endif
	case SYS_accept4:
		return accept4(fd, (struct sockaddr *)a[1], (socklen_t *)a[2], (int)a[3]);
	case SYS_connect:
		return connect(fd, (const struct sockaddr *)a[1], (socklen_t)a[2]);
	case SYS_getsockname:
		return getsockname(fd, (struct sockaddr *)a[1], (socklen_t *)a[2]);
	case SYS_getpeername:
		return getpeername(fd, (struct sockaddr *)a[1], (socklen_t *)a[2]);
	case SYS_setsockopt:
		return setsockopt(fd, (int)a[1], (int)a[2], (const void *)a[3], (socklen_t)a[4]);
	case SYS_getsockopt:
		return getsockopt(fd, (int)a[1], (int)a[2], (void *)a[3], (socklen_t *)a[4]);
	case SYS_shutdown:
		return shutdown(fd, (int)a[1]);
	case SYS_close:
		return close(fd);
	case SYS_dup:
		return dup(fd);
#ifdef SYS_dup2
	case SYS_dup2:
		return dup2(fd, (int)a[1]);
#endif
	case SYS_dup3:
		return dup3(fd, (int)a[1], (int)a[2]);
	case SYS_close_range:
		return close_range((unsigned)a[0], (unsigned)a[1], (int)a[2]);
	}
	return real()->syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
