//go:build ignore

/*
 * ref: the reference that the hand-off is measured against, written the way
 * an unsophisticated server would be: accept on a dual-stack listener,
 * getsockname, sendmsg with one descriptor to a path, close. It never
 * connects its datagram socket, so the kernel looks the path up each time.
 *
 * The build constraint on the first line is for the Go tool, which would
 * otherwise refuse a folder that holds both Go and C without cgo.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* What every hand-off of the bench listens with; net.core.somaxconn caps it. */
#define BACKLOG 4096

static void die(const char *what)
{
	fprintf(stderr, "ref: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int listen_on(unsigned short port)
{
	struct sockaddr_in6 addr = {
		.sin6_family = AF_INET6,
		.sin6_addr = IN6ADDR_ANY_INIT,
		.sin6_port = htons(port),
	};
	int on = 1, off = 0;
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
	    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off))
		die("setsockopt");
	if (bind(fd, (struct sockaddr *)&addr, sizeof addr))
		die("bind");
	if (listen(fd, BACKLOG))
		die("listen");
	return fd;
}

/* hand_off sends conn to the receiver at addr; 0, or -1 with errno. */
static int hand_off(int out, struct sockaddr_un *addr, int conn, int flags)
{
	char byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr msg = {
		.msg_name = addr,
		.msg_namelen = sizeof *addr,
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof control.space,
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &conn, sizeof conn);
	return sendmsg(out, &msg, flags) < 0 ? -1 : 0;
}

static void usage(void)
{
	fputs("usage: ref [-b] [-d] PORT PATH\n"
	      "  -b  run under SCHED_BATCH\n"
	      "  -d  drop a connection while the receiver's queue is full\n",
	      stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct sched_param no_priority = { .sched_priority = 0 };
	int batch = 0, flags = 0, option;
	int listener, out;

	while ((option = getopt(argc, argv, "bd")) != -1) {
		if (option == 'b')
			batch = 1;
		else if (option == 'd')
			flags = MSG_DONTWAIT;
		else
			usage();
	}
	if (argc - optind != 2 || strlen(argv[optind + 1]) >= sizeof addr.sun_path)
		usage();
	strcpy(addr.sun_path, argv[optind + 1]);
	if (batch && sched_setscheduler(0, SCHED_BATCH, &no_priority))
		die("sched_setscheduler SCHED_BATCH");

	listener = listen_on((unsigned short)atoi(argv[optind]));
	out = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (out < 0)
		die("socket AF_UNIX");

	for (;;) {
		struct sockaddr_in6 local;
		socklen_t length = sizeof local;
		int conn = accept(listener, NULL, NULL);

		if (conn < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			die("accept");
		}
		/* A real server would choose the path by this address. */
		if (getsockname(conn, (struct sockaddr *)&local, &length))
			perror("ref: getsockname");
		if (hand_off(out, &addr, conn, flags) && errno != EAGAIN)
			perror("ref: sendmsg");
		close(conn);
	}
}
