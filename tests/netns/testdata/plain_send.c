/*
 * plain_send PATH [n]: the older sender. It accepts on a port of 127.0.0.1
 * and passes each connection to PATH in a datagram of one zero byte; with n,
 * in non-blocking mode.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	socklen_t size = sizeof in;
	int l = socket(AF_INET, SOCK_STREAM, 0), s = socket(AF_UNIX, SOCK_DGRAM, 0), c;

	bind(l, (struct sockaddr *)&in, size);
	listen(l, 99);
	getsockname(l, (struct sockaddr *)&in, &size);
	dprintf(1, "port %d\n", ntohs(in.sin_port));
	strncpy(to.sun_path, argv[1], sizeof to.sun_path - 1);
	while ((c = accept(l, NULL, NULL)) >= 0) {
		char byte = 0;
		union {
			struct cmsghdr header;
			char space[CMSG_SPACE(sizeof c)];
		} control = { .header = { .cmsg_len = CMSG_LEN(sizeof c), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
		struct iovec iov = { &byte, 1 };
		struct msghdr m = { &to, sizeof to, &iov, 1, &control, sizeof control, 0 };
		memcpy(CMSG_DATA(&control.header), &c, sizeof c);
		if (argc > 2)
			fcntl(c, F_SETFL, O_RDWR | O_NONBLOCK);
		if (sendmsg(s, &m, 0) != 1)
			perror("sendmsg");
		close(c);
	}
	return 1;
}
