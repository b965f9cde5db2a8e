// PORT: a master passes its listener to a worker that it forked before, and
// closes its own.
#define _GNU_SOURCE
#include "daemon.h"

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(sizeof(int))];
};

static void message(struct msghdr *m, struct iovec *io, union control *c, char *byte)
{
	memset(c, 0, sizeof *c);
	*io = (struct iovec){byte, 1};
	*m = (struct msghdr){.msg_iov = io, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c->room};
}

static int worker(int from)
{
	struct msghdr m;
	struct iovec io;
	union control c;
	char byte;
	int fd;
	message(&m, &io, &c, &byte);
	must(recvmsg(from, &m, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	looks_like_tcp(fd, AF_INET6);
	ready();
	serve(fd, 3);
	return 0;
}

int main(int argc, char **argv)
{
	must(argc == 2);
	int pair[2], status;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid_t pid = fork();
	if (pid == 0)
		exit(worker(pair[1]));
	int fd = listener(AF_INET6, atoi(argv[1]), 0);
	struct msghdr m;
	struct iovec io;
	union control c;
	char byte = 0;
	message(&m, &io, &c, &byte);
	*CMSG_FIRSTHDR(&m) = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd, sizeof fd);
	must(sendmsg(pair[0], &m, 0) == 1);
	must(close(fd) == 0);
	must(waitpid(pid, &status, 0) == pid && status == 0);
	return 0;
}
