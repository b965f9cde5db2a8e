// FAMILY PORT COUNT: accepts and closes, and nothing else.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 4);
	int fd = listener(argv[1][0] == '4' ? AF_INET : AF_INET6, atoi(argv[2]), 0);
	struct sockaddr_storage a;
	ready();
	for (int i = atoi(argv[3]); i > 0; i--) {
		socklen_t len = sizeof a;
		int c = accept4(fd, (struct sockaddr *)&a, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
		must(c >= 0);
		close(c);
	}
	_exit(0);
}
