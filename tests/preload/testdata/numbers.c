// PORT: system calls by number, as some runtimes make them.
#define _GNU_SOURCE
#include "daemon.h"

#include <sys/syscall.h>

int main(int argc, char **argv)
{
	must(argc == 2);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))}, b;
	socklen_t len = sizeof b;
	long fd = syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
	must(fd >= 0 && syscall(SYS_bind, fd, &a, sizeof a) == 0);
	must(syscall(SYS_listen, fd, 10) == 0);
	must(syscall(SYS_getsockname, fd, &b, &len) == 0 && b.sin_port == a.sin_port);
	must(syscall(SYS_getpid) == getpid());
	ready();
	for (int i = 0; i < 2; i++) {
		len = sizeof b;
		long c = syscall(SYS_accept4, fd, &b, &len, SOCK_CLOEXEC);
		must(c >= 0 && b.sin_family == AF_INET);
		answer((int)c);
	}
	must(syscall(SYS_close, fd) == 0);
	must(syscall(SYS_accept4, fd, NULL, NULL, 0) == -1 && errno == EBADF);
	return 0;
}
