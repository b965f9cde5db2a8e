// PORT: the listener is copied before and after bind, and the first is closed.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 2);
	int fd = tcp_socket(AF_INET, 0), before = dup(fd);
	must(bind_any(fd, AF_INET, atoi(argv[1])) == 0);
	must(listen(before, 10) == 0);
	int after = fcntl(fd, F_DUPFD_CLOEXEC, 30), second = dup2(fd, 40), third = dup3(fd, 41, O_CLOEXEC);
	must(before > 0 && after >= 30 && second == 40 && third == 41);
	must(fcntl(41, F_GETFD) == FD_CLOEXEC && fcntl(40, F_GETFD) == 0);
	must(close(fd) == 0);
	looks_like_tcp(before, AF_INET);
	looks_like_tcp(41, AF_INET);
	ready();
	serve(before, 1);
	must(close(before) == 0);
	serve(after, 1);
	must(dup2(1, after) == after); // closes it
	serve(40, 1);
	must(close(40) == 0);
	must(close(40) == -1 && errno == EBADF);
	serve(41, 1);
	must(close(41) == 0);
	return 0;
}
