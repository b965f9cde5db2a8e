//go:build ignore

/*
 * receiver: what takes the hand-offs in the bench. It does as little as a
 * receiver can, so that the dispatcher is what is measured: take one
 * descriptor, write one byte to it, close it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* The longest payload of the hand-off wire, in bytes. */
#define PAYLOAD_MAX 128

static void die(const char *what)
{
	fprintf(stderr, "receiver: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* receive returns the passed descriptor, or -1 for a datagram without one. */
static int receive(int fd)
{
	char payload[PAYLOAD_MAX];
	struct iovec iov = { .iov_base = payload, .iov_len = sizeof payload };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof control.space,
	};
	struct cmsghdr *c;
	int conn;

	if (recvmsg(fd, &msg, MSG_CMSG_CLOEXEC) < 0) {
		if (errno == EINTR)
			return -1;
		die("recvmsg");
	}
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
	    c->cmsg_len != CMSG_LEN(sizeof(int)))
		return -1;
	memcpy(&conn, CMSG_DATA(c), sizeof conn);
	return conn;
}

static void usage(void)
{
	fputs("usage: receiver [-s USEC] PATH\n"
	      "  -s USEC  sleep that long for each connection\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	useconds_t pause = 0;
	int fd, option;

	while ((option = getopt(argc, argv, "s:")) != -1) {
		if (option != 's')
			usage();
		pause = (useconds_t)atoi(optarg);
	}
	if (argc - optind != 1 || strlen(argv[optind]) >= sizeof addr.sun_path)
		usage();
	strcpy(addr.sun_path, argv[optind]);

	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	umask(0117); /* the socket's mode: 0660 */
	if (bind(fd, (struct sockaddr *)&addr, sizeof addr))
		die("bind");

	for (;;) {
		int conn = receive(fd);

		if (conn < 0)
			continue;
		if (pause)
			usleep(pause);
		/* A client that has gone is the load generator's to count. */
		(void)!send(conn, "x", 1, MSG_NOSIGNAL);
		close(conn);
	}
}
