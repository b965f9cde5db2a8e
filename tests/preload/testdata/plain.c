// FAMILY PORT COUNT: what any daemon does, and what it asks about itself.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 4);
	int family = argv[1][0] == '4' ? AF_INET : AF_INET6, port = atoi(argv[2]), on = 1;
	int fd = tcp_socket(family, SOCK_CLOEXEC);
	if (strcmp(argv[1], "6only") == 0)
		must(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0);
	must(bind_any(fd, family, port) == 0);
	must(accept(fd, NULL, NULL) == -1 && errno == EINVAL); // not listening
	must(bind_any(fd, family, port) == -1 && errno == EINVAL);
	must(listen(fd, 10) == 0);
	must(listen(fd, 20) == 0);
	looks_like_tcp(fd, family);
	must(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	struct sockaddr_storage a;
	socklen_t len = sizeof a;
	char text[100];
	must(getsockname(fd, (struct sockaddr *)&a, &len) == 0);
	must(len == (family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)));
	print_address(text, &a);
	fprintf(stderr, "listening on %s\n", text);
	must(getpeername(fd, (struct sockaddr *)&a, &len) == -1 && errno == ENOTCONN);
	int other = tcp_socket(family, 0);
	if (strcmp(argv[1], "6only") == 0)
		must(setsockopt(other, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0);
	must(bind_any(other, family, port) == -1 && errno == EADDRINUSE);
	must(close(other) == 0);
	ready();
	for (int i = atoi(argv[3]); i > 0; i--) {
		errno = 77;
		len = sizeof a;
		int c = accept(fd, (struct sockaddr *)&a, &len);
		must(c >= 0 && errno == 77 && a.ss_family == family);
		must(option(c, SOL_SOCKET, SO_DOMAIN) == family);
		must((fcntl(c, F_GETFL) & O_NONBLOCK) == 0);
		must(fcntl(c, F_GETFD) == 0);
		if (family == AF_INET6)
			must(setsockopt(c, IPPROTO_IPV6, IPV6_TCLASS, &on, sizeof on) == 0);
		answer(c);
	}
	return 0;
}
