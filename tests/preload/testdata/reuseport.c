// PORT: two sockets with SO_REUSEPORT, and two addresses of one port, share
// what comes.
#define _GNU_SOURCE
#include "daemon.h"

static int reusing(int port, const char *address)
{
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, b;
	socklen_t len = sizeof b;
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
	must(inet_pton(AF_INET, address, &a.sin_addr) == 1);
	must(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
	must(listen(fd, 10) == 0);
	must(option(fd, SOL_SOCKET, SO_REUSEPORT) == 1);
	must(getsockname(fd, (struct sockaddr *)&b, &len) == 0 && memcmp(&a.sin_addr, &b.sin_addr, 4) == 0);
	return fd;
}

int main(int argc, char **argv)
{
	must(argc == 2);
	int port = atoi(argv[1]), seen = 0;
	struct pollfd p[3] = {{reusing(port, "0.0.0.0"), POLLIN, 0}, {reusing(port, "0.0.0.0"), POLLIN, 0}, {reusing(port, "127.0.0.1"), POLLIN, 0}};
	ready();
	while (seen < 6) {
		must(poll(p, 3, 20000) > 0);
		for (int i = 0; i < 3; i++) {
			int c = accept(p[i].fd, NULL, NULL);
			must(c >= 0 || errno == EAGAIN);
			if (c >= 0) {
				answer(c);
				seen++;
			}
		}
	}
	close(p[0].fd);
	for (; seen < 8; seen++) {
		wait_for(p[1].fd);
		answer(accepted(p[1].fd));
	}
	return 0;
}
