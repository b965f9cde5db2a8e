// PORT: options set before and after bind read back, and reach connections.
#define _GNU_SOURCE
#include "daemon.h"

static void set(int fd, int level, int name, int value)
{
	must(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

int main(int argc, char **argv)
{
	must(argc == 2);
	int fd = tcp_socket(AF_INET6, 0), huge = 1 << 30;
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	set(fd, SOL_SOCKET, SO_RCVBUF, 30000);
	set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	must(bind_any(fd, AF_INET6, atoi(argv[1])) == 0);
	must(option(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
	must(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
	must(option(fd, SOL_SOCKET, SO_RCVBUF) == 60000);
	must(option(fd, SOL_SOCKET, SO_REUSEADDR) == 1);
	must(option(fd, SOL_SOCKET, SO_REUSEPORT) == 0);
	must(option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 0);
	set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
	must(option(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT) == 7); // as TCP rounds it
	set(fd, IPPROTO_TCP, TCP_FASTOPEN, 16);
	set(fd, IPPROTO_IPV6, IPV6_TCLASS, 0x20);
	must(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &huge, sizeof huge) == -1 && errno == EINVAL);
	must(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &huge, 1) == -1 && errno == EINVAL);
	must(setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG, &huge, sizeof huge) == -1 && errno == ENOPROTOOPT);
	must(setsockopt(fd, IPPROTO_TCP, 9999, &huge, sizeof huge) == -1 && errno == ENOPROTOOPT);
	must(listen(fd, 10) == 0);
	struct tcp_info info;
	socklen_t len = sizeof info;
	must(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == TCP_LISTEN);
	ready();
	for (int i = 0; i < 2; i++) {
		int c = accepted(fd);
		must(option(c, IPPROTO_TCP, TCP_NODELAY) == 1);
		must(option(c, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
		must(option(c, SOL_SOCKET, SO_KEEPALIVE) == 1);
		must(option(c, SOL_SOCKET, SO_RCVBUF) == 60000);
		must(option(c, IPPROTO_IPV6, IPV6_TCLASS) == 0x20);
		must(option(c, IPPROTO_IPV6, IPV6_V6ONLY) == 0);
		answer(c);
	}
	return 0;
}
