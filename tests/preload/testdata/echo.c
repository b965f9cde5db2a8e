// PORT COUNT: a UDP server that answers each datagram with its sender's address
// and the address that it came to.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 3);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
	must(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0);
	must(bind_any(fd, AF_INET, atoi(argv[1])) == 0);
	ready();
	for (int left = atoi(argv[2]); left > 0; left--) {
		struct sockaddr_storage from;
		char data[64], line[256], a[100], b[INET_ADDRSTRLEN];
		union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(struct in_pktinfo))]; } control;
		struct iovec io = {data, sizeof data};
		struct msghdr m = {&from, sizeof from, &io, 1, &control, sizeof control, 0};
		must(recvmsg(fd, &m, 0) >= 0);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		must(c && c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO);
		struct in_pktinfo info;
		memcpy(&info, CMSG_DATA(c), sizeof info);
		print_address(a, &from);
		int n = sprintf(line, "%s %s\n", a, inet_ntop(AF_INET, &info.ipi_addr, b, sizeof b));
		must(sendto(fd, line, (size_t)n, 0, (struct sockaddr *)&from, m.msg_namelen) == n);
	}
	return 0;
}
