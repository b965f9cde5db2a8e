// What the test daemons have in common. Each is given a port, says "ready"
// once it listens, answers each client with "PEER LOCAL\n", and ends with 0
// after the connections that it was told to serve. What is not as with TCP is
// one line on stderr and status 1.
#ifndef DAEMON_H
#define DAEMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define must(condition)                                                                                     \
	do {                                                                                                \
		if (!(condition)) {                                                                         \
			fprintf(stderr, "%s:%d: not so: %s (errno: %s)\n", __FILE__, __LINE__, #condition, strerror(errno)); \
			_exit(1);                                                                           \
		}                                                                                           \
	} while (0)

#define unused __attribute__((unused))

static unused int tcp_socket(int family, int flags)
{
	int on = 1, fd = socket(family, SOCK_STREAM | flags, 0);
	must(fd >= 0);
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
	return fd;
}

static unused int bind_any(int fd, int family, int port)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
	return family == AF_INET ? bind(fd, (struct sockaddr *)&v4, sizeof v4) : bind(fd, (struct sockaddr *)&v6, sizeof v6);
}

static unused void ready(void)
{
	must(write(1, "ready\n", 6) == 6);
}

static unused int listener(int family, int port, int flags)
{
	int fd = tcp_socket(family, flags);
	must(bind_any(fd, family, port) == 0);
	must(listen(fd, 64) == 0);
	return fd;
}

static unused void print_address(char *out, const struct sockaddr_storage *a)
{
	char host[64];
	const struct sockaddr_in *v4 = (const void *)a;
	const struct sockaddr_in6 *v6 = (const void *)a;
	if (a->ss_family == AF_INET)
		sprintf(out, "%s:%d", inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host), ntohs(v4->sin_port));
	else if (a->ss_family == AF_INET6)
		sprintf(out, "[%s]:%d", inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host), ntohs(v6->sin6_port));
	else
		sprintf(out, "family-%d", a->ss_family);
}

// answer says who is talking to whom, and closes.
static unused void answer(int fd)
{
	struct sockaddr_storage peer, local;
	socklen_t n = sizeof peer, m = sizeof local;
	char line[256], a[100], b[100];
	if (getpeername(fd, (struct sockaddr *)&peer, &n) == 0) { // else it has gone
		must(getsockname(fd, (struct sockaddr *)&local, &m) == 0);
		print_address(a, &peer);
		print_address(b, &local);
		sprintf(line, "%s %s\n", a, b);
		if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
			must(errno == EPIPE || errno == ECONNRESET);
	}
	must(close(fd) == 0);
}

static unused int accepted(int fd)
{
	int c;
	do
		c = accept(fd, NULL, NULL);
	while (c < 0 && errno == EINTR);
	must(c >= 0);
	return c;
}

static unused void serve(int fd, int count)
{
	while (count-- > 0)
		answer(accepted(fd));
}

static unused void wait_for(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	must(poll(&p, 1, 20000) == 1);
	must(p.revents & POLLIN);
}

static unused int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof value;
	must(getsockopt(fd, level, name, &value, &len) == 0);
	return value;
}

static unused void looks_like_tcp(int fd, int family)
{
	must(option(fd, SOL_SOCKET, SO_DOMAIN) == family);
	must(option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM);
	must(option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
	must(option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1);
	must(option(fd, SOL_SOCKET, SO_ERROR) == 0);
}

static unused int open_files(void)
{
	int count = 0;
	for (int fd = 0; fd < 4096; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

#endif
