// A static daemon that answers each client with its address, in one of the
// ways in which daemons come to a listening socket.
//
//	static HOW PORT
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void need(int ok, const char *what)
{
	if (ok)
		return;
	printf("failed: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static int bound(int fd, int port)
{
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	return bind(fd, (struct sockaddr *)&a, sizeof a);
}

static void answer(int c, struct sockaddr_in6 *peer)
{
	char ip[64], text[256], request[4096];
	need(c >= 0, "accept");
	need(read(c, request, sizeof request) > 0, "read");
	inet_ntop(AF_INET6, &peer->sin6_addr, ip, sizeof ip);
	char *v4 = strncmp(ip, "::ffff:", 7) == 0 ? ip + 7 : NULL;
	snprintf(text, sizeof text, v4 ? "HTTP/1.0 200 OK\r\n\r\n%s:%d\n" : "HTTP/1.0 200 OK\r\n\r\n[%s]:%d\n", v4 ? v4 : ip, ntohs(peer->sin6_port));
	need(write(c, text, strlen(text)) > 0, "write");
	close(c);
}

static void serve(int fd)
{
	for (;;) {
		struct sockaddr_in6 peer;
		socklen_t len = sizeof peer;
		answer(accept(fd, (struct sockaddr *)&peer, &len), &peer);
	}
}

static void ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof value;
	need(getsockopt(fd, level, name, &value, &len) == 0, "getsockopt");
	return value;
}

// flagged: what the daemon has set on its descriptor is still so.
static void flagged(int fd, int port)
{
	need(fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0, "fcntl");
	need(bound(fd, port) == 0 && listen(fd, 5) == 0, "bind, listen");
	need(fcntl(fd, F_GETFL) & O_NONBLOCK, "O_NONBLOCK after bind");
	need(fcntl(fd, F_GETFD) & FD_CLOEXEC, "FD_CLOEXEC after bind");
	need(option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1, "SO_ACCEPTCONN");
	need(fcntl(fd, F_SETFL, 0) == 0, "fcntl");
}

// copied: a copy of the descriptor was made before the bind, and is served.
static int copied(int fd, int port)
{
	int copy = dup(fd);
	need(copy >= 0 && bound(fd, port) == 0 && listen(copy, 5) == 0, "dup, bind, listen");
	close(fd);
	return copy;
}

// watched: the socket was in an epoll set before the bind, with data that is
// not its number; afterwards it is changed there by its number.
static void watched(int fd, int port)
{
	int set = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.u64 = 0x1122334455667788};
	need(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
	need(bound(fd, port) == 0 && listen(fd, 5) == 0, "bind, listen");
	e.events = EPOLLIN;
	need(epoll_ctl(set, EPOLL_CTL_MOD, fd, &e) == 0, "epoll_ctl after bind");
	ready();
	for (;;) {
		struct epoll_event got;
		struct sockaddr_in6 peer;
		socklen_t len = sizeof peer;
		need(epoll_wait(set, &got, 1, -1) == 1, "epoll_wait");
		need(got.data.u64 == 0x1122334455667788 && got.events == EPOLLIN, "the event");
		answer(accept(fd, (struct sockaddr *)&peer, &len), &peer);
	}
}

// small: an automatic port, which stays in the daemon's own namespace.
static void automatic(void)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0), client = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 a;
	socklen_t len = sizeof a;
	need(bound(fd, 0) == 0 && listen(fd, 5) == 0, "bind to port 0");
	need(getsockname(fd, (struct sockaddr *)&a, &len) == 0 && a.sin6_port != 0, "getsockname");
	a.sin6_addr = in6addr_loopback;
	need(connect(client, (struct sockaddr *)&a, sizeof a) == 0, "connect to it");
}

static void echo(int port)
{
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);
	need(fd >= 0 && bound(fd, port) == 0, "bind of UDP");
	ready();
	for (;;) {
		char text[2048];
		struct sockaddr_in6 peer;
		socklen_t len = sizeof peer;
		ssize_t n = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&peer, &len);
		need(n >= 0 && sendto(fd, text, (size_t)n, 0, (struct sockaddr *)&peer, len) == n, "echo");
	}
}

int main(int argc, char **argv)
{
	need(argc == 3, "arguments");
	const char *how = argv[1];
	int port = atoi(argv[2]);
	if (strcmp(how, "udp") == 0)
		echo(port);
	int fd = socket(AF_INET6, SOCK_STREAM, 0), off = 0;
	need(fd >= 0 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0, "socket");
	if (strcmp(how, "watched") == 0)
		watched(fd, port);
	if (strcmp(how, "copied") == 0)
		fd = copied(fd, port);
	else if (strcmp(how, "flagged") == 0)
		flagged(fd, port);
	else
		need(bound(fd, port) == 0 && listen(fd, 5) == 0, "bind, listen");
	if (strcmp(how, "automatic") == 0)
		automatic();
	if (strcmp(how, "forked") == 0)
		for (int i = 0; i < 2; i++)
			if (fork() == 0)
				serve(fd);
	ready();
	if (strcmp(how, "forked") == 0)
		wait(NULL);
	serve(fd);
}
