// PORT: options set before bind are those of the borrowed listener and reach
// connections; a second bind of the same socket fails as it does with TCP.
#define _GNU_SOURCE
#include "daemon.h"

static void set(int fd, int level, int name, int value)
{
	must(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

int main(int argc, char **argv)
{
	must(argc == 2);
	int port = atoi(argv[1]), fd = tcp_socket(AF_INET6, SOCK_NONBLOCK);
	struct sockaddr_in6 own;
	socklen_t len = sizeof own;
	set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(fd, SOL_SOCKET, SO_RCVBUF, 30000);
	set(fd, IPPROTO_IPV6, IPV6_TCLASS, 0x20);
	must(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0);
	must(bind_any(fd, AF_INET6, port) == 0);
	must(bind_any(fd, AF_INET6, port) == -1);
	must(fcntl(fd, F_GETFD) == FD_CLOEXEC && (fcntl(fd, F_GETFL) & O_NONBLOCK));
	must(getsockname(fd, (struct sockaddr *)&own, &len) == 0 && own.sin6_family == AF_INET6 && ntohs(own.sin6_port) == port);
	must(option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
	must(listen(fd, 10) == 0);
	must(accept(fd, NULL, NULL) == -1 && errno == EAGAIN);
	ready();
	for (int i = 0; i < 2; i++) {
		wait_for(fd);
		int c = accepted(fd);
		must(option(c, IPPROTO_TCP, TCP_NODELAY) == 1);
		must(option(c, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
		must(option(c, SOL_SOCKET, SO_KEEPALIVE) == 1);
		must(option(c, SOL_SOCKET, SO_RCVBUF) == 60000);
		must(option(c, IPPROTO_IPV6, IPV6_TCLASS) == 0x20);
		answer(c);
	}
	return 0;
}
