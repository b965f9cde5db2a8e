// PORT: accepting more often than connections come, without blocking.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 2);
	int fd = listener(AF_INET, atoi(argv[1]), SOCK_NONBLOCK);
	struct pollfd p = {fd, POLLIN, 0};
	must(accept(fd, NULL, NULL) == -1 && errno == EAGAIN);
	must(poll(&p, 1, 0) == 0);
	ready();
	for (int i = 0; i < 3; i++) {
		wait_for(fd);
		int c = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		must(c >= 0);
		must(fcntl(c, F_GETFL) & O_NONBLOCK && fcntl(c, F_GETFD) == FD_CLOEXEC);
		must(accept(fd, NULL, NULL) == -1 && errno == EAGAIN);
		must(accept(fd, NULL, NULL) == -1 && errno == EAGAIN);
		answer(c);
	}
	must(accept4(fd, NULL, NULL, 0x12345) == -1 && errno == EINVAL);
	int flags = fcntl(fd, F_GETFL);
	must(flags & O_NONBLOCK);
	must(fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0);
	serve(fd, 1);
	return 0;
}
