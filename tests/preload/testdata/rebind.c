// PORT: a listener is closed, or shut down, and the port bound again.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 2);
	for (int i = 0; i < 3; i++) {
		int fd = listener(AF_INET, atoi(argv[1]), 0);
		if (i == 0)
			ready();
		int c = accepted(fd);
		must(close(fd) == 0); // before the next client comes
		answer(c);
	}
	int fd = listener(AF_INET, atoi(argv[1]), 0);
	must(shutdown(fd, SHUT_WR) == 0);
	int c = accepted(fd);
	must(shutdown(fd, SHUT_RDWR) == 0);
	answer(c);
	must(accept(fd, NULL, NULL) == -1 && errno == EINVAL);
	must(listen(fd, 10) == 0);
	serve(fd, 1);
	return 0;
}
