/*
 * plain_receive PATH: the older receiver. It reads one byte and one descriptor
 * per datagram and tells the client its address.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_DGRAM, 0), c = -1;

	strncpy(at.sun_path, argv[argc - 1], sizeof at.sun_path - 1);
	umask(0117);
	if (bind(s, (struct sockaddr *)&at, sizeof at)) {
		perror("bind");
		return 1;
	}
	dprintf(1, "receiving\n");
	for (;;) {
		char byte;
		union {
			struct cmsghdr header;
			char space[CMSG_SPACE(sizeof c)];
		} control;
		struct iovec iov = { &byte, 1 };
		struct msghdr m = { NULL, 0, &iov, 1, &control, sizeof control, 0 };
		struct sockaddr_in peer = { 0 };
		socklen_t size = sizeof peer;
		if (recvmsg(s, &m, 0) != 1 || m.msg_controllen < sizeof control)
			continue;
		memcpy(&c, CMSG_DATA(&control.header), sizeof c);
		getpeername(c, (struct sockaddr *)&peer, &size);
		dprintf(c, "plain %s:%d\n", inet_ntoa(peer.sin_addr), ntohs(peer.sin_port));
		close(c);
	}
}
