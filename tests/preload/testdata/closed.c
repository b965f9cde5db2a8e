// PORT: after the first connection the listener is closed, with what waits.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 2);
	int on = 1, fd = tcp_socket(AF_INET, 0);
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
	must(bind_any(fd, AF_INET, atoi(argv[1])) == 0 && listen(fd, 10) == 0);
	ready();
	serve(fd, 1);
	getchar(); // until it is told
	must(close_range((unsigned)fd, (unsigned)fd, 0) == 0);
	must(write(1, "closed\n", 7) == 7);
	getchar();
	return 0;
}
