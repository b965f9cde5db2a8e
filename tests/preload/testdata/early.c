// PORT: epoll is told of the socket, and of a copy of it, before it is bound.
#define _GNU_SOURCE
#include "daemon.h"

#include <sys/epoll.h>

int main(int argc, char **argv)
{
	must(argc == 2);
	int ep = epoll_create1(0), fd = tcp_socket(AF_INET, SOCK_NONBLOCK), copy = dup(fd), seen = 0;
	struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.u64 = 0x123456789abcdef0}, got[4];
	must(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	e.data.u64 = 42;
	must(epoll_ctl(ep, EPOLL_CTL_ADD, copy, &e) == 0);
	must(bind_any(fd, AF_INET, atoi(argv[1])) == 0);
	must(listen(fd, 10) == 0);
	ready();
	while (seen < 3) {
		int n = epoll_wait(ep, got, 4, 20000), c;
		must(n > 0);
		for (int i = 0; i < n; i++)
			must(got[i].data.u64 == 42 || got[i].data.u64 == 0x123456789abcdef0);
		for (; seen < 3 && (c = accept(fd, NULL, NULL)) >= 0; seen++)
			answer(c);
		must(seen == 3 || errno == EAGAIN);
	}
	e.events = EPOLLIN;
	must(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0);
	must(epoll_ctl(ep, EPOLL_CTL_DEL, copy, &e) == 0);
	must(epoll_wait(ep, got, 4, 20000) == 1);
	serve(fd, 1);
	return 0;
}
